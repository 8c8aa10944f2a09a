package keying

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"rempart/keystore/client/identity"
)

// authority issues LDevID certificates in a test.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{key: newKey(t), pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

// issue returns a certificate for a handset's name, with its key.
func (a *authority) issue(t testing.TB, name, level string, life time.Duration) tls.Certificate {
	t.Helper()
	must := func(v any, params string) []byte {
		b, err := asn1.MarshalWithParams(v, params)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	tunnel := make([]byte, 32)
	if _, err := rand.Read(tunnel); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(life),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{{Scheme: "sip", Opaque: name + "@handsets.example"}},
		IPAddresses: []net.IP{net.ParseIP("10.77.0.11"), net.ParseIP("fd77::11")},
		ExtraExtensions: []pkix.Extension{
			{Id: identity.OIDLevel, Value: must(level, "utf8")},
			{Id: identity.OIDTunnelKey, Value: must(tunnel, "")},
			{Id: identity.OIDLab, Value: asn1.NullBytes},
		},
	}
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func uri(name string) string { return "sip:" + name + "@handsets.example" }

// lowest is a rule with three levels, as vpn/levels has it.
func lowest(local, peer identity.Identity) (string, error) {
	order := map[string]int{"public": 0, "restricted": 1, "secret": 2}
	if order[local.Level] < order[peer.Level] {
		return local.Level, nil
	}
	return peer.Level, nil
}

// parties is a call that succeeds: a, certified secret, dials b, certified restricted.
func parties(t testing.TB, a *authority) (caller, callee Params) {
	t.Helper()
	caller = Params{CallID: "7f3a@10.77.0.11", Local: uri("a"), DialledName: uri("b"), Roots: a.pool, Level: lowest,
		Certificate: a.issue(t, "a", "secret", time.Hour)}
	callee = Params{CallID: "7f3a@10.77.0.11", Local: uri("b"), DialledName: uri("a"), Roots: a.pool, Level: lowest,
		Certificate: a.issue(t, "b", "restricted", time.Hour)}
	return caller, callee
}

// trusting is a pool that trusts two authorities: a party that has been set up wrongly, or is hostile.
func trusting(a, b *authority) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	pool.AddCert(b.cert)
	return pool
}
