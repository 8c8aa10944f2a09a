package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"rempart/boot/manifest"
	"rempart/gateway/directory"
	"rempart/internal/journal"
	"rempart/internal/run"
	"rempart/internal/sock/httpsock"
	"rempart/voice/sip"
	"rempart/voice/voicetest"
)

func TestMain(m *testing.M) { voicetest.Main(m) }

type keyd struct{ cert tls.Certificate }

func (keyd) WaitOpen(context.Context) error { return nil }

func (k keyd) TLSCertificate(context.Context) (tls.Certificate, error) { return k.cert, nil }

// tunneld is the other end of the peers' socket: it keeps what it was told, and
// forgets it when it "restarts".
type tunneld struct {
	mu  sync.Mutex
	set []map[string]any
	put int
}

func (d *tunneld) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.Method == http.MethodPut && r.URL.Path == "/v1/peers" {
		d.put++
		d.set = nil
		body, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(body, &d.set); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusNoContent)
		return
	}
	json.NewEncoder(w).Encode(map[string]any{"state": "listening", "peers": len(d.set)})
}

func (d *tunneld) names() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var n []string
	for _, p := range d.set {
		n = append(n, p["name"].(string))
	}
	return strings.Join(n, " ")
}

func (d *tunneld) restart() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.set = nil
}

func policy(a *voicetest.Authority) *manifest.Policy {
	return &manifest.Policy{Version: 1, Serial: 1, Role: manifest.RoleGateway, Name: "test", Domain: voicetest.Domain, Levels: []string{"restricted"},
		Networks: []manifest.Network{{Name: "wg0", Accredited: "restricted", Inner: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/24")}}},
		Gateways: []manifest.Gateway{{Name: "gateway", Inner: []netip.Addr{voicetest.GatewayAddr()}}},
		Keys:     manifest.Keys{Authority: []string{a.PEM()}}}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(8 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited 8 s for %s", what)
}

func unixListener(t *testing.T, name string) (*net.UnixListener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	return ln, path
}

func TestGateway(t *testing.T) {
	voicetest.Need(t)
	a := voicetest.NewAuthority(t)
	cfg, err := configure(policy(a))
	if err != nil {
		t.Fatal(err)
	}
	tln, tpath := unixListener(t, "tunneld.sock")
	td := &tunneld{}
	srv := &http.Server{Handler: td}
	go srv.Serve(tln)
	defer srv.Close()

	ln, path := unixListener(t, "gatewayd.sock")
	dir := filepath.Join(t.TempDir(), "peers")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	var log bytes.Buffer
	go func() {
		ended <- serve(ctx, cfg, deps{listener: ln, keys: keyd{a.Gateway(t, "restricted")}, tunnel: newTunnel(tpath), peersDir: dir,
			ports: func(a netip.Addr) (netip.AddrPort, netip.AddrPort) {
				return netip.AddrPortFrom(a, 5061), netip.AddrPortFrom(a, 80)
			},
			journal: journal.New(&log, "gatewayd"), now: time.Now, clock: monotonic})
	}()
	ask := func() (s status) {
		if err := httpsock.Call(ctx, httpsock.Client(path), "GET", "/v1/status", nil, &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	await(t, "service", func() bool { return ask().State == "serving" })

	// A handset is nobody before its certificate is in the folder, and a peer and
	// a callee afterwards; a bad file beside it changes nothing.
	cert := a.Handset(t, "a", "restricted", voicetest.HandsetAddr(1))
	phone, err := sip.NewAgent(sip.Config{Self: "sip:a@" + voicetest.Domain, Gateway: netip.AddrPortFrom(voicetest.GatewayAddr(), 5061), Local: voicetest.HandsetAddr(1),
		Roots: a.Roots, Credentials: func(context.Context) (tls.Certificate, error) { return cert, nil },
		Incoming: func(in *sip.Incoming) { in.Refuse(486) }, Now: time.Now, Clock: monotonic, Timing: sip.DefaultTiming()})
	if err != nil {
		t.Fatal(err)
	}
	pctx, pcancel := context.WithCancel(context.Background())
	pended := make(chan error, 1)
	go func() { pended <- phone.Run(pctx) }()
	defer func() { pcancel(); <-pended }()
	await(t, "a refusal", func() bool { return strings.Contains(phone.Status().Reason, "403") })
	for name, data := range map[string][]byte{"a.pem": voicetest.CertPEM(cert), "bad.pem": []byte("no")} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "the tunnel's peer", func() bool { return td.names() == "a" })
	await(t, "registration", func() bool { return phone.Status().State == "registered" })
	if s := ask(); len(s.Registrations) != 1 || len(s.Peers) != 1 || s.Peers[0].Level != "restricted" || len(s.Faults) != 1 || s.Faults[0].File != "bad.pem" {
		t.Errorf("status: %+v", s)
	}
	// The protected service.
	res, err := http.Get("http://" + voicetest.GatewayAddr().String() + "/directory")
	if err != nil {
		t.Fatal(err)
	}
	var list directory.List
	if err := json.NewDecoder(res.Body).Decode(&list); err != nil || len(list.Handsets) != 1 || list.Handsets[0].Name != "sip:a@handsets.example" {
		t.Errorf("directory: %+v %v", list, err)
	}
	res.Body.Close()
	// tunneld restarts: it is told again.
	td.restart()
	await(t, "the peer again", func() bool { return td.names() == "a" })
	// The certificate is taken away: no peer, and nobody to call.
	if err := os.Remove(filepath.Join(dir, "a.pem")); err != nil {
		t.Fatal(err)
	}
	await(t, "no peer", func() bool { return td.names() == "" && len(ask().Registrations) == 0 })

	cancel()
	if err := <-ended; !errors.Is(err, run.ErrStopped) {
		t.Errorf("ended with %v", err)
	}
	if !strings.Contains(log.String(), "event=gateway.peer-file subject=bad.pem outcome=refused") {
		t.Errorf("the bad file is not in the journal:\n%s", log.String())
	}
}

// TestWrongCertificate: a handset's certificate makes no gateway.
func TestWrongCertificate(t *testing.T) {
	a := voicetest.NewAuthority(t)
	cfg, err := configure(policy(a))
	if err != nil {
		t.Fatal(err)
	}
	ln, _ := unixListener(t, "gatewayd.sock")
	err = serve(context.Background(), cfg, deps{listener: ln, keys: keyd{a.Handset(t, "a", "restricted", voicetest.HandsetAddr(1))},
		tunnel: newTunnel(filepath.Join(t.TempDir(), "none.sock")), peersDir: t.TempDir(), now: time.Now, clock: monotonic})
	if err == nil || errors.Is(err, run.ErrStopped) || run.HintOf(err) == "" {
		t.Errorf("got %v", err)
	}
}

func TestConfigure(t *testing.T) {
	a := voicetest.NewAuthority(t)
	for name, change := range map[string]func(*manifest.Policy){
		"a handset's policy": func(p *manifest.Policy) { p.Role = manifest.RoleHandset },
		"no gateway":         func(p *manifest.Policy) { p.Gateways = nil },
		"a bad authority":    func(p *manifest.Policy) { p.Keys.Authority = []string{"no"} },
	} {
		p := policy(a)
		change(p)
		if _, err := configure(p); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// TestBounded: the directory's listener holds no more connections than slots.
func TestBounded(t *testing.T) {
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &bounded{Listener: raw, slots: make(chan struct{}, 1)}
	defer b.Close()
	accepted := make(chan net.Conn)
	go func() {
		for {
			c, err := b.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	for range 2 {
		c, err := net.Dial("tcp", raw.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first := <-accepted
	select {
	case <-accepted:
		t.Fatal("a second connection was taken")
	case <-time.After(50 * time.Millisecond):
	}
	first.Close()
	first.Close() // a slot is given back once
	second := <-accepted
	second.Close()
}
