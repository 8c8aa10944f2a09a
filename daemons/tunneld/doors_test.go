package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rempart/boot/manifest"
	"rempart/internal/sock"
	"rempart/internal/sock/httpsock"
	"rempart/vpn/egress"
	"rempart/vpn/egress/plan"
	"rempart/vpn/tunnel"
	"rempart/vpn/wireguard"
)

// request sends a request to the engine's handler as peer; nil is a caller that the kernel cannot tell.
func request(e *engine, peer *sock.Peer, method, path, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if peer != nil {
		r = r.WithContext(httpsock.WithPeer(r.Context(), *peer))
	}
	w := httptest.NewRecorder()
	e.handler().ServeHTTP(w, r)
	return w
}

func TestWhoMayAskWhat(t *testing.T) {
	gatewayd := &sock.Peer{PID: 5, UID: 905, Cgroup: "/gatewayd"}
	key := manifest.Key32{9}.String()
	good := `[{"name":"a","public_key":"` + key + `","inner":["10.77.0.12"]}]`
	for _, c := range []struct {
		name, method, path, body string
		role                     tunnel.Role
		peer                     *sock.Peer
		want                     int
	}{
		{"anyone's status", "GET", "/v1/status", "", tunnel.Handset, &sock.Peer{PID: 9, UID: 1000, Cgroup: "/shell"}, 200},
		{"a stranger's status", "GET", "/v1/status", "", tunnel.Handset, nil, 403},
		{"peers", "PUT", "/v1/peers", good, tunnel.Gateway, gatewayd, 204},
		{"no peers", "PUT", "/v1/peers", "[]", tunnel.Gateway, gatewayd, 204},
		{"peers from the shell", "PUT", "/v1/peers", good, tunnel.Gateway, &sock.Peer{PID: 5, UID: 1000, Cgroup: "/gatewayd"}, 403},
		{"peers from another cgroup", "PUT", "/v1/peers", good, tunnel.Gateway, &sock.Peer{PID: 5, UID: 905, Cgroup: "/shell"}, 403},
		{"peers from root", "PUT", "/v1/peers", good, tunnel.Gateway, &sock.Peer{PID: 1, UID: 0, Cgroup: "/init"}, 403},
		{"peers from nobody", "PUT", "/v1/peers", good, tunnel.Gateway, nil, 403},
		{"a handset's peers", "PUT", "/v1/peers", good, tunnel.Handset, gatewayd, 404},
		{"unknown field", "PUT", "/v1/peers", `[{"name":"a","endpoint":"1.2.3.4:5"}]`, tunnel.Gateway, gatewayd, 400},
		{"no key", "PUT", "/v1/peers", `[{"name":"a","inner":["10.77.0.12"]}]`, tunnel.Gateway, gatewayd, 400},
		{"no address", "PUT", "/v1/peers", `[{"name":"a","public_key":"` + key + `","inner":[]}]`, tunnel.Gateway, gatewayd, 400},
		{"foreign address", "PUT", "/v1/peers", strings.Replace(good, "10.77.0.12", "10.78.0.12", 1), tunnel.Gateway, gatewayd, 400},
		{"the gateway's address", "PUT", "/v1/peers", strings.Replace(good, "10.77.0.12", "10.77.0.1", 1), tunnel.Gateway, gatewayd, 409},
		{"one address twice", "PUT", "/v1/peers", good[:len(good)-1] + `,{"name":"b","public_key":"` + manifest.Key32{8}.String() + `","inner":["10.77.0.12"]}]`, tunnel.Gateway, gatewayd, 400},
		{"another method", "POST", "/v1/peers", good, tunnel.Gateway, gatewayd, 405},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEngine(testConfig(c.role), deps{})
			e.creds.inner = []netip.Addr{netip.MustParseAddr("10.77.0.1")}
			done := make(chan struct{})
			go func() { // the engine's goroutine
				select {
				case r := <-e.requests:
					r.answer <- e.setPeers(r.peers)
				case <-done:
				}
			}()
			w := request(e, c.peer, c.method, c.path, c.body)
			close(done)
			if w.Code != c.want {
				t.Errorf("got %d %s, want %d", w.Code, w.Body, c.want)
			}
		})
	}
}

func TestStatusText(t *testing.T) {
	e := newEngine(testConfig(tunnel.Handset), deps{})
	down := time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC)
	e.state = tunnel.State{Phase: tunnel.Failed, Gateway: "north", Since: down.Add(time.Minute), DownSince: down,
		Why: "no answer", Trouble: "no answer from 203.0.113.1:51820", Retries: 4, NextRetry: down.Add(2 * time.Minute)}
	e.show()
	var got map[string]any
	if err := json.Unmarshal(request(e, &sock.Peer{PID: 9}, "GET", "/v1/status", "").Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{"state": "error", "since": "2026-11-22T06:00:00Z", "reason": "no answer from 203.0.113.1:51820",
		"gateway": "north", "retries": 4.0, "next_retry": "2026-11-22T06:02:00Z", "rx_bytes": 0.0, "tx_bytes": 0.0} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
	for _, key := range []string{"endpoint", "last_handshake", "peers"} {
		if _, ok := got[key]; ok {
			t.Errorf("%s is %v, though nothing is known", key, got[key])
		}
	}
}

// The gate's word is believed only if the digest is the signed policy's.
func TestGateBelievesTheDigest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "egressd.sock")
	s := story{Peer: strings.Repeat("01", 32), Endpoint: []netip.AddrPort{north4}}
	far := &egressd{table: s.table()}
	far.serve(t, path)
	defer func() { far.die() }()
	g := &gate{path: path, digests: s.config().digests}
	ctx := t.Context()
	if err := g.Check(ctx); err == nil {
		t.Error("a gate that was never asked is in order")
	}
	for _, step := range []func() error{
		func() error { return g.Close(ctx) }, func() error { return g.Check(ctx) },
		func() error { return g.Admit(ctx, "north") }, func() error { return g.Check(ctx) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	change := func(f func()) { far.mu.Lock(); defer far.mu.Unlock(); f() }
	far.dismiss() // init closed it
	if err := g.Check(ctx); err == nil || !strings.Contains(err.Error(), "ended the connection") {
		t.Errorf("a gate that was closed by another: %v", err)
	}
	if err := g.Close(ctx); err != nil {
		t.Fatal(err)
	}
	change(func() { far.table.Classes[0].Port++ }) // not what was signed
	if err := g.Admit(ctx, "north"); err == nil || !strings.Contains(err.Error(), "signed policy") {
		t.Errorf("another table: %v", err)
	}
	change(func() { far.table.Classes[0].Port-- })
	if err := g.Admit(ctx, "north"); err != nil {
		t.Fatal(err)
	}
	far.die()
	if err := g.Check(ctx); err == nil || errors.Is(err, errRefused) {
		t.Errorf("egressd died: %v", err)
	}
	if err := g.Close(ctx); err == nil {
		t.Error("closed without egressd")
	}
	far = &egressd{table: s.table()}
	if err := removeSocket(path); err != nil {
		t.Fatal(err)
	}
	far.serve(t, path)
	if err := g.Check(ctx); err == nil {
		t.Error("another egressd passed for the first")
	}
	if err := g.Close(ctx); err != nil {
		t.Errorf("the new one was not asked to close: %v", err)
	}
	far.die()
	if err := removeSocket(path); err != nil {
		t.Fatal(err)
	}
	far.serve(t, path)
	if err := g.Close(ctx); err != nil {
		t.Errorf("a broken old connection kept Close from the new egressd: %v", err)
	}
}

// removeSocket makes way for the next egressd at the same path.
func removeSocket(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func signedPolicy(t *testing.T, role string) *manifest.Policy {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	udp := []manifest.Service{{Protocol: "udp", Port: 51820, Purpose: manifest.PurposeTunnel}}
	p := &manifest.Policy{Role: role,
		Networks: []manifest.Network{{Name: "wg0", Inner: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/24"), netip.MustParsePrefix("fd77::/64")}}},
		Gateways: []manifest.Gateway{{Name: "north", Addresses: []netip.Addr{north4.Addr(), north6.Addr()}, TunnelKey: manifest.Key32{1}, Services: udp}},
		Keys:     manifest.Keys{Authority: []string{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}}}
	if role == manifest.RoleHandset {
		p.Gateways = append(p.Gateways, manifest.Gateway{Name: "ike", Addresses: []netip.Addr{south4.Addr()},
			Services: []manifest.Service{{Protocol: "udp", Port: 4500, Purpose: manifest.PurposeIKE}}},
			manifest.Gateway{Name: "south", Addresses: []netip.Addr{south4.Addr()}, TunnelKey: manifest.Key32{2}, Services: udp})
	}
	return p
}

func TestConfigure(t *testing.T) {
	p := signedPolicy(t, manifest.RoleHandset)
	c, err := configure(p, 42)
	if err != nil {
		t.Fatal(err)
	}
	want := []tunnel.Target{{Gateway: "north", Endpoint: north4}, {Gateway: "north", Endpoint: north6}, {Gateway: "south", Endpoint: south4}}
	if len(c.plan.Targets) != 3 || c.plan.Targets[0] != want[0] || c.plan.Targets[1] != want[1] || c.plan.Targets[2] != want[2] {
		t.Errorf("targets are %v", c.plan.Targets)
	}
	if c.keys["south"] != (wireguard.Key{2}) || c.plan.Role != tunnel.Handset {
		t.Errorf("keys are %v", c.keys)
	}
	table, err := plan.Compile(p, 42)
	if err != nil || c.digests["north"] != table.For("north").Digest() || c.digests[""] != egress.DenyAll().Digest() {
		t.Errorf("digests do not follow from the policy: %v", err)
	}
	got, err := c.prefixes([]netip.Addr{netip.MustParseAddr("10.77.0.11"), netip.MustParseAddr("fd77::11")})
	if err != nil || got[0].String() != "10.77.0.11/24" || got[1].String() != "fd77::11/64" {
		t.Errorf("prefixes are %v, %v", got, err)
	}
	for _, bad := range [][]netip.Addr{nil, {netip.MustParseAddr("10.78.0.1")}} {
		if got, err := c.prefixes(bad); err == nil {
			t.Errorf("%v became %v", bad, got)
		}
	}
	if c, err = configure(signedPolicy(t, manifest.RoleGateway), 42); err != nil || c.plan.Role != tunnel.Gateway || len(c.plan.Targets) != 1 {
		t.Errorf("a gateway's plan is %+v, %v", c.plan, err)
	}
	for name, spoil := range map[string]func(*manifest.Policy){
		"no network":   func(p *manifest.Policy) { p.Networks = nil },
		"no tunnel":    func(p *manifest.Policy) { p.Gateways = p.Gateways[1:2] },
		"no authority": func(p *manifest.Policy) { p.Keys.Authority = []string{"x"} },
		"no class":     func(p *manifest.Policy) { p.Gateways[0].Services[0].Purpose = "tea" },
	} {
		p := signedPolicy(t, manifest.RoleHandset)
		spoil(p)
		if _, err := configure(p, 42); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := configure(signedPolicy(t, manifest.RoleHandset), 0); err == nil {
		t.Error("no cgroup: taken")
	}
}
