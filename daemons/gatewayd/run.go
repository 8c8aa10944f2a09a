package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"rempart/boot/manifest"
	"rempart/gateway/directory"
	"rempart/gateway/peers"
	"rempart/gateway/proxy"
	"rempart/gateway/registrar"
	"rempart/internal/journal"
	"rempart/internal/run"
	"rempart/internal/sock/httpsock"
	"rempart/keystore/client/identity"
	"rempart/voice/sip"
)

// look is the pause between two looks at what is waited for.
const look = 20 * time.Millisecond

// config is what the signed policy says to gatewayd.
type config struct {
	domain   string
	roots    *x509.CertPool
	inner    []netip.Addr
	networks []netip.Prefix
}

// configure reads the policy.
func configure(p *manifest.Policy) (config, error) {
	if p.Role != manifest.RoleGateway || len(p.Gateways) != 1 {
		return config{}, fmt.Errorf("cannot be the gateway with a policy of role %q and %d gateways", p.Role, len(p.Gateways))
	}
	roots, err := p.Keys.Roots()
	if err != nil {
		return config{}, fmt.Errorf("cannot use the policy's authority: %w", err)
	}
	cfg := config{domain: p.Domain, roots: roots, inner: p.Gateways[0].Inner}
	for _, n := range p.Networks {
		cfg.networks = append(cfg.networks, n.Inner...)
	}
	return cfg, nil
}

// keystore is keyd (keystore/client.Client).
type keystore interface {
	WaitOpen(context.Context) error
	TLSCertificate(context.Context) (tls.Certificate, error)
}

// deps is everything outside this process.
type deps struct {
	listener *net.UnixListener
	keys     keystore
	tunnel   *tunnel
	peersDir string
	ports    func(netip.Addr) (calls, directory netip.AddrPort)
	journal  *journal.Journal
	now      func() time.Time
	clock    func() int64
}

// status is the answer to GET /v1/status.
type status struct {
	State         string              `json:"state"` // "waiting" or "serving"
	Reason        string              `json:"reason,omitempty"`
	Domain        string              `json:"domain"`
	Registrations []registrar.Binding `json:"registrations"`
	Peers         []peerStatus        `json:"peers"`
	Faults        []fault             `json:"faults"`
}

type peerStatus struct {
	Name  string       `json:"name"`
	URI   string       `json:"uri"`
	Level string       `json:"level"`
	Inner []netip.Addr `json:"inner"`
}

type fault struct {
	File   string `json:"file"`
	Reason string `json:"reason"`
}

// maxRegistrations bounds the registrar.
const maxRegistrations = peers.MaxPeers

// gatewayd is the daemon's parts.
type gatewayd struct {
	cfg     config
	d       deps
	table   *registrar.Table
	watcher *peers.Watcher
	waiting atomic.Pointer[string] // nil when serving
}

// serve runs the gateway until ctx ends (run.ErrStopped) or a part cannot go on.
// Peers are watched from the start: the tunnel needs them first.
func serve(ctx context.Context, cfg config, d deps) error {
	if err := os.MkdirAll(d.peersDir, 0o755); err != nil {
		return fmt.Errorf("cannot make the enrolment folder: %w", err)
	}
	g := &gatewayd{cfg: cfg, d: d, table: registrar.New(maxRegistrations, d.clock)}
	g.watcher = &peers.Watcher{Dir: d.peersDir, Journal: d.journal, Now: d.now, Push: d.tunnel.push, Stale: d.tunnel.stale,
		Rules:   peers.Rules{Roots: cfg.roots, Domain: cfg.domain, Networks: cfg.networks, Own: cfg.inner},
		Changed: func() { g.table.Keep(g.known) }}
	g.waiting.Store(new("the keystore is not open"))
	return together(ctx, g.watcher.Run, g.calls, func(ctx context.Context) error {
		return httpsock.Serve(ctx, d.listener, g.routes())
	})
}

// together runs parts until ctx ends or one of them does; then all end.
func together(ctx context.Context, parts ...func(context.Context) error) error {
	inside, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, len(parts))
	for _, part := range parts {
		go func() {
			defer cancel()
			ended <- part(inside)
		}()
	}
	var errs []error
	for range parts {
		if err := <-ended; !errors.Is(err, context.Canceled) && !errors.Is(err, run.ErrStopped) {
			errs = append(errs, err)
		}
	}
	if ctx.Err() != nil && errors.Join(errs...) == nil {
		return run.ErrStopped
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return errors.New("cannot go on: a part ended without a reason")
}

func (g *gatewayd) known(a sip.AOR) bool {
	_, ok := g.watcher.Lookup(string(a))
	return ok
}

// calls serves calls and the directory once keystore and addresses are there.
func (g *gatewayd) calls(ctx context.Context) error {
	if err := g.d.keys.WaitOpen(ctx); err != nil {
		return err
	}
	if err := g.waitIdentity(ctx); err != nil {
		return err
	}
	p, err := proxy.New(proxy.Config{Domain: g.cfg.domain, Roots: g.cfg.roots, Credentials: g.d.keys.TLSCertificate, Known: g.known,
		Table: g.table, Journal: g.d.journal, Now: g.d.now})
	if err != nil {
		return err
	}
	var callers []net.Listener
	parts := []func(context.Context) error{func(ctx context.Context) error { return p.Serve(ctx, callers...) }}
	for _, a := range g.cfg.inner {
		calls, dir := g.d.ports(a)
		sipLn, err := g.listen(ctx, calls)
		if err != nil {
			return err
		}
		defer sipLn.Close()
		dirLn, err := g.listen(ctx, dir)
		if err != nil {
			return err
		}
		defer dirLn.Close()
		callers = append(callers, sipLn)
		parts = append(parts, func(ctx context.Context) error {
			return serveHTTP(ctx, dirLn, directory.Handler(g.cfg.domain, g.table))
		})
	}
	g.waiting.Store(nil)
	return together(ctx, parts...)
}

// waitIdentity waits until the certificate is there, and holds it against the policy.
func (g *gatewayd) waitIdentity(ctx context.Context) error {
	var id identity.Identity
	err := until(ctx, func() bool {
		cert, err := g.d.keys.TLSCertificate(ctx)
		if err == nil {
			id, _, err = identity.Verify(cert.Certificate, g.cfg.roots, g.d.now())
		}
		if err != nil {
			g.waiting.Store(new("there is no usable certificate: " + err.Error()))
		}
		return err == nil
	})
	if err != nil {
		return err
	}
	if !id.IsGateway() || id.Domain() != g.cfg.domain || slices.ContainsFunc(g.cfg.inner, func(a netip.Addr) bool { return !slices.Contains(id.Inner, a) }) {
		return run.Hint(fmt.Errorf("cannot be the gateway of %s with the certificate of %q", g.cfg.domain, id.URI), "the certificate and the policy disagree: enrol again")
	}
	return nil
}

// listen binds as soon as init has given the address to the tunnel's device.
func (g *gatewayd) listen(ctx context.Context, at netip.AddrPort) (net.Listener, error) {
	// Go would try MPTCP first, which the level hooks refuse: one connection is one path.
	var plain net.ListenConfig
	plain.SetMultipathTCP(false)
	var ln net.Listener
	var fatal error
	err := until(ctx, func() bool {
		var err error
		ln, err = plain.Listen(ctx, "tcp", at.String())
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			g.waiting.Store(new("the tunnel's device has no address yet"))
			return false
		}
		fatal = err
		return true
	})
	if err = errors.Join(err, fatal); err != nil {
		return nil, fmt.Errorf("cannot serve %s: %w", at, err)
	}
	return ln, nil
}

// until waits for ok, which it asks every 20 ms.
func until(ctx context.Context, ok func() bool) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// maxReaders bounds the directory's connections.
const maxReaders = 64

// serveHTTP serves the directory with bounds on everything a reader may do.
func serveHTTP(ctx context.Context, ln net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: http.MaxBytesHandler(h, 1<<10), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second,
		WriteTimeout: 5 * time.Second, IdleTimeout: 5 * time.Second, MaxHeaderBytes: 8 << 10}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	err := srv.Serve(&bounded{Listener: ln, slots: make(chan struct{}, maxReaders)})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("cannot serve the directory: %w", err)
}

// routes is gatewayd.sock.
func (g *gatewayd) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		if _, ok := httpsock.PeerFrom(r); !ok {
			httpsock.WriteError(w, &httpsock.Error{Status: http.StatusForbidden, Message: "the caller is no process of this gateway"})
			return
		}
		s := status{State: "serving", Domain: g.cfg.domain, Registrations: g.table.List(), Peers: []peerStatus{}, Faults: []fault{}}
		if why := g.waiting.Load(); why != nil {
			s.State, s.Reason = "waiting", *why
		}
		set := g.watcher.Set()
		for _, p := range set.Peers {
			s.Peers = append(s.Peers, peerStatus{Name: p.Name, URI: p.URI, Level: p.Level, Inner: p.Inner})
		}
		for _, f := range set.Faults {
			s.Faults = append(s.Faults, fault{File: f.File, Reason: f.Err.Error()})
		}
		httpsock.Write(w, s)
	})
	return mux
}
