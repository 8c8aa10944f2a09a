package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"rempart/boot/manifest/load"
	"rempart/internal/journal"
	"rempart/internal/run"
	"rempart/internal/sandbox"
	"rempart/internal/sock"
	"rempart/internal/sock/httpsock"
	"rempart/keystore/client"
	"rempart/voice/agent"
	"rempart/voice/sip"
)

const (
	policyDir    = "/etc/rempart"
	keySocket    = "/run/rempart/keyd.sock"
	tunnelSocket = "/run/rempart/tunneld.sock"
	stateFile    = "/state/voiced/calls"
	soundDir     = "/dev/rempart-audio"
)

func main() {
	run.Main("voiced", func(ctx context.Context, j *journal.Journal) error {
		if err := sandbox.Enter(sandbox.Profile{Name: "voiced"}); err != nil {
			return err
		}
		sip.SilenceLibrary()
		listener, err := sock.Listener("voiced")
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
		tunnel := httpsock.Client(tunnelSocket)
		return serve(ctx, cfg, deps{
			listener:  listener,
			keys:      client.New(keySocket),
			tunnelUp:  func(ctx context.Context) (bool, error) { return tunnelUp(ctx, tunnel) },
			stateFile: stateFile,
			devices:   agent.WAVDevices(soundDir),
			check:     agent.CheckWAV(soundDir),
			journal:   j,
			now:       time.Now,
			clock:     monotonic,
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
