package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"
)

type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab authority"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return authority{key, cert, pool}
}

func must(v any, params string) []byte {
	b, err := asn1.MarshalWithParams(v, params)
	if err != nil {
		panic(err)
	}
	return b
}

// leaf issues a good certificate after edit had its way with the template.
func (a authority) leaf(t *testing.T, edit func(*x509.Certificate)) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tunnel := make([]byte, 32)
	tunnel[0] = 9
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "a"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs: []*url.URL{{Scheme: "sip", Opaque: "a@handsets.example"}}, IPAddresses: []net.IP{net.ParseIP("10.77.0.11"), net.ParseIP("fd77::11")},
		ExtraExtensions: []pkix.Extension{{Id: OIDLevel, Value: must("restricted", "utf8")}, {Id: OIDTunnelKey, Value: must(tunnel, "")}, {Id: OIDLab, Value: asn1.NullBytes}},
	}
	edit(tmpl)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestGoodCertificate(t *testing.T) {
	a := newAuthority(t)
	id, cert, err := Verify([][]byte{a.leaf(t, func(*x509.Certificate) {}), a.cert.Raw}, a.pool, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if id.Name != "a" || id.URI != "sip:a@handsets.example" || id.Level != "restricted" || !id.Lab || id.IsGateway() || id.Domain() != "handsets.example" ||
		len(id.Inner) != 2 || id.Inner[0].String() != "10.77.0.11" || id.TunnelKey[0] != 9 || cert.SerialNumber.Int64() != 2 {
		t.Errorf("read %+v", id)
	}
	gw := a.leaf(t, func(c *x509.Certificate) {
		c.Subject.CommonName = "gateway"
		c.URIs = []*url.URL{{Scheme: "sip", Opaque: "handsets.example"}}
	})
	if id, _, err := Verify([][]byte{gw}, a.pool, time.Now()); err != nil || !id.IsGateway() || id.Domain() != "handsets.example" {
		t.Errorf("gateway: %+v, %v", id, err)
	}
}

func TestRefusals(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	sip := func(s string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "sip", Opaque: s}} }
	}
	ext := func(i int, v []byte) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtraExtensions[i].Value = v }
	}
	for name, c := range map[string]struct {
		edit func(*x509.Certificate)
		want error
		text string
	}{
		"expired":             {func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, ErrAuthority, "expired"},
		"for servers only":    {func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }, ErrAuthority, ""},
		"another name's URI":  {sip("b@handsets.example"), ErrMalformed, "is not that of"},
		"two at signs":        {sip("a@evil.example@handsets.example"), ErrMalformed, "SIP URI"},
		"upper case":          {sip("a@Handsets.example"), ErrMalformed, "SIP URI"},
		"port":                {sip("a@handsets.example:5061"), ErrMalformed, "SIP URI"},
		"parameter":           {sip("a@handsets.example;x=y"), ErrMalformed, "SIP URI"},
		"literal address":     {sip("a@127.0.0.1"), ErrMalformed, "SIP URI"},
		"look-alike":          {func(c *x509.Certificate) { c.Subject.CommonName = "\u0430" }, ErrMalformed, "not a device name"},
		"no URI":              {func(c *x509.Certificate) { c.URIs = nil }, ErrMalformed, "0 URIs"},
		"mail address too":    {func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b.example"} }, ErrMalformed, "mail"},
		"no inner address":    {func(c *x509.Certificate) { c.IPAddresses = nil }, ErrMalformed, "0 inner"},
		"multicast address":   {func(c *x509.Certificate) { c.IPAddresses[0] = net.ParseIP("224.0.0.1") }, ErrMalformed, "224.0.0.1"},
		"address twice":       {func(c *x509.Certificate) { c.IPAddresses[1] = c.IPAddresses[0] }, ErrMalformed, "twice"},
		"no level":            {func(c *x509.Certificate) { c.ExtraExtensions = c.ExtraExtensions[1:] }, ErrMalformed, "no level"},
		"level of wrong type": {ext(0, must(7, "")), ErrMalformed, "level"},
		"short tunnel key":    {ext(1, must(make([]byte, 31), "")), ErrMalformed, "tunnel key"},
		"zero tunnel key":     {ext(1, must(make([]byte, 32), "")), ErrMalformed, "no tunnel key"},
		"trailing bytes":      {ext(1, append(must(make([]byte, 32), ""), 0)), ErrMalformed, "tunnel key"},
		"authority as leaf":   {func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, ErrMalformed, "authority itself"},
	} {
		_, _, err := Verify([][]byte{a.leaf(t, c.edit)}, a.pool, time.Now())
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v; want %v with %q", name, err, c.want, c.text)
		}
	}
	if _, _, err := Verify([][]byte{a.leaf(t, func(*x509.Certificate) {})}, other.pool, time.Now()); !errors.Is(err, ErrAuthority) {
		t.Errorf("another authority: %v", err)
	}
	for _, chain := range [][][]byte{nil, {{1, 2}}, make([][]byte, 5)} {
		if _, _, err := Verify(chain, a.pool, time.Now()); !errors.Is(err, ErrMalformed) {
			t.Errorf("chain of %d: %v", len(chain), err)
		}
	}
}

func TestNames(t *testing.T) {
	for s, want := range map[string]bool{"a": true, "b2-x": true, "": false, "A": false, "2a": false, "a-": false, "a.b": false, "é": false, strings.Repeat("a", 33): false} {
		if ValidName(s) != want {
			t.Errorf("ValidName(%q) = %v", s, !want)
		}
	}
	for s, want := range map[string]bool{"handsets.example": true, "a.b-c.d": true, "example": false, "a..b": false, "-a.b": false, "a.1": false, "A.b": false, "a.b.": false} {
		if ValidDomain(s) != want {
			t.Errorf("ValidDomain(%q) = %v", s, !want)
		}
	}
}
