package main

import (
	"context"

	"golang.org/x/sys/unix"

	"rempart/internal/journal"
	"rempart/internal/run"
	"rempart/internal/sandbox"
	"rempart/internal/sock"
)

// pinDir is egressd's own folder in the handset's bpffs, mode 0700.
const pinDir = "/sys/fs/bpf/gate"

func main() {
	run.Main("egressd", func(ctx context.Context, j *journal.Journal) error {
		profile := sandbox.Profile{Name: "egressd", Capabilities: []int{unix.CAP_NET_ADMIN, unix.CAP_BPF}, Netlink: true, BPF: true, NoIP: true}
		if err := sandbox.Enter(profile); err != nil {
			return err
		}
		listener, err := sock.Listener("egressd")
		if err != nil {
			return err
		}
		return serve(ctx, listener, newEngine(pinDir, j))
	})
}
