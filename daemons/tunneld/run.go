package main

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"rempart/internal/journal"
	"rempart/internal/run"
	"rempart/internal/secret"
	"rempart/internal/sock/httpsock"
	"rempart/vpn/wireguard"
)

// gatekeeper is egressd: each call returns when the policy is in force.
// errRefused marks a no; any other error means that it is not known what is.
type gatekeeper interface {
	Close(ctx context.Context) error
	Admit(ctx context.Context, gateway string) error
	Check(ctx context.Context) error
}

// keystore is keyd.
type keystore interface {
	Fetch(ctx context.Context) (credentials, error)
}

// device is a *wireguard.Tunnel.
type device interface {
	Public() wireguard.Key
	Connect(wireguard.Peer) error
	Listen(port uint16, peers []wireguard.Peer) error
	SetPeers([]wireguard.Peer) error
	Rehandshake() error
	Down() error
	Close() error
	Peers() ([]wireguard.Status, error)
	Traffic() wireguard.Traffic
	Done() <-chan struct{}
}

// deps is everything outside this process.
type deps struct {
	listener *net.UnixListener
	gate     gatekeeper
	keys     keystore
	wish     func(context.Context, []netip.Prefix) error
	open     func(*secret.Bytes) (device, error)
	journal  *journal.Journal
}

// serve runs the tunnel and answers on the socket until ctx ends or one of the
// two cannot go on. It returns run.ErrStopped for a clean end.
func serve(ctx context.Context, cfg config, d deps) error {
	e := newEngine(cfg, d)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answered := make(chan error, 1)
	go func() {
		defer cancel()
		answered <- httpsock.Serve(ctx, d.listener, e.handler())
	}()
	err := e.run(ctx)
	cancel()
	if http := <-answered; !errors.Is(http, run.ErrStopped) {
		return errors.Join(http, err)
	}
	return err
}
