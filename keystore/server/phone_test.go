package server

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/boot/manifest"
	"rempart/internal/journal"
	"rempart/internal/secret"
	"rempart/internal/sock"
	"rempart/internal/sock/httpsock"
	"rempart/keystore/client"
	"rempart/keystore/client/identity"
	"rempart/keystore/extend"
	"rempart/keystore/internal/tpmtest"
	"rempart/keystore/policy"
)

// phone is a handset as the keystore sees it: a TPM, a state folder, an image
// with its approval, and the vendor's keys. The test plays firmware and init.
type phone struct {
	t         *testing.T
	tpm       *tpmtest.TPM
	state     string
	imageDir  string
	programs  []string // of the image, measured into PCR 13
	imageKey  *ecdsa.PrivateKey
	policyKey *ecdsa.PrivateKey
	authority *x509.Certificate
	caKey     *ecdsa.PrivateKey

	server *Server
	log    *lockedBuffer
	stream *os.File // a copy of the TPM's stream
}

// lockedBuffer collects the journal.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newPhone returns a phone that is off, with an image of serial 3.
func newPhone(t *testing.T, machine *tpmtest.TPM) *phone {
	t.Helper()
	p := &phone{
		t: t, tpm: machine, state: t.TempDir(), imageDir: t.TempDir(),
		imageKey: newKey(t), policyKey: newKey(t), caKey: newKey(t),
		log: &lockedBuffer{},
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &p.caKey.PublicKey, p.caKey)
	if err != nil {
		t.Fatal(err)
	}
	if p.authority, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	p.build(3, "egressd 1", "keyd 1", "voiced 1")
	t.Cleanup(p.cut)
	return p
}

func (p *phone) write(name string, data []byte) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.imageDir, name), data, 0o644); err != nil {
		p.t.Fatal(err)
	}
}

func chain(values ...string) (pcr [32]byte) {
	for _, v := range values {
		digest := sha256.Sum256([]byte(v))
		pcr = sha256.Sum256(append(pcr[:], digest[:]...))
	}
	return pcr
}

// build writes an image: policy, trust anchor and approval.
func (p *phone) build(serial int, programs ...string) {
	p.t.Helper()
	p.programs = programs
	publicPEM := func(key *ecdsa.PrivateKey) string {
		text, err := manifest.MarshalPublicKey(&key.PublicKey)
		if err != nil {
			p.t.Fatal(err)
		}
		return text
	}
	quote := func(text string) string {
		b, err := json.Marshal(text)
		if err != nil {
			p.t.Fatal(err)
		}
		return string(b)
	}
	document := strings.NewReplacer(
		"SERIAL", strconv.Itoa(serial),
		"IMAGE", quote(publicPEM(p.imageKey)),
		"POLICY", quote(publicPEM(p.policyKey)),
		"AUTHORITY", quote(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.authority.Raw}))),
	).Replace(`{
  "version": 1, "serial": SERIAL, "role": "handset", "name": "example", "domain": "handsets.example",
  "levels": ["public", "restricted"],
  "apps": [{"name": "voiced", "reads": "restricted", "writes": "restricted"}],
  "networks": [{"name": "wg0", "accredited": "restricted", "inner": ["10.77.0.0/16", "fd77::/64"]}],
  "gateways": [{"name": "gateway", "addresses": ["203.0.113.1"],
    "tunnel_key": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "inner": ["10.77.0.1", "fd77::1"],
    "services": [{"protocol": "udp", "port": 51820, "purpose": "tunnel"}]}],
  "keys": {"image": [IMAGE], "policy": [POLICY], "authority": [AUTHORITY], "gateway": []}
}
`)
	bundle, err := manifest.Sign([]byte(document), p.policyKey)
	if err != nil {
		p.t.Fatal(err)
	}
	p.write(manifest.PolicyFile, bundle)
	p.write(manifest.AnchorFile, []byte(publicPEM(p.policyKey)))

	values := map[int][32]byte{11: chain("init", "root"), 13: chain(programs...)}
	approval := &manifest.Approval{Version: manifest.ApprovalVersion, Serial: serial}
	for _, ref := range []string{policy.RefBoot, policy.RefUser} {
		pcrs := map[int][32]byte{11: values[11], 13: values[13]}
		if ref == policy.RefBoot {
			pcrs[15] = [32]byte{}
		}
		inner, err := policy.Inner(pcrs, serial)
		if err != nil {
			p.t.Fatal(err)
		}
		approved, err := manifest.Approve(ref, pcrs, inner, p.imageKey)
		if err != nil {
			p.t.Fatal(err)
		}
		approval.Approved = append(approval.Approved, approved)
	}
	data, err := approval.Marshal()
	if err != nil {
		p.t.Fatal(err)
	}
	p.write(manifest.ApprovalFile, data)
}

// powerOn starts the TPM and measures, as firmware and init do.
func (p *phone) powerOn() *os.File {
	p.t.Helper()
	stream := p.tpm.On()
	fd, err := unix.Dup(int(stream.Fd()))
	if err != nil {
		p.t.Fatal(err)
	}
	door, err := extend.Open(os.NewFile(uintptr(fd), "tpm"))
	if err != nil {
		p.t.Fatal(err)
	}
	defer door.Close()
	if err := door.Startup(); err != nil {
		p.t.Fatal(err)
	}
	measure := func(pcr int, words ...string) {
		for _, word := range words {
			if err := door.Extend(pcr, sha256.Sum256([]byte(word))); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	measure(11, "init", "root")
	measure(13, p.programs...)
	return stream
}

// boot powers on and starts the keystore.
func (p *phone) boot() *Server {
	p.t.Helper()
	stream := p.powerOn()
	fd, err := unix.Dup(int(stream.Fd()))
	if err != nil {
		p.t.Fatal(err)
	}
	if p.stream != nil {
		p.stream.Close()
	}
	p.stream = os.NewFile(uintptr(fd), "tpm")
	s, err := New(Config{TPM: stream, State: p.state, Image: p.imageDir, Journal: journal.New(p.log, "keyd")})
	if err != nil {
		p.t.Fatal(err)
	}
	p.server = s
	return s
}

// halt stops the keystore cleanly and powers off.
func (p *phone) halt() {
	p.t.Helper()
	if err := p.server.stop(); err != nil {
		p.t.Fatal(err)
	}
	p.server = nil
	p.tpm.Off()
}

// cut takes the power away from everything.
func (p *phone) cut() {
	p.tpm.Off()
	if p.stream != nil {
		p.stream.Close()
		p.stream = nil
	}
	if p.server != nil {
		p.server.device.Close()
		p.server = nil
	}
}

// as returns a client whose requests come from the named caller.
func (p *phone) as(name string) *client.Client {
	p.t.Helper()
	who, ok := callers()[name]
	if !ok {
		p.t.Fatalf("no caller %q", name)
	}
	return p.from(sock.Peer{PID: 2, UID: who.uid, Cgroup: who.cgroup})
}

func (p *phone) from(peer sock.Peer) *client.Client {
	p.t.Helper()
	return client.New(listen(p.t, peer, p.server.Handler()))
}

// listen serves h on a socket of its own, every request as peer's.
func listen(t *testing.T, peer sock.Peer, h http.Handler) (path string) {
	t.Helper()
	path, listener := socket(t)
	go serveAs(peer, h, listener)
	return path
}

// socket returns a listening socket and where it is.
func socket(t *testing.T) (path string, listener *os.File) {
	t.Helper()
	dir, err := os.MkdirTemp("", "keyd") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	defer ln.Close()
	if listener, err = ln.File(); err != nil {
		t.Fatal(err)
	}
	return path, listener
}

// serveAs answers on listener, every request as peer's.
func serveAs(peer sock.Peer, h http.Handler, listener *os.File) error {
	ln, err := net.FileListener(listener)
	if err != nil {
		return err
	}
	srv := &http.Server{
		Handler:     http.MaxBytesHandler(h, httpsock.MaxBody),
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context { return httpsock.WithPeer(ctx, peer) },
	}
	return srv.Serve(ln)
}

// sha256Opts are crypto.SHA256 as SignerOpts.
type sha256Opts struct{}

func (sha256Opts) HashFunc() crypto.Hash { return crypto.SHA256 }

func timeout(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}

func pin(text string) *secret.Bytes { return secret.New([]byte(text)) }

func (p *phone) enrol(text string) client.Enrolment {
	p.t.Helper()
	e, err := p.as("shell").Enrol(p.t.Context(), "a", pin(text))
	if err != nil {
		p.t.Fatal(err)
	}
	return e
}

func (p *phone) unlock(text string) client.Status {
	p.t.Helper()
	s, err := p.as("shell").Unlock(p.t.Context(), pin(text))
	if err != nil {
		p.t.Fatal(err)
	}
	if s.State != client.Capped {
		p.t.Fatalf("state %s after unlock: %s", s.State, s.Reason)
	}
	return s
}

func (p *phone) status() client.Status {
	p.t.Helper()
	s, err := p.as("shell").Status(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

// certify is the device authority.
func (p *phone) certify(e client.Enrolment, edit func(*x509.Certificate)) [][]byte {
	p.t.Helper()
	csr, err := x509.ParseCertificateRequest(e.CSR)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := csr.CheckSignature(); err != nil {
		p.t.Fatalf("request: %v", err)
	}
	level, err := asn1.MarshalWithParams("restricted", "utf8")
	if err != nil {
		p.t.Fatal(err)
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
	edit(template)
	der, err := x509.CreateCertificate(rand.Reader, template, p.authority, template.PublicKey, p.caKey)
	if err != nil {
		p.t.Fatal(err)
	}
	return [][]byte{der}
}

// files returns every byte under dir.
func files(t *testing.T, dir string) []byte {
	t.Helper()
	var all []byte
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		data, err := io.ReadAll(f)
		all = append(all, data...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
