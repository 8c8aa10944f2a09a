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
	"sync/atomic"
	"time"

	"rempart/boot/manifest"
	"rempart/internal/journal"
	"rempart/internal/run"
	"rempart/internal/sock/httpsock"
	"rempart/keystore/client/identity"
	"rempart/voice/agent"
	"rempart/voice/port"
	"rempart/voice/sip"
	"rempart/vpn/levels"
)

const (
	network = "wg0" // the tunnel network calls go over
	look    = 20 * time.Millisecond
)

// config is what the signed policy says to voiced.
type config struct {
	domain  string
	roots   *x509.CertPool
	gateway []netip.Addr // inner addresses
	level   func(local, peer identity.Identity) (string, error)
}

// configure reads the policy.
func configure(p *manifest.Policy) (config, error) {
	if p.Role != manifest.RoleHandset || len(p.Gateways) == 0 || len(p.Gateways[0].Inner) == 0 {
		return config{}, fmt.Errorf("cannot make calls with a policy of role %q and %d gateways", p.Role, len(p.Gateways))
	}
	roots, err := p.Keys.Roots()
	if err != nil {
		return config{}, fmt.Errorf("cannot use the policy's authority: %w", err)
	}
	rule := levels.New(p)
	return config{domain: p.Domain, roots: roots, gateway: p.Gateways[0].Inner,
		level: func(local, peer identity.Identity) (string, error) {
			return rule.CallLevel(local.Level, peer.Level, network)
		}}, nil
}

// keystore is keyd (keystore/client.Client).
type keystore interface {
	agent.Sealer
	WaitOpen(context.Context) error
	TLSCertificate(context.Context) (tls.Certificate, error)
}

// deps is everything outside this process.
type deps struct {
	listener  *net.UnixListener
	keys      keystore
	tunnelUp  func(context.Context) (bool, error)
	stateFile string
	devices   agent.Devices
	check     func() error
	journal   *journal.Journal
	now       func() time.Time
	clock     func() int64
}

// serve answers on the socket from the start, and telephones as soon as the
// keystore is open and the tunnel up. It ends with ctx: run.ErrStopped.
func serve(ctx context.Context, cfg config, d deps) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h := &handler{since: d.clock(), clock: d.clock}
	h.waiting.Store(new("the keystore is not open"))
	answered := make(chan error, 1)
	go func() {
		defer cancel()
		answered <- httpsock.Serve(ctx, d.listener, h.routes())
	}()
	err := telephone(ctx, cfg, d, h)
	cancel()
	if served := <-answered; !errors.Is(served, run.ErrStopped) {
		return errors.Join(served, err)
	}
	if err == nil || errors.Is(err, context.Canceled) {
		return run.ErrStopped
	}
	return err
}

// telephone is the daemon's life: keystore, certificate, tunnel, calls.
func telephone(ctx context.Context, cfg config, d deps, h *handler) error {
	id, err := waitIdentity(ctx, cfg, d, h)
	if err != nil {
		return err
	}
	self, err := sip.ParseAOR(id.URI)
	if err != nil || self.Domain() != cfg.domain {
		return run.Hint(fmt.Errorf("cannot telephone as %q in domain %s", id.URI, cfg.domain),
			"the certificate and the policy name different domains: enrol again")
	}
	inner, gateway, ok := pair(id.Inner, cfg.gateway)
	if !ok {
		return fmt.Errorf("cannot reach gateway %v from inner addresses %v: no common family", cfg.gateway, id.Inner)
	}
	h.waiting.Store(new("the tunnel is not up"))
	if err := until(ctx, func() bool { up, err := d.tunnelUp(ctx); return err == nil && up }); err != nil {
		return err
	}
	a, err := agent.New(ctx, agent.Config{
		Self: self, Inner: inner, Gateway: netip.AddrPortFrom(gateway, port.Calls), Roots: cfg.roots, Credentials: d.keys.TLSCertificate,
		Level: cfg.level, Sealer: d.keys, StateFile: d.stateFile, Devices: d.devices, Check: d.check,
		// A lab's handset has nobody to lift it; the mark is in its certificate.
		AutoAnswer: id.Lab,
		RTP:        port.Sound, Keying: port.Keying, Limits: agent.DefaultLimits(), Timing: sip.DefaultTiming(),
		Journal: d.journal, Now: d.now, Clock: d.clock})
	if err != nil {
		return err
	}
	h.agent.Store(a)
	return a.Run(ctx)
}

// waitIdentity waits for the PIN and, on a handset's first boot, for its
// certificate.
func waitIdentity(ctx context.Context, cfg config, d deps, h *handler) (id identity.Identity, err error) {
	if err := d.keys.WaitOpen(ctx); err != nil {
		return id, err
	}
	var last error
	err = until(ctx, func() bool {
		var cert tls.Certificate
		if cert, last = d.keys.TLSCertificate(ctx); last == nil {
			id, _, last = identity.Verify(cert.Certificate, cfg.roots, d.now())
		}
		if last != nil {
			h.waiting.Store(new("there is no usable certificate: " + last.Error()))
		}
		return last == nil
	})
	return id, errors.Join(err, last)
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

// pair is the first of our inner addresses and the gateway's of one family.
func pair(own, gateway []netip.Addr) (a, b netip.Addr, ok bool) {
	for _, a := range own {
		for _, b := range gateway {
			if a.Is4() == b.Is4() {
				return a, b, true
			}
		}
	}
	return netip.Addr{}, netip.Addr{}, false
}

// tunnelUp asks tunneld.
func tunnelUp(ctx context.Context, c *http.Client) (bool, error) {
	var s struct {
		State string `json:"state"`
	}
	if err := httpsock.Call(ctx, c, http.MethodGet, "/v1/status", nil, &s); err != nil {
		return false, err
	}
	return s.State == "up", nil
}

// handler answers on voiced.sock; agent is nil until the handset can telephone.
type handler struct {
	agent   atomic.Pointer[agent.Agent]
	waiting atomic.Pointer[string]
	since   int64
	clock   func() int64
}
