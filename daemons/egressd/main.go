package main

import (
	"context"
	"fmt"
	"io"
	"runtime"

	"golang.org/x/sys/unix"

	"rempart/internal/journal"
	"rempart/internal/run"
	"rempart/internal/sandbox"
	"rempart/internal/sock"
)

// Places of the handset: egressd's own folder in its bpffs, mode 0700, and its cgroup.
const (
	pinDir    = "/sys/fs/bpf/gate"
	cgroupDir = "/sys/fs/cgroup"
)

// awaitTrust waits until init has named this process to the guard, which is when it
// closes its end of a pipe. The guard kills whoever calls bpf without that.
func awaitTrust() error {
	f, err := sock.Inherited("trusted")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(io.Discard, f); err != nil {
		return fmt.Errorf("cannot wait for init's trust: %w", err)
	}
	return nil
}

func main() {
	// A question wakes one thread, not several that look for work. Who loads programs is in the kernel meanwhile.
	runtime.GOMAXPROCS(1)
	run.Main("egressd", func(ctx context.Context, j *journal.Journal) error {
		profile := sandbox.Profile{Name: "egressd", Capabilities: []int{unix.CAP_NET_ADMIN, unix.CAP_BPF}, Netlink: true, BPF: true, NoIP: true}
		if err := sandbox.Enter(profile); err != nil {
			return err
		}
		listener, err := sock.Listener("egressd")
		if err != nil {
			return err
		}
		if err := awaitTrust(); err != nil {
			return err
		}
		return serve(ctx, listener, newEngine(pinDir, cgroupDir, j))
	})
}
