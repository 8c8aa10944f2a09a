package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"rempart/boot/manifest"
	"rempart/gateway/proxy"
	"rempart/gateway/registrar"
	"rempart/internal/run"
	"rempart/internal/sock"
	"rempart/internal/sock/httpsock"
	"rempart/voice/agent"
	"rempart/voice/port"
	"rempart/voice/record"
	"rempart/voice/sip"
	"rempart/voice/voicetest"
)

func TestMain(m *testing.M) { voicetest.Main(m) }

// keyd is the keystore's client as voiced sees it; sealing is keyd's own matter.
type keyd struct {
	open atomic.Bool
	cert atomic.Pointer[tls.Certificate]
}

func (k *keyd) WaitOpen(ctx context.Context) error { return until(ctx, k.open.Load) }

func (k *keyd) TLSCertificate(context.Context) (tls.Certificate, error) {
	if c := k.cert.Load(); c != nil {
		return *c, nil
	}
	return tls.Certificate{}, errors.New("no certificate yet")
}

func (k *keyd) Seal(_ context.Context, _ string, b []byte) ([]byte, error) {
	return bytes.ToUpper(b), nil
}
func (k *keyd) Open(_ context.Context, _ string, b []byte) ([]byte, error) {
	return bytes.ToLower(b), nil
}

func policy(a *voicetest.Authority) *manifest.Policy {
	return &manifest.Policy{Version: 1, Serial: 1, Role: manifest.RoleHandset, Name: "test", Domain: voicetest.Domain,
		Levels:   []string{"public", "restricted", "secret"},
		Networks: []manifest.Network{{Name: network, Accredited: "secret", Inner: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/24")}}},
		Gateways: []manifest.Gateway{{Name: "gateway", Inner: []netip.Addr{netip.MustParseAddr("fd77::1"), voicetest.GatewayAddr()}}},
		Keys:     manifest.Keys{Authority: []string{a.PEM()}}}
}

func gatewayOf(t *testing.T, a *voicetest.Authority) {
	t.Helper()
	voicetest.Need(t)
	cert := a.Gateway(t, "secret")
	p, err := proxy.New(proxy.Config{Domain: voicetest.Domain, Roots: a.Roots, Known: func(sip.AOR) bool { return true },
		Credentials: func(context.Context) (tls.Certificate, error) { return cert, nil }, Table: registrar.New(8, monotonic), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", netip.AddrPortFrom(voicetest.GatewayAddr(), port.Calls).String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() { defer close(over); p.Serve(ctx, ln) }()
	t.Cleanup(func() { cancel(); <-over })
}

// handset is voiced without its process: what main would give it, given here.
type handset struct {
	*handler
	keys   *keyd
	tunnel atomic.Bool
	dir    string
	ended  chan error
	stop   context.CancelFunc
}

func newHandset(t *testing.T, a *voicetest.Authority, n int, name, level string) *handset {
	t.Helper()
	cfg, err := configure(policy(a))
	if err != nil {
		t.Fatal(err)
	}
	h := &handset{keys: &keyd{}, dir: t.TempDir(), ended: make(chan error, 1)}
	cert := a.Handset(t, name, level, voicetest.HandsetAddr(n))
	h.keys.cert.Store(&cert)
	h.handler = &handler{clock: monotonic}
	h.waiting.Store(new("the keystore is not open"))
	ctx, cancel := context.WithCancel(context.Background())
	h.stop = cancel
	d := deps{keys: h.keys, tunnelUp: func(context.Context) (bool, error) { return h.tunnel.Load(), nil },
		stateFile: filepath.Join(h.dir, "calls"), devices: agent.WAVDevices(h.dir), check: agent.CheckWAV(h.dir), now: time.Now, clock: monotonic}
	go func() { h.ended <- telephone(ctx, cfg, d, h.handler) }()
	t.Cleanup(func() {
		cancel()
		if err := <-h.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%s ended with %v", name, err)
		}
	})
	return h
}

// ask is a request of a process of the handset.
func (h *handset) ask(t *testing.T, who sock.Peer, method, path, body string, out any) int {
	t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if who != (sock.Peer{}) {
		r = r.WithContext(httpsock.WithPeer(r.Context(), who))
	}
	w := httptest.NewRecorder()
	h.routes().ServeHTTP(w, r)
	if out != nil {
		if err := json.Unmarshal(w.Body.Bytes(), out); err != nil {
			t.Fatalf("%s %s: %v in %q", method, path, err, w.Body)
		}
	}
	return w.Code
}

var (
	shell = sock.Peer{PID: 7, UID: shellUID, Cgroup: shellCgroup}
	other = sock.Peer{PID: 8, UID: 903, Cgroup: "/tunneld"}
)

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(8 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited 8 s for %s", what)
}

func (h *handset) registered(t *testing.T) func() bool {
	return func() bool {
		var s record.Status
		h.ask(t, other, "GET", "/v1/status", "", &s)
		return s.Registration.State == "registered"
	}
}

func TestTelephone(t *testing.T) {
	a := voicetest.NewAuthority(t)
	gatewayOf(t, a)
	h, peer := newHandset(t, a, 1, "a", "secret"), newHandset(t, a, 2, "b", "restricted")

	// Before the keystore and the tunnel: it says what it waits for.
	for _, waits := range []struct {
		want string
		then func()
	}{{"keystore", func() { h.keys.open.Store(true) }}, {"tunnel", func() { h.tunnel.Store(true) }}} {
		await(t, waits.want, func() bool {
			var s record.Status
			return h.ask(t, shell, "GET", "/v1/status", "", &s) == 200 && strings.Contains(s.Registration.Reason, waits.want)
		})
		var e httpsock.Error
		if code := h.ask(t, shell, "POST", "/v1/calls", `{"callee":"b"}`, &e); code != http.StatusServiceUnavailable || e.Hint == "" {
			t.Errorf("a call too early: %d %+v", code, e)
		}
		waits.then()
	}
	peer.keys.open.Store(true)
	peer.tunnel.Store(true)
	await(t, "registration of a", h.registered(t))
	await(t, "registration of b", peer.registered(t))

	// Rights: only the person telephones, and only processes of the handset ask.
	for _, who := range []sock.Peer{{}, other, {PID: 9, UID: shellUID, Cgroup: "/apps/mail"}, {PID: 9, UID: 0, Cgroup: shellCgroup}} {
		for _, q := range [][2]string{{"POST", "/v1/calls"}, {"GET", "/v1/calls/1"}, {"DELETE", "/v1/calls/1"}, {"POST", "/v1/calls/1/answer"}} {
			if code := h.ask(t, who, q[0], q[1], `{"callee":"b"}`, nil); code != http.StatusForbidden {
				t.Errorf("%v %v: %d", who, q, code)
			}
		}
	}
	if code := h.ask(t, sock.Peer{}, "GET", "/v1/status", "", nil); code != http.StatusForbidden {
		t.Errorf("status for a stranger: %d", code)
	}

	// A call. The callee's certificate bears no lab mark, so somebody answers.
	var dialled DialAnswer
	if code := h.ask(t, shell, "POST", "/v1/calls", `{"callee":"B"}`, &dialled); code != 200 {
		t.Fatalf("dialling: %d", code)
	}
	if code := h.ask(t, shell, "POST", "/v1/calls", `{"callee":"b"}`, nil); code != http.StatusConflict {
		t.Errorf("a second call: %d", code)
	}
	var ringing record.Status
	await(t, "ringing", func() bool {
		ringing = record.Status{}
		peer.ask(t, shell, "GET", "/v1/status", "", &ringing)
		return ringing.Current != nil && ringing.Current.State == "ringing"
	})
	if code := peer.ask(t, shell, "POST", "/v1/calls/"+ringing.Current.ID+"/answer", "", nil); code != http.StatusNoContent {
		t.Errorf("answering: %d", code)
	}
	var r record.Record
	await(t, "sound", func() bool {
		return h.ask(t, shell, "GET", "/v1/calls/"+dialled.ID, "", &r) == 200 && r.State == "active" && r.FramesReceived > 10
	})
	if r.Level != "restricted" || r.SAS == "" {
		t.Errorf("the call's level is %q, SAS %q", r.Level, r.SAS)
	}
	var seen record.Status
	if h.ask(t, other, "GET", "/v1/status", "", &seen); seen.Current != nil || seen.Last != nil {
		t.Error("another daemon sees the call")
	}
	if code := h.ask(t, shell, "DELETE", "/v1/calls/"+dialled.ID, "", nil); code != http.StatusNoContent {
		t.Errorf("hanging up: %d", code)
	}
	await(t, "the end", func() bool {
		h.ask(t, shell, "GET", "/v1/calls/"+dialled.ID, "", &r)
		return r.Over()
	})
	for _, q := range [][3]string{{"DELETE", "/v1/calls/" + dialled.ID, "404"}, {"GET", "/v1/calls/none", "404"}, {"POST", "/v1/calls/none/answer", "404"}} {
		if code := h.ask(t, shell, q[0], q[1], "", nil); code != http.StatusNotFound {
			t.Errorf("%v: %d", q, code)
		}
	}
	for _, body := range []string{``, `{}`, `{"callee":"a"}`, `{"callee":"b","x":1}`, `{"callee":"b@evil.example"}`} {
		if code := h.ask(t, shell, "POST", "/v1/calls", body, nil); code != http.StatusBadRequest {
			t.Errorf("dialling with %s: %d", body, code)
		}
	}
}

// TestSocket serves on the real socket: this process is not the handset's shell.
func TestSocket(t *testing.T) {
	a := voicetest.NewAuthority(t)
	cfg, err := configure(policy(a))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "voiced.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- serve(ctx, cfg, deps{listener: ln, keys: &keyd{}, now: time.Now, clock: monotonic})
	}()
	var s record.Status
	if err := httpsock.Call(ctx, httpsock.Client(path), "GET", "/v1/status", nil, &s); err != nil || s.Registration.State != "unregistered" {
		t.Errorf("status: %+v %v", s, err)
	}
	var refused *httpsock.Error
	if err := httpsock.Call(ctx, httpsock.Client(path), "POST", "/v1/calls", DialRequest{Callee: "b"}, nil); !errors.As(err, &refused) || refused.Status != http.StatusForbidden {
		t.Errorf("a call from outside the shell: %v", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, run.ErrStopped) {
		t.Errorf("ended with %v", err)
	}
}

func TestConfigure(t *testing.T) {
	a := voicetest.NewAuthority(t)
	for name, change := range map[string]func(*manifest.Policy){
		"a gateway's policy": func(p *manifest.Policy) { p.Role = manifest.RoleGateway },
		"no gateway":         func(p *manifest.Policy) { p.Gateways = nil },
		"no inner address":   func(p *manifest.Policy) { p.Gateways[0].Inner = nil },
		"a bad authority":    func(p *manifest.Policy) { p.Keys.Authority = []string{"no"} },
	} {
		p := policy(a)
		change(p)
		if _, err := configure(p); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if _, _, ok := pair([]netip.Addr{voicetest.HandsetAddr(1)}, []netip.Addr{netip.MustParseAddr("fd77::1")}); ok {
		t.Error("a pair of two families")
	}
}

// TestTunnelUp reads tunneld's own words.
func TestTunnelUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tunneld.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	state := `{"state":"connecting"}`
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(state)) })}
	go srv.Serve(ln)
	defer srv.Close()
	c := httpsock.Client(path)
	for _, row := range []struct {
		state string
		up    bool
	}{{`{"state":"connecting"}`, false}, {`{"state":"up","since":"2026-11-22T05:56:10Z"}`, true}, {`{"state":"stale"}`, false}} {
		state = row.state
		if up, err := tunnelUp(context.Background(), c); err != nil || up != row.up {
			t.Errorf("%s: %v %v", row.state, up, err)
		}
	}
}
