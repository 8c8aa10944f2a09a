package main

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rempart/internal/journal"
	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/internal/run"
	"rempart/internal/sandbox"
	"rempart/internal/secret"
	"rempart/internal/sock"
	"rempart/internal/sock/httpsock"
	"rempart/internal/wish"
	"rempart/vpn/egress"
	"rempart/vpn/tunnel"
	"rempart/vpn/wireguard"
)

// TestMain is also the daemon: sandbox.Start runs this binary again, with no
// capability, as the process under test.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "tunneld" {
		run.Main("tunneld", child)
	}
	os.Exit(m.Run())
}

// story is what the parent tells its child, in place of a policy and a keyd.
type story struct {
	Dir      string
	Key      string
	Peer     string
	Endpoint []netip.AddrPort
	Inner    netip.Addr
}

func child(ctx context.Context, j *journal.Journal) error {
	if err := sandbox.Enter(sandbox.Profile{Name: "tunneld"}); err != nil {
		return err
	}
	listener, err := sock.Listener("tunneld")
	if err != nil {
		return err
	}
	tun, err := sock.Inherited("tun")
	if err != nil {
		return err
	}
	var s story
	if err := json.Unmarshal([]byte(os.Args[2]), &s); err != nil {
		return err
	}
	cfg := s.config()
	return serve(ctx, cfg, deps{
		listener: listener,
		gate:     &gate{path: filepath.Join(s.Dir, "egressd.sock"), digests: cfg.digests},
		keys:     s,
		wish: func(ctx context.Context, p []netip.Prefix) error {
			return wish.Send(ctx, filepath.Join(s.Dir, "init.sock"), p)
		},
		open:    func(key *secret.Bytes) (device, error) { return wireguard.Open(tun, key, j) },
		journal: j,
	})
}

func (s story) table() egress.Policy {
	var p egress.Policy
	for _, e := range s.Endpoint {
		p.Classes = append(p.Classes, egress.Class{Gateway: "north", Addr: e.Addr(), Proto: egress.UDP, Port: e.Port(),
			Purpose: egress.Tunnel, Cgroup: 1})
	}
	return p
}

func (s story) config() config {
	c := config{inner: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/24")},
		digests: map[string][32]byte{"": egress.DenyAll().Digest(), "north": s.table().Digest()}}
	key, _ := hex.DecodeString(s.Peer)
	c.keys = map[string]wireguard.Key{"north": wireguard.Key(key)}
	for _, e := range s.Endpoint {
		c.plan.Targets = append(c.plan.Targets, tunnel.Target{Gateway: "north", Endpoint: e})
	}
	return c
}

// Fetch stands for keyd.
func (s story) Fetch(context.Context) (credentials, error) {
	raw, err := hex.DecodeString(s.Key)
	if err != nil {
		return credentials{}, err
	}
	private, err := ecdh.X25519().NewPrivateKey(raw)
	if err != nil {
		return credentials{}, err
	}
	return credentials{key: secret.New(raw), public: [32]byte(private.PublicKey().Bytes()), inner: []netip.Addr{s.Inner}}, nil
}

// phone is the part of a handset that tunneld needs, around a real process.
type phone struct {
	t          *testing.T
	red, black *link.NS
	far, air   *link.NS // the gateway's red and black
	tun        *os.File
	gateway    *wireguard.Tunnel
	story      story
	gate       *egressd
	listener   *net.UnixListener
	cgroup     *os.File
	binary     string
	journal    *os.File
	process    *os.Process
}

func newPhone(t *testing.T) *phone {
	t.Helper()
	proof.NeedRoot(t)
	dir, err := os.MkdirTemp("", "tunneld")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &phone{t: t, gate: &egressd{}}
	p.check(os.Chmod(dir, 0o755)) // the daemon's uid must reach its binary and sockets
	for _, ns := range []**link.NS{&p.red, &p.black, &p.far, &p.air} {
		*ns, err = link.Create("")
		p.check(err)
		t.Cleanup(func() { (*ns).Close() })
	}
	p.check(link.AddVeth(link.Port{Name: "wwan0", NS: p.black}, link.Port{Name: "wwan0", NS: p.air}))
	p.address(p.black, "wwan0", "203.0.113.11/24")
	p.address(p.air, "wwan0", "203.0.113.1/24")
	p.tun = p.openTUN(p.red)
	mine, theirs := p.newKey(), p.newKey()
	p.story = story{Dir: dir, Key: hex.EncodeToString(mine.Bytes()), Peer: hex.EncodeToString(theirs.PublicKey().Bytes()),
		Endpoint: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:51820")}, Inner: netip.MustParseAddr("10.77.0.11")}
	far := p.openTUN(p.far)
	p.address(p.far, "wg0", "10.77.0.1/24")
	p.gateway, err = wireguard.Open(far, secret.New(theirs.Bytes()), nil)
	p.check(err)
	t.Cleanup(func() { p.gateway.Close() })
	p.answer(wireguard.Key(mine.PublicKey().Bytes()))
	p.gate.table = p.story.table()
	p.gate.serve(t, filepath.Join(dir, "egressd.sock"))
	t.Cleanup(p.gate.die)
	p.serveInit(filepath.Join(dir, "init.sock"))
	p.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "tunneld.sock")})
	p.check(err)
	t.Cleanup(func() { p.listener.Close() })
	p.build(filepath.Join(dir, "tunneld"))
	p.makeCgroup()
	p.journal, err = os.Create(filepath.Join(dir, "journal"))
	p.check(err)
	t.Cleanup(func() { p.journal.Close() })
	return p
}

func (p *phone) check(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *phone) newKey() *ecdh.PrivateKey {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	p.check(err)
	return key
}

func (p *phone) address(ns *link.NS, device, prefix string) {
	p.t.Helper()
	p.check(ns.Do(func() error {
		if err := link.AddAddr(device, netip.MustParsePrefix(prefix)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		return link.SetUp(device)
	}))
}

func (p *phone) openTUN(ns *link.NS) (f *os.File) {
	p.t.Helper()
	p.check(ns.Do(func() (err error) {
		if f, err = link.OpenTUN("wg0"); err != nil {
			return err
		}
		return link.SetMTU("wg0", wireguard.MTU)
	}))
	p.t.Cleanup(func() { f.Close() })
	return f
}

// answer lets the gateway serve the handset; no key, and it is silent.
func (p *phone) answer(handset ...wireguard.Key) {
	p.t.Helper()
	var peers []wireguard.Peer
	for _, k := range handset {
		peers = append(peers, wireguard.Peer{Key: k, Inner: wireguard.Hosts([]netip.Addr{p.story.Inner})})
	}
	p.check(p.air.Do(func() error { return p.gateway.Listen(51820, peers) }))
}

// serveInit grants wishes as init does.
func (p *phone) serveInit(path string) {
	ln, err := net.Listen("unix", path)
	p.check(err)
	p.check(os.Chmod(path, 0o666))
	p.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wish.Serve(c, func(prefixes []netip.Prefix) error {
				return p.red.Do(func() error {
					for _, a := range prefixes {
						if err := link.AddAddr("wg0", a); err != nil && !errors.Is(err, os.ErrExist) {
							return err
						}
					}
					return link.SetUp("wg0")
				})
			})
		}
	}()
}

// build makes this test binary again the way the image's programs are made:
// without cgo, whose threads come by a system call that the sandbox refuses.
func (p *phone) build(to string) {
	p.t.Helper()
	proof.Need(p.t, "go")
	cmd := exec.CommandContext(p.t.Context(), "go", "test", "-c", "-o", to, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("cannot build the daemon: %v\n%s", err, text)
	}
	p.check(os.Chmod(to, 0o755))
	p.binary = to
}

func (p *phone) makeCgroup() {
	text, err := os.ReadFile("/proc/self/mountinfo")
	p.check(err)
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		if fields := strings.Fields(before); strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			dir, err := os.MkdirTemp(fields[4], "tunneld-test")
			if err != nil {
				continue
			}
			p.cgroup, err = os.Open(dir)
			p.check(err)
			p.t.Cleanup(func() {
				p.cgroup.Close()
				for range 100 { // the kernel lets go of a dead process a little later
					if os.Remove(dir) == nil {
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
			})
			return
		}
	}
	proof.Missing(p.t, "a writable cgroup2")
}

func (p *phone) start() {
	p.t.Helper()
	ln, err := p.listener.File()
	p.check(err)
	defer ln.Close()
	text, err := json.Marshal(p.story)
	p.check(err)
	p.process, err = sandbox.Start(sandbox.Spec{Path: p.binary, Args: []string{"tunneld", string(text)}, UID: 903, NetNS: p.black.FD(),
		Cgroup: p.cgroup, Files: []sandbox.Handed{{Name: "tunneld", File: ln}, {Name: "tun", File: p.tun}}, Stderr: p.journal})
	p.check(err)
	process := p.process
	p.t.Cleanup(func() { process.Kill(); process.Wait() })
}

func (p *phone) kill() {
	p.t.Helper()
	p.check(p.process.Kill())
	_, err := p.process.Wait()
	p.check(err)
}

func (p *phone) status() (s Status, err error) {
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Second)
	defer cancel()
	client := httpsock.Client(filepath.Join(p.story.Dir, "tunneld.sock"))
	defer client.CloseIdleConnections()
	err = httpsock.Call(ctx, client, http.MethodGet, "/v1/status", nil, &s)
	return s, err
}

func (p *phone) await(limit time.Duration, state tunnel.Phase) (Status, time.Duration) {
	p.t.Helper()
	begin := time.Now()
	for {
		s, err := p.status()
		if err == nil && s.State == state.String() {
			return s, time.Since(begin)
		}
		if time.Since(begin) > limit {
			text, _ := os.ReadFile(p.journal.Name())
			p.t.Fatalf("not %s after %v: %+v, %v\n%s", state, limit, s, err, text)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// talk sends size bytes by TCP from the handset's red to the gateway's.
func (p *phone) talk(size int64) {
	p.t.Helper()
	var ln net.Listener
	p.check(p.far.Do(func() (err error) { ln, err = net.Listen("tcp", "10.77.0.1:0"); return err }))
	defer ln.Close()
	got := make(chan int64, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			got <- -1
			return
		}
		defer c.Close()
		n, _ := io.Copy(io.Discard, c)
		got <- n
	}()
	p.check(p.red.Do(func() error {
		c, err := net.DialTimeout("tcp", ln.Addr().String(), 5*time.Second)
		if err != nil {
			return err
		}
		_, err = io.Copy(c, io.LimitReader(rand.Reader, size))
		return errors.Join(err, c.Close())
	}))
	if n := <-got; n != size {
		p.t.Errorf("%d of %d bytes arrived", n, size)
	}
}

func TestProcess(t *testing.T) {
	p := newPhone(t)
	p.start()
	s, took := p.await(10*time.Second, tunnel.Up)
	t.Logf("start to up: %v", took)
	if s.Gateway != "north" || s.Endpoint != "203.0.113.1:51820" {
		t.Errorf("status is %+v", s)
	}
	p.talk(4 << 20)

	t.Run("holds nothing", func(t *testing.T) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000",
			"Seccomp:\t2", "NoNewPrivs:\t1", "Uid:\t903"} {
			if !bytes.Contains(text, []byte(want)) {
				t.Errorf("the process status lacks %q", want)
			}
		}
	})

	t.Run("kill -9", func(t *testing.T) {
		asked := len(p.gate.since(0))
		p.kill()
		p.start()
		_, took := p.await(10*time.Second, tunnel.Up)
		t.Logf("killed to up: %v", took)
		if got := p.gate.since(asked); len(got) < 2 || got[0] != "close" {
			t.Errorf("the gate was asked %q, want close first", got)
		}
		p.talk(1 << 20)
	})

	t.Run("egressd restarts", func(t *testing.T) {
		asked := len(p.gate.since(0))
		p.gate.die()
		begin := time.Now()
		for s, _ := p.status(); s.State == tunnel.Up.String(); s, _ = p.status() {
			if time.Since(begin) > 5*time.Second {
				t.Fatal("the loss was not noticed")
			}
			time.Sleep(2 * time.Millisecond)
		}
		t.Logf("noticed after %v", time.Since(begin))
		p.gate.serve(t, filepath.Join(p.story.Dir, "egressd.sock"))
		p.await(10*time.Second, tunnel.Up)
		if got := p.gate.since(asked); len(got) < 2 || got[0] != "close" || got[len(got)-1] != "admit north" {
			t.Errorf("the gate was asked %q", got)
		}
		p.talk(1 << 20)
	})

	t.Run("gateway gone", func(t *testing.T) {
		private, err := hex.DecodeString(p.story.Key)
		p.check(err)
		key, err := ecdh.X25519().NewPrivateKey(private)
		p.check(err)
		p.answer() // the gateway no longer knows this handset
		p.kill()   // so that no session is left
		p.start()
		p.await(10*time.Second, tunnel.Failed)
		s, _ := p.await(10*time.Second, tunnel.Connecting)
		if s.Retries < 1 || s.Reason != "no answer from 203.0.113.1:51820" || s.Since.IsZero() {
			t.Errorf("status is %+v", s)
		}
		p.answer(wireguard.Key(key.PublicKey().Bytes()))
		s, took := p.await(20*time.Second, tunnel.Up)
		t.Logf("answers again, up after %v", took)
		if s.Retries != 0 {
			t.Errorf("status is %+v", s)
		}
	})

	t.Run("asked to stop", func(t *testing.T) {
		p.check(p.process.Signal(os.Interrupt))
		state, err := p.process.Wait()
		if err != nil || state.ExitCode() != 0 {
			t.Errorf("it ended with %v, %v", state, err)
		}
		if got := p.gate.since(0); got[len(got)-1] != "close" {
			t.Errorf("the last word to the gate was %q", got[len(got)-1])
		}
	})
	text, err := os.ReadFile(p.journal.Name())
	p.check(err)
	for _, bad := range []string{p.story.Key, "tunnel.fault", "panic"} {
		if bytes.Contains(text, []byte(bad)) {
			t.Errorf("the journal has %q:\n%s", bad, text)
		}
	}
}
