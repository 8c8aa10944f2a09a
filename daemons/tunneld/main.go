package main

import (
	"context"
	"fmt"
	"net/netip"

	"rempart/boot/manifest/load"
	"rempart/internal/journal"
	"rempart/internal/run"
	"rempart/internal/sandbox"
	"rempart/internal/secret"
	"rempart/internal/sock"
	"rempart/internal/wish"
	"rempart/keystore/client"
	"rempart/vpn/wireguard"
)

const (
	policyDir    = "/etc/rempart"
	egressSocket = "/run/rempart/egressd.sock"
	keySocket    = "/run/rempart/keyd.sock"
	initSocket   = "/run/rempart/init.sock"
)

func main() {
	run.Main("tunneld", func(ctx context.Context, j *journal.Journal) error {
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
		policy, _, err := load.Policy(policyDir)
		if err != nil {
			return fmt.Errorf("cannot use the policy: %w", err)
		}
		cgroup, err := ownCgroup()
		if err != nil {
			return err
		}
		cfg, err := configure(policy, cgroup)
		if err != nil {
			return err
		}
		return serve(ctx, cfg, deps{
			listener: listener,
			gate:     &gate{path: egressSocket, digests: cfg.digests},
			keys:     &keyd{client: client.New(keySocket), roots: cfg.roots},
			wish: func(ctx context.Context, prefixes []netip.Prefix) error {
				return wish.Send(ctx, initSocket, prefixes)
			},
			open: func(key *secret.Bytes) (device, error) {
				return wireguard.Open(tun, key, j)
			},
			journal: j,
		})
	})
}
