package server

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/journal"
	"rempart/internal/secret"
	"rempart/internal/sock"
	"rempart/internal/sock/httpsock"
	"rempart/keystore/client"
	"rempart/keystore/internal/phonetest"
	"rempart/keystore/internal/tpmtest"
)

// phone is a handset under test, and the keystore that runs on it.
type phone struct {
	*phonetest.Phone
	t      *testing.T
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

// newPhone returns a phone that is off, with an image of serial 3.
func newPhone(t *testing.T, machine *tpmtest.TPM) *phone {
	t.Helper()
	made, err := phonetest.New(t.TempDir(), machine)
	if err != nil {
		t.Fatal(err)
	}
	p := &phone{Phone: made, t: t, log: &lockedBuffer{}}
	t.Cleanup(p.cut)
	return p
}

func (p *phone) build(serial int, programs ...string) {
	p.t.Helper()
	if err := p.Build(serial, programs...); err != nil {
		p.t.Fatal(err)
	}
}

func (p *phone) powerOn() *os.File {
	p.t.Helper()
	stream, err := p.PowerOn()
	if err != nil {
		p.t.Fatal(err)
	}
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
	s, err := New(Config{TPM: stream, State: p.State, Image: p.Image, Journal: journal.New(p.log, "keyd")})
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
	p.TPM.Off()
}

// cut takes the power away from everything.
func (p *phone) cut() {
	p.TPM.Off()
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
	chain, err := p.Certify(e, edit)
	if err != nil {
		p.t.Fatal(err)
	}
	return chain
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
