// Package identity reads who a device is from its LDevID certificate (IEEE 802.1AR): name, SIP address, level, inner
// addresses and tunnel key are all in that one signed document, so there is no second reader of the same facts.
package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// The extensions stand under 2.999, the arc that ISO keeps for examples; a vendor puts its own arc here.
var (
	OIDLevel     = asn1.ObjectIdentifier{2, 999, 7371, 1} // UTF8String: the level the device is certified for
	OIDTunnelKey = asn1.ObjectIdentifier{2, 999, 7371, 2} // OCTET STRING of 32 bytes: WireGuard public key (X25519, RFC 7748)
	OIDLab       = asn1.ObjectIdentifier{2, 999, 7371, 3} // NULL: issued by a lab authority, worth nothing outside
)

// Reasons that a caller branches on.
var (
	ErrAuthority = errors.New("certificate is not of our device authority")
	ErrMalformed = errors.New("certificate does not have the form of an LDevID")
)

// Identity is what a certificate of the device authority says about a device.
type Identity struct {
	Name      string       // "a": lower-case letters, digits and hyphens, at most 32
	URI       string       // "sip:a@handsets.example"; a gateway has "sip:handsets.example"
	Level     string       // certified level, a name from the policy
	Inner     []netip.Addr // addresses inside the tunnel
	TunnelKey [32]byte     // WireGuard public key
	Lab       bool         // issued by a lab authority
}

// IsGateway tells whether the identity is a domain's own, not a user's.
func (id Identity) IsGateway() bool { return !strings.Contains(id.URI, "@") }

// Domain is the SIP domain of the identity.
func (id Identity) Domain() string {
	rest := strings.TrimPrefix(id.URI, "sip:")
	if _, domain, ok := strings.Cut(rest, "@"); ok {
		return domain
	}
	return rest
}

// ParseIdentity reads c, which must already be verified. Every field must be there exactly once and well formed; there is no
// default. Errors wrap ErrMalformed.
func ParseIdentity(c *x509.Certificate) (Identity, error) {
	var id Identity
	bad := func(format string, args ...any) (Identity, error) {
		return Identity{}, fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
	}
	pub, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok || (pub.Curve != elliptic.P256() && pub.Curve != elliptic.P384()) {
		return bad("the key is not ECDSA on P-256 or P-384")
	}
	id.Name = c.Subject.CommonName
	if !ValidName(id.Name) {
		return bad("common name %q is not a device name", clip(id.Name))
	}
	if len(c.URIs) != 1 || len(c.EmailAddresses) != 0 {
		return bad("it has %d URIs and %d mail addresses, want one SIP URI alone", len(c.URIs), len(c.EmailAddresses))
	}
	id.URI = c.URIs[0].String()
	user, domain, isUser := strings.Cut(strings.TrimPrefix(id.URI, "sip:"), "@")
	if !isUser {
		user, domain = id.Name, user
	}
	// Rebuilt and compared: only the one canonical spelling passes (no parameters, ports, escapes or upper case).
	rebuilt := "sip:" + user + "@" + domain
	if !isUser {
		rebuilt = "sip:" + domain
	}
	if user != id.Name || !ValidDomain(domain) || id.URI != rebuilt {
		return bad("SIP URI %q is not that of %q", clip(id.URI), id.Name)
	}
	for _, ip := range c.IPAddresses {
		a, ok := netip.AddrFromSlice(ip)
		if !ok {
			return bad("an inner address has %d bytes", len(ip))
		}
		a = a.Unmap()
		if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
			return bad("inner address %s is not a unicast address of a network", a)
		}
		for _, b := range id.Inner {
			if a == b {
				return bad("inner address %s is given twice", a)
			}
		}
		id.Inner = append(id.Inner, a)
	}
	if n := len(id.Inner); n < 1 || n > 4 {
		return bad("it has %d inner addresses, want 1 to 4", n)
	}
	var seen []asn1.ObjectIdentifier
	for _, e := range c.Extensions {
		for _, s := range seen {
			if s.Equal(e.Id) {
				return bad("extension %s is given twice", e.Id)
			}
		}
		seen = append(seen, e.Id)
		switch {
		case e.Id.Equal(OIDLevel):
			if rest, err := asn1.UnmarshalWithParams(e.Value, &id.Level, "utf8"); err != nil || len(rest) != 0 || !ValidName(id.Level) {
				return bad("the level extension is not a level's name")
			}
		case e.Id.Equal(OIDTunnelKey):
			var key []byte
			if rest, err := asn1.Unmarshal(e.Value, &key); err != nil || len(rest) != 0 || len(key) != 32 {
				return bad("the tunnel key extension is not a 32-byte string")
			}
			copy(id.TunnelKey[:], key)
		case e.Id.Equal(OIDLab):
			if !bytes.Equal(e.Value, asn1.NullBytes) {
				return bad("the lab extension is not empty")
			}
			id.Lab = true
		}
	}
	if id.Level == "" {
		return bad("it has no level")
	}
	if id.TunnelKey == [32]byte{} {
		return bad("it has no tunnel key")
	}
	return id, nil
}

// Verify checks that chain (DER, leaf first, at most 4) leads to one of roots at now, for both TLS uses, and reads the leaf.
// Errors wrap ErrAuthority or ErrMalformed.
func Verify(chain [][]byte, roots *x509.CertPool, now time.Time) (Identity, *x509.Certificate, error) {
	if len(chain) == 0 || len(chain) > 4 {
		return Identity{}, nil, fmt.Errorf("%w: it has %d certificates, want 1 to 4", ErrMalformed, len(chain))
	}
	var certs []*x509.Certificate
	for i, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return Identity{}, nil, fmt.Errorf("%w: certificate %d: %w", ErrMalformed, i, err)
		}
		certs = append(certs, c)
	}
	inter := x509.NewCertPool()
	for _, c := range certs[1:] {
		inter.AddCert(c)
	}
	leaf := certs[0]
	if leaf.IsCA {
		return Identity{}, nil, fmt.Errorf("%w: the leaf is an authority itself", ErrMalformed)
	}
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
			return Identity{}, nil, fmt.Errorf("%w: %w", ErrAuthority, err)
		}
	}
	id, err := ParseIdentity(leaf)
	if err != nil {
		return Identity{}, nil, err
	}
	return id, leaf, nil
}

// ValidName tells whether s is a device, level or app name: 1 to 32 of a-z, 0-9 and hyphen, a letter first, no hyphen last.
func ValidName(s string) bool {
	if len(s) < 1 || len(s) > 32 || s[0] < 'a' || s[0] > 'z' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return true
}

// ValidDomain tells whether s is a lower-case ASCII domain of at least two labels (RFC 1123), not an address.
func ValidDomain(s string) bool {
	labels := strings.Split(s, ".")
	if len(s) > 253 || len(labels) < 2 {
		return false
	}
	for i, l := range labels {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return false
		}
		for j := range len(l) {
			if c := l[j]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
				return false
			}
		}
		if i == len(labels)-1 && l[0] >= '0' && l[0] <= '9' {
			return false
		}
	}
	return true
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
