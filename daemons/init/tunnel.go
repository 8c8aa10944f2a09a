package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"rempart/boot/manifest"
	"rempart/internal/journal"
	"rempart/internal/link"
	"rempart/internal/sock"
	"rempart/internal/wish"
)

// tunnelDevice is the one door between red and black.
const tunnelDevice = "wg0"

// startTunnel makes wg0 in red, without an address yet, and starts tunneld in black with its descriptor.
func (p *phone) startTunnel(ctx context.Context) (string, error) {
	if err := p.openRed(); err != nil {
		return "", err
	}
	err := p.red.Do(func() error {
		f, err := link.OpenTUN(tunnelDevice)
		if err != nil {
			return err
		}
		p.tun = f
		return errors.Join(link.SetMTU(tunnelDevice, 1420), p.admit("lo", tunnelDevice))
	})
	if err != nil {
		return "", err
	}
	if err := errors.Join(p.makeLevels(ctx), p.readLevels()); err != nil {
		return "", err
	}
	if err := p.listen("tunneld"); err != nil {
		return "", err
	}
	if err := p.sup.start("tunneld"); err != nil {
		return "", err
	}
	return "wg0 in red, its descriptor with tunneld in black, which holds no capability", nil
}

// startApps starts what speaks in red.
func (p *phone) startApps(context.Context) (string, error) {
	if p.policy.Role == manifest.RoleGateway {
		if err := own(filepath.Join(stateDir, "gatewayd"), uidGatewayd); err != nil {
			return "", err
		}
		err := p.red.Do(func() error {
			return errors.Join(
				link.Sysctl("net.ipv4.ip_unprivileged_port_start", "80"), // gatewayd has no capability and serves 80
				link.Sysctl("net.ipv4.ip_forward", "1"),                  // handset to handset, inside the tunnel
				link.Sysctl("net.ipv6.conf.all.forwarding", "1"),
			)
		})
		if err != nil {
			return "", err
		}
		return p.startApp("gatewayd")
	}
	if err := own(filepath.Join(stateDir, "voiced"), uidVoiced); err != nil {
		return "", err
	}
	if err := own(audioDir, uidVoiced); err != nil {
		return "", err
	}
	return p.startApp("voiced")
}

func (p *phone) startApp(name string) (string, error) {
	if err := p.listen(name); err != nil {
		return "", err
	}
	if err := p.sup.start(name); err != nil {
		return "", err
	}
	return name + " in red, no capability", nil
}

// wished is a wish that waits for the loop's answer: addresses for wg0, or a lease for a radio.
type wished struct {
	prefixes []netip.Prefix
	lease    *wish.Lease
	reply    chan error
}

// serveWishes answers init.sock. Tunneld may wish for inner addresses, linkd for those of a radio, and no one else.
func (p *phone) serveWishes(ctx context.Context) (<-chan wished, error) {
	ln, ok := p.listeners["init"]
	if !ok {
		return nil, errors.New("cannot serve wishes: there is no socket for them")
	}
	out := make(chan wished)
	go func() {
		err := sock.AcceptLoop(ln, 4, func(c *net.UnixConn) {
			peer, err := sock.PeerOf(c)
			ask := func(w wished) error {
				w.reply = make(chan error, 1)
				select {
				case out <- w:
					return <-w.reply
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			switch {
			case err == nil && peer.Is(uidTunneld, "/tunneld"):
				wish.Serve(c, func(prefixes []netip.Prefix) error { return ask(wished{prefixes: prefixes}) })
			case err == nil && peer.Is(uidLinkd, "/linkd"):
				wish.ServeLease(c, func(l wish.Lease) error { return ask(wished{lease: &l}) })
			default:
				p.journal.Event(eventWish, peer.String(), journal.Refused, "reason", fmt.Sprint(err))
				c.Close()
			}
		})
		p.journal.Event(eventWish, "init.sock", journal.Failure, "reason", err.Error())
	}()
	return out, nil
}

// grant does what was wished for, or says why not.
func (p *phone) grant(ctx context.Context, w wished) error {
	if w.lease != nil {
		return p.grantLease(ctx, *w.lease)
	}
	return p.grantInner(w)
}

// grantInner gives wg0 the addresses that tunneld read from this device's certificate, if the policy's network holds them, and
// routes that network, nothing else, into the tunnel.
func (p *phone) grantInner(w wished) error {
	err := p.setInner(w.prefixes)
	outcome, reason := journal.Success, ""
	if err != nil {
		outcome, reason = journal.Refused, err.Error()
	}
	p.journal.Event(eventWish, fmt.Sprint(w.prefixes), outcome, "reason", reason)
	return err
}

func (p *phone) setInner(prefixes []netip.Prefix) error {
	// A device has one certificate in a boot, and with it one set of addresses: a second one is a tunneld gone wrong.
	if p.inner != nil && !slices.Equal(p.inner, prefixes) {
		return fmt.Errorf("cannot address %s: it has %v in this boot", tunnelDevice, p.inner)
	}
	network, ok := p.policy.Network(tunnelDevice)
	if !ok {
		return fmt.Errorf("cannot address %s: the policy has no such network", tunnelDevice)
	}
	for _, w := range prefixes {
		inside := false
		for _, n := range network.Inner {
			inside = inside || n.Contains(w.Addr())
		}
		if !inside {
			return fmt.Errorf("cannot address %s: %s is not in the policy's network", tunnelDevice, w.Addr())
		}
	}
	p.inner = slices.Clone(prefixes)
	return p.red.Do(func() error {
		for _, w := range prefixes {
			if err := link.AddAddr(tunnelDevice, netip.PrefixFrom(w.Addr(), w.Addr().BitLen())); err != nil && !errors.Is(err, os.ErrExist) {
				return err
			}
		}
		if err := link.SetUp(tunnelDevice); err != nil {
			return err
		}
		for _, n := range network.Inner {
			if err := link.AddRoute(link.Route{To: n.Masked(), Device: tunnelDevice}); err != nil && !strings.Contains(err.Error(), "exists") {
				return err
			}
		}
		return nil
	})
}
