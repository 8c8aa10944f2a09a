// Package authority is the lab's device authority: it certifies handsets and
// gateways of a lab and nothing else. Every certificate it issues, and its own
// root, carries the lab mark (2.999.7371.3); its key is a file. It never ships
// in a handset: a vendor's authority is a process or a token of his own, which
// issues the same certificates (package identity reads them).
package authority

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"rempart/keystore/client/identity"
)

// Authority issues LDevID certificates (IEEE 802.1AR).
type Authority struct {
	root *x509.Certificate
	key  crypto.Signer
}

// Grant is what the authority certifies about a device; the request's own
// wishes beside its keys count for nothing.
type Grant struct {
	Name      string       // must be the name in the request
	URI       string       // "sip:a@handsets.example", a gateway has "sip:handsets.example"
	Level     string       // a level of the policy
	Inner     []netip.Addr // addresses inside the tunnel
	NotBefore time.Time
	NotAfter  time.Time
}

// Why a request is refused.
var (
	ErrRequest = errors.New("certificate request is not acceptable")
	ErrGrant   = errors.New("grant is not acceptable")
)

// labMark is the extension that makes a certificate worthless outside a lab.
func labMark() pkix.Extension {
	return pkix.Extension{Id: identity.OIDLab, Value: asn1.NullBytes}
}

// NewRoot makes an authority: an ECDSA P-256 key and its self-signed root,
// marked as lab, valid from now for years. It returns the root as DER.
func NewRoot(name string, now time.Time, years int) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make the authority's key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(years, 0, 0), // clocks differ
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SignatureAlgorithm: x509.ECDSAWithSHA256,
		ExtraExtensions: []pkix.Extension{labMark()},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make the authority's root: %w", err)
	}
	return key, der, nil
}

// New returns the authority with that root (DER) and its key.
func New(root []byte, key crypto.Signer) (*Authority, error) {
	c, err := x509.ParseCertificate(root)
	if err != nil {
		return nil, fmt.Errorf("cannot read the authority's root: %w", err)
	}
	public, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok || !c.IsCA || !public.Equal(key.Public()) {
		return nil, errors.New("cannot use the authority's root: it is no authority of that key")
	}
	if !slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(identity.OIDLab) }) {
		return nil, errors.New("cannot use the authority's root: it is not marked as lab, and this is the lab's authority")
	}
	return &Authority{c, key}, nil
}

// newSerial returns 159 random bits (RFC 5280 §4.1.2.2: at most 20 octets,
// positive).
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 159))
	if err != nil {
		return nil, fmt.Errorf("cannot make a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// Root returns the root certificate, DER.
func (a *Authority) Root() []byte { return bytes.Clone(a.root.Raw) }

// Issue certifies the two keys of a request (PKCS #10, DER), an ECDSA P-256
// identity key and a tunnel key, as the device of the grant. The request must
// be signed by its identity key and carry the granted name; the tunnel key is
// its one extension. Errors wrap ErrRequest or ErrGrant.
func (a *Authority) Issue(csr []byte, g Grant) ([]byte, error) {
	request, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: it is not signed by its own key: %w", ErrRequest, err)
	}
	public, ok := request.PublicKey.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: its key is not ECDSA on P-256", ErrRequest)
	}
	if request.Subject.CommonName != g.Name {
		return nil, fmt.Errorf("%w: it is of %.40q, the grant of %q", ErrRequest, request.Subject.CommonName, g.Name)
	}
	tunnel, err := tunnelKey(request)
	if err != nil {
		return nil, err
	}
	template, err := a.template(g, tunnel)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.root, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("cannot issue the certificate of %s: %w", g.Name, err)
	}
	// What was issued is what every reader will see, or it is not handed out.
	roots := x509.NewCertPool()
	roots.AddCert(a.root)
	id, _, err := identity.Verify([][]byte{der}, roots, g.NotBefore.Add(time.Second))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGrant, err)
	}
	if id.Name != g.Name || id.URI != g.URI || id.Level != g.Level || !slices.Equal(id.Inner, g.Inner) || !id.Lab {
		return nil, fmt.Errorf("%w: it reads back as %+v", ErrGrant, id)
	}
	return der, nil
}

// tunnelKey returns the extension of a request that holds its WireGuard key.
func tunnelKey(request *x509.CertificateRequest) (pkix.Extension, error) {
	var found *pkix.Extension
	for _, e := range request.Extensions {
		if !e.Id.Equal(identity.OIDTunnelKey) || found != nil {
			return pkix.Extension{}, fmt.Errorf("%w: it asks for extension %s, want one tunnel key alone", ErrRequest, e.Id)
		}
		found = &e
	}
	if found == nil {
		return pkix.Extension{}, fmt.Errorf("%w: it has no tunnel key", ErrRequest)
	}
	var key []byte
	if rest, err := asn1.Unmarshal(found.Value, &key); err != nil || len(rest) != 0 || len(key) != 32 || bytes.Equal(key, make([]byte, 32)) {
		return pkix.Extension{}, fmt.Errorf("%w: its tunnel key is not 32 bytes", ErrRequest)
	}
	return pkix.Extension{Id: identity.OIDTunnelKey, Value: found.Value}, nil
}

// template is the certificate of a grant.
func (a *Authority) template(g Grant, tunnel pkix.Extension) (*x509.Certificate, error) {
	uri, err := url.Parse(g.URI)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGrant, err)
	}
	if !g.NotBefore.Before(g.NotAfter) || g.NotAfter.After(a.root.NotAfter) {
		return nil, fmt.Errorf("%w: it is not inside the life of the authority", ErrGrant)
	}
	level, err := asn1.MarshalWithParams(g.Level, "utf8")
	if err != nil {
		return nil, fmt.Errorf("%w: level: %w", ErrGrant, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: g.Name}, NotBefore: g.NotBefore, NotAfter: g.NotAfter,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, SignatureAlgorithm: x509.ECDSAWithSHA256,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{uri},
		ExtraExtensions: []pkix.Extension{
			{Id: identity.OIDLevel, Value: level}, tunnel, labMark(),
		},
	}
	// A gateway is asked for by its domain, in TLS too.
	if domain, ok := strings.CutPrefix(g.URI, "sip:"); ok && !strings.Contains(domain, "@") {
		c.DNSNames = []string{domain}
	}
	for _, addr := range g.Inner {
		c.IPAddresses = append(c.IPAddresses, net.IP(addr.AsSlice()))
	}
	return c, nil
}
