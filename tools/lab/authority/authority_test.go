package authority

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"rempart/keystore/client/identity"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func newAuthority(t *testing.T) *Authority {
	t.Helper()
	key, root, err := NewRoot("Test lab", now, 10)
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(root, key)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// tunnel is a tunnel key extension of n bytes.
func tunnel(n int) pkix.Extension {
	key := make([]byte, n)
	for i := range key {
		key[i] = byte(i + 1)
	}
	value, _ := asn1.Marshal(key) // bytes always have an encoding
	return pkix.Extension{Id: identity.OIDTunnelKey, Value: value}
}

// request makes a certificate request as keyd does.
func request(t *testing.T, key any, name string, extensions ...pkix.Extension) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: name}, ExtraExtensions: extensions,
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func grant() Grant {
	return Grant{
		Name: "a", URI: "sip:a@handsets.example", Level: "restricted",
		Inner:     []netip.Addr{netip.MustParseAddr("10.77.0.11"), netip.MustParseAddr("fd77::11")},
		NotBefore: now, NotAfter: now.AddDate(2, 0, 0),
	}
}

func pool(t *testing.T, a *Authority) *x509.CertPool {
	t.Helper()
	root, err := x509.ParseCertificate(a.Root())
	if err != nil {
		t.Fatal(err)
	}
	p := x509.NewCertPool()
	p.AddCert(root)
	return p
}

func TestIssuedIsWhatHandsetsRead(t *testing.T) {
	a, key := newAuthority(t), newKey(t)
	for _, g := range []Grant{grant(), {
		Name: "gateway", URI: "sip:handsets.example", Level: "restricted", NotBefore: now, NotAfter: now.AddDate(1, 0, 0),
		Inner: []netip.Addr{netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("fd77::1")},
	}} {
		der, err := a.Issue(request(t, key, g.Name, tunnel(32)), g)
		if err != nil {
			t.Fatal(err)
		}
		id, leaf, err := identity.Verify([][]byte{der, a.Root()}, pool(t, a), now.Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if id.Name != g.Name || id.URI != g.URI || id.Level != g.Level || !slices.Equal(id.Inner, g.Inner) || !id.Lab || id.TunnelKey[31] != 32 {
			t.Errorf("it reads as %+v, granted %+v", id, g)
		}
		if !key.PublicKey.Equal(leaf.PublicKey) || leaf.IsCA {
			t.Error("it certifies another key, or an authority")
		}
		want := 0
		if id.IsGateway() {
			want = 1
		}
		if len(leaf.DNSNames) != want {
			t.Errorf("%s has DNS names %v", g.Name, leaf.DNSNames)
		}
		if _, _, err := identity.Verify([][]byte{der}, pool(t, newAuthority(t)), now.Add(time.Hour)); !errors.Is(err, identity.ErrAuthority) {
			t.Errorf("another authority's handsets take it: %v", err)
		}
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	a, key := newAuthority(t), newKey(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good := request(t, key, "a", tunnel(32))
	forged := slices.Clone(good)
	forged[len(forged)-1] ^= 1
	for what, csr := range map[string][]byte{
		"nothing":            nil,
		"not a request":      []byte("hello"),
		"a forged signature": forged,
		"trailing bytes":     append(slices.Clone(good), 0),
		"another name":       request(t, key, "b", tunnel(32)),
		"no tunnel key":      request(t, key, "a"),
		"a short tunnel key": request(t, key, "a", tunnel(31)),
		"a zero tunnel key":  request(t, key, "a", pkix.Extension{Id: identity.OIDTunnelKey, Value: append([]byte{4, 32}, make([]byte, 32)...)}),
		"a level of its own": request(t, key, "a", tunnel(32), pkix.Extension{Id: identity.OIDLevel, Value: []byte("\x0c\x06secret")}),
		"a curve too many":   request(t, p384, "a", tunnel(32)),
		"another algorithm":  request(t, rsaKey, "a", tunnel(32)),
	} {
		if der, err := a.Issue(csr, grant()); !errors.Is(err, ErrRequest) || der != nil {
			t.Errorf("%s: got %d bytes and %v, want %v", what, len(der), err, ErrRequest)
		}
	}
}

func TestGrantsThatAreRefused(t *testing.T) {
	a := newAuthority(t)
	csr := request(t, newKey(t), "a", tunnel(32))
	for what, change := range map[string]func(*Grant){
		"no level":              func(g *Grant) { g.Level = "" },
		"a level in capitals":   func(g *Grant) { g.Level = "Secret" },
		"another's address":     func(g *Grant) { g.URI = "sip:b@handsets.example" },
		"a URI with parameters": func(g *Grant) { g.URI = "sip:a@handsets.example;transport=udp" },
		"no URI":                func(g *Grant) { g.URI = "%" },
		"no inner address":      func(g *Grant) { g.Inner = nil },
		"one twice":             func(g *Grant) { g.Inner = append(g.Inner, g.Inner[0]) },
		"loopback":              func(g *Grant) { g.Inner = []netip.Addr{netip.MustParseAddr("127.0.0.1")} },
		"an end before start":   func(g *Grant) { g.NotAfter = g.NotBefore },
		"outliving the root":    func(g *Grant) { g.NotAfter = now.AddDate(11, 0, 0) },
	} {
		g := grant()
		change(&g)
		if der, err := a.Issue(csr, g); !errors.Is(err, ErrGrant) || der != nil {
			t.Errorf("%s: got %d bytes and %v, want %v", what, len(der), err, ErrGrant)
		}
	}
}

func TestOnlyALabsRootIsTaken(t *testing.T) {
	key, root, err := NewRoot("Test lab", now, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(root, newKey(t)); err == nil {
		t.Error("a root was taken with another's key")
	}
	if _, err := New(root[1:], key); err == nil {
		t.Error("garbage was taken")
	}
	a, err := New(root, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := a.Issue(request(t, key, "a", tunnel(32)), func() Grant { g := grant(); g.NotAfter = now.AddDate(0, 1, 0); return g }())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(leaf, key); err == nil {
		t.Error("a handset's certificate was taken for a root")
	}
	plain := &x509.Certificate{SerialNumber: a.root.SerialNumber, Subject: a.root.Subject, NotBefore: now, NotAfter: now.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, plain, plain, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(der, key); err == nil || !strings.Contains(err.Error(), "not marked as lab") {
		t.Errorf("a real authority's root: %v", err)
	}
}
