package main

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"rempart/internal/journal"
	"rempart/internal/link"
	"rempart/internal/run"
	"rempart/internal/sandbox"
	"rempart/internal/sock"
	"rempart/vpn/enforce/backstop"
)

// egressdSocket is where egressd says what it admits.
const egressdSocket = "/run/rempart/egressd.sock"

func main() {
	run.Main("watchd", func(ctx context.Context, j *journal.Journal) error {
		profile := sandbox.Profile{Name: "watchd", Capabilities: []int{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN, unix.CAP_BPF},
			Netlink: true, BPF: true, NoIP: true, Setns: true}
		if err := sandbox.Enter(profile); err != nil {
			return err
		}
		supervisor, err := sock.Inherited("init")
		if err != nil {
			return err
		}
		defer supervisor.Close() // and so it is held until then
		w, err := newWatcher(ctx, int(supervisor.Fd()), egressdSocket, j)
		if err != nil {
			return err
		}
		// The first orders come when init has named this process to the guard: before that, it may do nothing that counts.
		if err := w.await(ctx); err != nil {
			return err
		}
		for name, place := range map[string]backstop.Place{"own": backstop.Other, "red": backstop.Red, "void": backstop.Other} {
			f, err := sock.Inherited(name)
			if err != nil {
				return err
			}
			ns, err := link.FromFile(f)
			if err != nil {
				return err
			}
			if err := ns.Do(w.listen); err != nil {
				return fmt.Errorf("cannot listen in namespace %s: %w", name, err)
			}
			w.spaces = append(w.spaces, space{name, place, ns})
		}
		if err := w.listen(); err != nil {
			return fmt.Errorf("cannot listen in black: %w", err)
		}
		return w.run(ctx)
	})
}
