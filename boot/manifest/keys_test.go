package manifest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"
)

// TestKeyIDIsThatOfOtherTools: the name of a key is what
// `openssl pkey -pubin -outform DER | sha256sum` prints for it.
func TestKeyIDIsThatOfOtherTools(t *testing.T) {
	const text = `-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEUaxHtWvecRu7j60TCiuG93Zldoq+
64+z4QMVu6ZrhDt3QpVRKnKQiukHt35GpJbT1YAelCgQGZmcdgkteo2AIg==
-----END PUBLIC KEY-----
`
	key, err := ParsePublicKey(text)
	if err != nil {
		t.Fatal(err)
	}
	id, err := KeyID(key)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(id[:]); got != "7c1ced4035a2d18f4943ba0eef0f2cde4091bcead473c94735cd3d349910f991" {
		t.Errorf("key id %s, want 7c1ced4035a2d18f4943ba0eef0f2cde4091bcead473c94735cd3d349910f991", got)
	}
	if again, err := MarshalPublicKey(key); err != nil || again != text {
		t.Errorf("the key became %s, %v", again, err)
	}
}

func publicKeyPEM(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func TestOnlyP256KeysAreRead(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good := newKey(t)
	private, err := x509.MarshalPKCS8PrivateKey(good)
	if err != nil {
		t.Fatal(err)
	}
	text := publicPEM(t, good)
	for name, text := range map[string]string{
		"P-384":         publicKeyPEM(t, &p384.PublicKey),
		"RSA":           publicKeyPEM(t, &rsaKey.PublicKey),
		"a private key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})),
		"no DER":        string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte("no")})),
		"two keys":      text + text,
		"half a key":    text[:len(text)/2],
		"a point off the curve": func() string {
			block, _ := pem.Decode([]byte(text))
			block.Bytes[len(block.Bytes)-1] ^= 1
			return string(pem.EncodeToMemory(block))
		}(),
		"empty": "",
	} {
		if key, err := ParsePublicKey(text); err == nil || key != nil {
			t.Errorf("%s: read %v, %v", name, key, err)
		}
		if keys, err := ParsePublicKeys([]byte(text)); name != "two keys" && (err == nil || keys != nil) {
			t.Errorf("%s: read %v, %v", name, keys, err)
		}
	}
	for name, key := range map[string]*ecdsa.PublicKey{"nil": nil, "P-384": &p384.PublicKey} {
		if id, err := KeyID(key); err == nil {
			t.Errorf("%s has the id %x", name, id)
		}
		if text, err := MarshalPublicKey(key); err == nil {
			t.Errorf("%s is %s", name, text)
		}
	}
}

func TestOnlyAuthoritiesAreRead(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0), BasicConstraintsValid: true, IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &rsaKey.PublicKey, rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	good := certificate(t, true)
	for name, c := range map[string]struct{ text, want string }{
		"RSA":            {string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), "not ECDSA P-256"},
		"a person":       {certificate(t, false), "not an authority's"},
		"a bare key":     {publicPEM(t, newKey(t)), `found "PUBLIC KEY"`},
		"a chain":        {good + good, "nothing after it"},
		"half":           {good[:len(good)/2], "want a PEM block"},
		"no certificate": {string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der[:40]})), "cannot read the certificate"},
	} {
		if cert, err := parseAuthority(c.text); err == nil || cert != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want …%s…", name, err, c.want)
		}
	}
	if cert, err := parseAuthority(good); err != nil || cert.Subject.CommonName != "authority" {
		t.Errorf("a good one: %v", err)
	}
}
