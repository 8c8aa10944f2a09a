// Package voicetest is for tests of voice, gateway and their daemons only: a
// throw-away authority whose certificates have the LDevID form, and a way to run
// a test binary in a network namespace of its own, where inner addresses can be
// given to the loopback device. What speaks over them is the real thing.
package voicetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/keystore/client/identity"
)

// Domain is the SIP domain of every certificate made here.
const Domain = "handsets.example"

// GatewayAddr is the gateway's inner address.
func GatewayAddr() netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, 1}) }

// HandsetAddr is the inner address of the n-th handset, n from 1.
func HandsetAddr(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, byte(10 + n)}) }

// Main runs the tests in a fresh network namespace whose loopback device
// carries the inner addresses. Use it as the body of TestMain. Without the
// right to make one it runs them where it is, and Need skips what needs it.
func Main(m *testing.M) {
	const inside = "REMPART_VOICETEST_NETNS"
	if os.Getenv(inside) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Args[0] = os.Args[0]
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		err := cmd.Run()
		var exit *exec.ExitError
		switch {
		case err == nil:
			os.Exit(0)
		case errors.As(err, &exit):
			os.Exit(max(1, exit.ExitCode()))
		}
		os.Exit(m.Run())
	}
	if err := addresses(); err != nil {
		fmt.Fprintln(os.Stderr, "cannot prepare the test's namespace:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// Need skips at a desk, and fails in CI, where the inner addresses are not there.
func Need(t testing.TB) {
	t.Helper()
	ln, err := net.Listen("tcp", netip.AddrPortFrom(GatewayAddr(), 0).String())
	if err != nil {
		proof.Missing(t, "the right to make a network namespace")
		return
	}
	ln.Close()
}

func addresses() error {
	if err := link.SetUp("lo"); err != nil {
		return err
	}
	add := []netip.Addr{GatewayAddr()}
	for n := 1; n <= 6; n++ {
		add = append(add, HandsetAddr(n))
	}
	for _, a := range add {
		if err := link.AddAddr("lo", netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
	}
	return nil
}

// Authority issues certificates of the LDevID form.
type Authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	// Roots holds the authority alone.
	Roots *x509.CertPool
}

// NewAuthority is a fresh authority.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &Authority{key: key, cert: cert, Roots: pool}
}

// PEM is the authority's certificate as the policy carries it.
func (a *Authority) PEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

// Handset issues for a handset: its name, its level, one inner address.
func (a *Authority) Handset(t testing.TB, name, level string, inner netip.Addr) tls.Certificate {
	t.Helper()
	return a.issue(t, name, "sip:"+name+"@"+Domain, nil, level, inner)
}

// Gateway issues for the gateway.
func (a *Authority) Gateway(t testing.TB, level string) tls.Certificate {
	t.Helper()
	return a.issue(t, "gateway", "sip:"+Domain, []string{Domain}, level, GatewayAddr())
}

func (a *Authority) issue(t testing.TB, name, uri string, dns []string, level string, inner netip.Addr) tls.Certificate {
	t.Helper()
	key := newKey(t)
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	var tunnel [32]byte
	if _, err := rand.Read(tunnel[:]); err != nil {
		t.Fatal(err)
	}
	levelDER, err := asn1.MarshalWithParams(level, "utf8")
	if err != nil {
		t.Fatal(err)
	}
	tunnelDER, err := asn1.Marshal(tunnel[:])
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{u}, DNSNames: dns, IPAddresses: []net.IP{inner.AsSlice()},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		ExtraExtensions: []pkix.Extension{
			{Id: identity.OIDLevel, Value: levelDER}, {Id: identity.OIDTunnelKey, Value: tunnelDER}}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// CertPEM is the leaf of a certificate as an enrolment file carries it.
func CertPEM(c tls.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
