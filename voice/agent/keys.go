package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"rempart/voice/keying"
	"rempart/voice/sip"
)

// params is what this side knows when keys are to be agreed.
func (a *Agent) params(cert tls.Certificate, callID string, peer sip.AOR) keying.Params {
	return keying.Params{CallID: callID, Local: string(a.cfg.Self), DialledName: string(peer), Certificate: cert,
		Roots: a.cfg.Roots, Level: a.cfg.Level, Now: a.cfg.Now, Timeout: a.cfg.Limits.Keying}
}

// dialKeys opens the keying connection as the caller.
func (a *Agent) dialKeys(ctx context.Context, cert tls.Certificate, callID string, peer sip.AOR, remote sip.Session) (*keying.Result, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: a.cfg.Inner.AsSlice()}, Timeout: a.cfg.Limits.Keying}
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(remote.Addr, remote.Keying).String())
	if err != nil {
		return nil, fmt.Errorf("cannot reach the callee to agree on keys: %w", err)
	}
	defer conn.Close()
	r, err := keying.Dial(ctx, conn, a.params(cert, callID, peer))
	if err != nil {
		return nil, err
	}
	return checked(r, remote)
}

// acceptKeys awaits the keying connection as the callee. Only the caller's own
// inner address is listened to, and the first connection from there decides.
func (a *Agent) acceptKeys(ctx context.Context, ln *net.TCPListener, cert tls.Certificate, callID string, peer sip.AOR, remote sip.Session) (*keying.Result, error) {
	defer ln.Close()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	if err := ln.SetDeadline(time.Now().Add(a.cfg.Limits.Keying)); err != nil {
		return nil, fmt.Errorf("cannot await the caller: %w", err)
	}
	for {
		conn, err := ln.AcceptTCP()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("cannot await the caller: %w", err), ctx.Err())
		}
		from, err := netip.ParseAddrPort(conn.RemoteAddr().String())
		if err != nil || from.Addr().Unmap() != remote.Addr {
			conn.Close()
			continue
		}
		ln.Close()
		r, err := keying.Accept(ctx, conn, a.params(cert, callID, peer))
		conn.Close()
		if err != nil {
			return nil, err
		}
		return checked(r, remote)
	}
}

// checked holds the peer's session description against its certificate.
func checked(r *keying.Result, remote sip.Session) (*keying.Result, error) {
	if !slices.Contains(r.Peer.Inner, remote.Addr) {
		r.Wipe()
		return nil, fmt.Errorf("%w: %s", errInner, remote.Addr)
	}
	return r, nil
}
