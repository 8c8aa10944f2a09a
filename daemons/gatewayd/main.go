package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"rempart/boot/manifest/load"
	"rempart/internal/journal"
	"rempart/internal/run"
	"rempart/internal/sandbox"
	"rempart/internal/sock"
	"rempart/keystore/client"
	"rempart/voice/port"
	"rempart/voice/sip"
)

const (
	policyDir    = "/etc/rempart"
	keySocket    = "/run/rempart/keyd.sock"
	tunnelSocket = "/run/rempart/tunneld.sock"
	peersDir     = "/state/gatewayd/peers"
)

func main() {
	run.Main("gatewayd", func(ctx context.Context, j *journal.Journal) error {
		if err := sandbox.Enter(sandbox.Profile{Name: "gatewayd"}); err != nil {
			return err
		}
		sip.SilenceLibrary()
		listener, err := sock.Listener("gatewayd")
		if err != nil {
			return err
		}
		policy, _, err := load.Policy(policyDir)
		if err != nil {
			return fmt.Errorf("cannot use the policy: %w", err)
		}
		cfg, err := configure(policy)
		if err != nil {
			return err
		}
		return serve(ctx, cfg, deps{
			listener: listener,
			keys:     client.New(keySocket),
			tunnel:   newTunnel(tunnelSocket),
			peersDir: peersDir,
			ports: func(a netip.Addr) (calls, directory netip.AddrPort) {
				return netip.AddrPortFrom(a, port.Calls), netip.AddrPortFrom(a, port.Directory)
			},
			journal: j,
			now:     time.Now,
			clock:   monotonic,
		})
	})
}

// monotonic is CLOCK_MONOTONIC in nanoseconds.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}
