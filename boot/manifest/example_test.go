package manifest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"
)

// world is the keys of one test's vendor.
type world struct {
	image, policy, gateway *ecdsa.PrivateKey
	authority              string
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func publicPEM(t testing.TB, key *ecdsa.PrivateKey) string {
	t.Helper()
	text, err := MarshalPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func certificate(t testing.TB, ca bool) string {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0), BasicConstraintsValid: true, IsCA: ca}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return &world{image: newKey(t), policy: newKey(t), gateway: newKey(t), authority: certificate(t, true)}
}

// template is a whole policy document; the line of each entry matters to the
// tests of Check.
const template = `{
  "version": 1,
  "serial": 3,
  "role": "handset",
  "name": "example",
  "domain": "handsets.example",
  "levels": ["public", "restricted", "secret"],
  "apps": [
    {"name": "voiced", "reads": "restricted", "writes": "restricted"},
    {"name": "mail", "reads": "public", "writes": "restricted"}
  ],
  "networks": [
    {"name": "wg0", "accredited": "restricted",
     "inner": ["10.77.0.0/16", "fd77::/64"]}
  ],
  "gateways": [
    {"name": "gateway",
     "addresses": ["203.0.113.1", "2001:db8:113::1"],
     "tunnel_key": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
     "inner": ["10.77.0.1", "fd77::1"],
     "services": [
       {"protocol": "udp", "port": 51820, "purpose": "tunnel"},
       {"protocol": "tcp", "port": 7371, "purpose": "attestation"}
     ]}
  ],
  "keys": {
    "image": [IMAGE],
    "policy": [POLICY],
    "authority": [AUTHORITY],
    "gateway": [GATEWAY]
  }
}
`

func quote(t testing.TB, s string) string {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (w *world) document(t testing.TB) string {
	t.Helper()
	return strings.NewReplacer(
		"IMAGE", quote(t, publicPEM(t, w.image)),
		"POLICY", quote(t, publicPEM(t, w.policy)),
		"AUTHORITY", quote(t, w.authority),
		"GATEWAY", quote(t, publicPEM(t, w.gateway)),
	).Replace(template)
}

func (w *world) bundle(t testing.TB, document string) []byte {
	t.Helper()
	b, err := Sign([]byte(document), w.policy)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
