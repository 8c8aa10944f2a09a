// Package phonetest gives tests a handset as the keystore sees it: a TPM, a
// state folder, an image with its signed policy and approval, and the vendor's
// keys. The test plays firmware, init and the device authority. Only tests
// import it.
package phonetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"rempart/boot/manifest"
	"rempart/keystore/client"
	"rempart/keystore/client/identity"
	"rempart/keystore/extend"
	"rempart/keystore/internal/tpmtest"
	"rempart/keystore/policy"
)

// Phone is a handset that is off until PowerOn.
type Phone struct {
	TPM      *tpmtest.TPM
	State    string            // keyd's folder
	Image    string            // policy, policy.pub and approval
	Programs []string          // what init measures into PCR 13
	ImageKey *ecdsa.PrivateKey // approves images

	policyKey, caKey *ecdsa.PrivateKey
	authority        *x509.Certificate
}

// New returns a phone with a new vendor, and its image of serial 3 under dir.
func New(dir string, machine *tpmtest.TPM) (*Phone, error) {
	p := &Phone{TPM: machine, State: filepath.Join(dir, "state"), Image: filepath.Join(dir, "image")}
	for _, folder := range []string{p.State, p.Image} {
		if err := os.Mkdir(folder, 0o700); err != nil {
			return nil, err
		}
	}
	for _, key := range []**ecdsa.PrivateKey{&p.ImageKey, &p.policyKey, &p.caKey} {
		var err error
		if *key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, err
		}
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &p.caKey.PublicKey, p.caKey)
	if err != nil {
		return nil, err
	}
	if p.authority, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return p, p.Build(3, "egressd 1", "keyd 1", "voiced 1")
}

// Roots are the device authority.
func (p *Phone) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.authority)
	return pool
}

// document is a policy; the words in capitals are replaced.
const document = `{
  "version": 1, "serial": SERIAL, "role": "handset", "name": "example", "domain": "handsets.example",
  "levels": ["public", "restricted"],
  "apps": [{"name": "voiced", "reads": "restricted", "writes": "restricted"}],
  "networks": [{"name": "wg0", "accredited": "restricted", "inner": ["10.77.0.0/16", "fd77::/64"]}],
  "gateways": [{"name": "gateway", "addresses": ["203.0.113.1"],
    "tunnel_key": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "inner": ["10.77.0.1", "fd77::1"],
    "services": [{"protocol": "udp", "port": 51820, "purpose": "tunnel"}]}],
  "keys": {"image": [IMAGE], "policy": [POLICY], "authority": [AUTHORITY], "gateway": []}
}
`

// Build writes an image that holds programs: policy, trust anchor and approval.
func (p *Phone) Build(serial int, programs ...string) error {
	p.Programs = programs
	image, err := manifest.MarshalPublicKey(&p.ImageKey.PublicKey)
	if err != nil {
		return err
	}
	anchor, err := manifest.MarshalPublicKey(&p.policyKey.PublicKey)
	if err != nil {
		return err
	}
	authority := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.authority.Raw}))
	text := strings.Replace(document, "SERIAL", strconv.Itoa(serial), 1)
	for _, word := range [][2]string{{"IMAGE", image}, {"POLICY", anchor}, {"AUTHORITY", authority}} {
		quoted, err := json.Marshal(word[1])
		if err != nil {
			return err
		}
		text = strings.Replace(text, "["+word[0]+"]", "["+string(quoted)+"]", 1)
	}
	bundle, err := manifest.Sign([]byte(text), p.policyKey)
	if err != nil {
		return err
	}
	approval, err := p.approve(serial)
	if err != nil {
		return err
	}
	return errors.Join(
		p.Write(manifest.PolicyFile, bundle),
		p.Write(manifest.AnchorFile, []byte(anchor)),
		p.Write(manifest.ApprovalFile, approval))
}

func (p *Phone) approve(serial int) ([]byte, error) {
	approval := &manifest.Approval{Version: manifest.ApprovalVersion, Serial: serial}
	for _, ref := range []string{policy.RefBoot, policy.RefUser} {
		pcrs := map[int][32]byte{11: extended(firmware()), 13: extended(p.Programs)}
		if ref == policy.RefBoot {
			pcrs[15] = [32]byte{}
		}
		inner, err := policy.Inner(pcrs, serial)
		if err != nil {
			return nil, err
		}
		approved, err := manifest.Approve(ref, pcrs, inner, p.ImageKey)
		if err != nil {
			return nil, err
		}
		approval.Approved = append(approval.Approved, approved)
	}
	return approval.Marshal()
}

// firmware is what the firmware measures into PCR 11.
func firmware() []string { return []string{"init", "root"} }

// extended is a PCR after the SHA-256 of each word.
func extended(words []string) (pcr [32]byte) {
	for _, word := range words {
		digest := sha256.Sum256([]byte(word))
		pcr = sha256.Sum256(append(pcr[:], digest[:]...))
	}
	return pcr
}

// Write puts a file into the image.
func (p *Phone) Write(name string, data []byte) error {
	return os.WriteFile(filepath.Join(p.Image, name), data, 0o644)
}

// PowerOn starts the TPM, measures as firmware and init do, and returns the
// stream that init would hand to keyd.
func (p *Phone) PowerOn() (*os.File, error) {
	stream, err := p.TPM.Start()
	if err != nil {
		return nil, err
	}
	fd, err := unix.Dup(int(stream.Fd()))
	if err != nil {
		return nil, err
	}
	door, err := extend.Open(os.NewFile(uintptr(fd), "tpm"))
	if err != nil {
		return nil, err
	}
	if err := door.Startup(); err != nil {
		return nil, err
	}
	for pcr, words := range map[int][]string{11: firmware(), 13: p.Programs} {
		for _, word := range words {
			if err := door.Extend(pcr, sha256.Sum256([]byte(word))); err != nil {
				return nil, err
			}
		}
	}
	return stream, door.Close()
}

// Certify is the device authority. edit, if not nil, changes what it issues.
func (p *Phone) Certify(e client.Enrolment, edit func(*x509.Certificate)) ([][]byte, error) {
	csr, err := x509.ParseCertificateRequest(e.CSR)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	level, err := asn1.MarshalWithParams("restricted", "utf8")
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: csr.Subject,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{{Scheme: "sip", Opaque: csr.Subject.CommonName + "@handsets.example"}},
		IPAddresses: []net.IP{net.ParseIP("10.77.0.11"), net.ParseIP("fd77::11")},
		ExtraExtensions: []pkix.Extension{
			{Id: identity.OIDLevel, Value: level},
			{Id: identity.OIDLab, Value: asn1.NullBytes},
		},
		PublicKey: csr.PublicKey,
	}
	for _, extension := range csr.Extensions {
		if extension.Id.Equal(identity.OIDTunnelKey) {
			template.ExtraExtensions = append(template.ExtraExtensions, extension)
		}
	}
	if edit != nil {
		edit(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, p.authority, template.PublicKey, p.caKey)
	if err != nil {
		return nil, fmt.Errorf("cannot certify: %w", err)
	}
	return [][]byte{der}, nil
}
