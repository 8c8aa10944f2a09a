package load

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rempart/boot/manifest"
)

func newKey(t *testing.T) (*ecdsa.PrivateKey, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := manifest.MarshalPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return key, text
}

func authority(t *testing.T) string {
	t.Helper()
	key, _ := newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0), BasicConstraintsValid: true, IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// approval signs both references for a serial.
func approval(t *testing.T, key *ecdsa.PrivateKey, serial int) []byte {
	t.Helper()
	a := &manifest.Approval{Version: manifest.ApprovalVersion, Serial: serial}
	for _, ref := range []string{manifest.RefBoot, manifest.RefUser} {
		approved, err := manifest.Approve(ref, map[int][32]byte{11: {1}, 13: {2}}, [32]byte{3}, key)
		if err != nil {
			t.Fatal(err)
		}
		a.Approved = append(a.Approved, approved)
	}
	data, err := a.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestFolder(t *testing.T) {
	policyKey, policyPEM := newKey(t)
	imageKey, imagePEM := newKey(t)
	want := &manifest.Policy{Version: manifest.Version, Serial: 3, Role: manifest.RoleGateway, Name: "example", Domain: "handsets.example",
		Levels:   []string{"public"},
		Networks: []manifest.Network{{Name: "wg0", Accredited: "public", Inner: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")}}},
		Gateways: []manifest.Gateway{{Name: "gateway", Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.1")},
			Inner:    []netip.Addr{netip.MustParseAddr("10.77.0.1")},
			Services: []manifest.Service{{Protocol: "udp", Port: 51820, Purpose: manifest.PurposeTunnel}}}},
		Keys: manifest.Keys{Image: []string{imagePEM}, Policy: []string{policyPEM}, Authority: []string{authority(t)}}}
	document, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := manifest.Sign(document, policyKey)
	if err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	put := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what string, reason error) {
		t.Helper()
		if p, b, err := Policy(dir); !errors.Is(err, reason) || p != nil || b != nil {
			t.Errorf("%s: %v, %d bytes, %v; want %v", what, p, len(b), err, reason)
		}
	}
	refused("an empty folder", manifest.ErrMissing)
	put(manifest.AnchorFile, []byte(policyPEM))
	refused("no policy", manifest.ErrMissing)
	if _, _, err := Policy(dir); !strings.Contains(err.Error(), filepath.Join(dir, manifest.PolicyFile)) {
		t.Errorf("%v does not name the file", err)
	}
	put(manifest.PolicyFile, bundle)
	p, read, err := Policy(dir)
	if err != nil || p.Name != want.Name || !bytes.Equal(read, bundle) {
		t.Fatalf("%v, %d bytes, %v", p, len(read), err)
	}

	unapproved := func(what string, reason error) {
		t.Helper()
		if a, err := Approval(dir, p); !errors.Is(err, reason) || a != nil {
			t.Errorf("%s: %v, %v; want %v", what, a, err, reason)
		}
	}
	unapproved("no approval", manifest.ErrMissing)
	put(manifest.ApprovalFile, approval(t, policyKey, 3))
	unapproved("an approval by the policy's key", manifest.ErrWrongKey)
	put(manifest.ApprovalFile, approval(t, imageKey, 4))
	unapproved("an approval of another serial", manifest.ErrInvalid)
	put(manifest.ApprovalFile, bytes.Repeat([]byte(" "), manifest.MaxApproval+1))
	unapproved("a large approval", manifest.ErrTooLarge)
	put(manifest.ApprovalFile, approval(t, imageKey, 3))
	if a, err := Approval(dir, p); err != nil || a.Serial != 3 {
		t.Errorf("%v, %v", a, err)
	}

	put(manifest.PolicyFile, bytes.Repeat([]byte("x"), manifest.MaxBundle+1))
	refused("a large policy", manifest.ErrTooLarge)
	put(manifest.PolicyFile, bundle)
	_, other := newKey(t)
	put(manifest.AnchorFile, []byte(other))
	refused("another anchor", manifest.ErrWrongKey)
	put(manifest.AnchorFile, []byte("-----BEGIN"))
	refused("a garbled anchor", manifest.ErrGarbled)
	put(manifest.AnchorFile, bytes.Repeat([]byte("\n"), manifest.MaxAnchor+1))
	refused("a large anchor", manifest.ErrTooLarge)
	put(manifest.AnchorFile, []byte(policyPEM))
	if err := errors.Join(os.Remove(filepath.Join(dir, manifest.PolicyFile)), os.Mkdir(filepath.Join(dir, manifest.PolicyFile), 0o755)); err != nil {
		t.Fatal(err)
	}
	refused("a folder for a policy", manifest.ErrMissing)
}
