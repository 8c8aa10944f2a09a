package client

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// answering is a client of something on the socket that answers every request
// with v: not keyd, or a keyd gone wrong.
func answering(t *testing.T, v any) *Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "keyd")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	})}
	go srv.Serve(ln)
	t.Cleanup(func() {
		srv.Close()
		os.RemoveAll(dir)
	})
	return New(path)
}

func selfSigned(t *testing.T, curve elliptic.Curve) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestTunnelKeysOfAnotherSizeAreNotUsed(t *testing.T) {
	for _, size := range []int{0, 31, 33} {
		if key, err := answering(t, TunnelKey{make([]byte, size)}).TunnelKey(t.Context()); err == nil || key != nil {
			t.Errorf("%d bytes: taken", size)
		}
	}
	key, err := answering(t, TunnelKey{make([]byte, 32)}).TunnelKey(t.Context())
	if err != nil || key.Len() != 32 {
		t.Errorf("32 bytes: %v", err)
	}
}

func TestChainsThatAreNoneAreNotUsed(t *testing.T) {
	for name, chain := range map[string][][]byte{
		"none": nil, "garbage": {{1, 2, 3}}, "another curve": {selfSigned(t, elliptic.P384())},
	} {
		c := answering(t, Chain{chain})
		if _, _, err := c.Signer(t.Context()); err == nil {
			t.Errorf("%s: a signer", name)
		}
		if _, err := c.TLSCertificate(t.Context()); err == nil {
			t.Errorf("%s: a TLS certificate", name)
		}
	}
	if _, _, err := answering(t, Chain{}).Signer(t.Context()); !errors.Is(err, ErrNotProvisioned) {
		t.Errorf("an empty chain: %v", err)
	}
}

func TestSignerTakesOnlySHA256(t *testing.T) {
	c := answering(t, Chain{[][]byte{selfSigned(t, elliptic.P256())}})
	key, _, err := c.Signer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, sign := range map[string]func() error{
		"no options": func() error { _, err := key.Sign(nil, make([]byte, 32), nil); return err },
		"SHA-384":    func() error { _, err := key.Sign(nil, make([]byte, 48), crypto.SHA384); return err },
		"31 bytes":   func() error { _, err := key.Sign(nil, make([]byte, 31), crypto.SHA256); return err },
	} {
		if sign() == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

func TestWaitOpenEndsWhenItWillNotCome(t *testing.T) {
	err := answering(t, Status{State: Failed, Reason: "tpm is gone"}).WaitOpen(t.Context())
	if !errors.Is(err, ErrRefused) || err.Error() != "cannot wait for the keystore: keystore refused: tpm is gone" {
		t.Errorf("%v", err)
	}
	if err := answering(t, Status{State: Capped}).WaitOpen(t.Context()); err != nil {
		t.Errorf("capped: %v", err)
	}
}
