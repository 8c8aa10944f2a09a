package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"text/tabwriter"
	"time"

	"rempart/board/netns"
	"rempart/tools/lab/bringup"
)

// machineStatus is a machine as board and phone see it.
type machineStatus struct {
	netns.Machine
	Inner  []netip.Addr    `json:"inner"`            // addresses inside the tunnel
	Tunnel *bringup.Tunnel `json:"tunnel,omitempty"` // nil when the phone did not say
	// Keystore is the state of the keystore, "" when the phone did not say.
	Keystore string `json:"keystore,omitempty"`
}

// worldStatus is the answer of status --json.
type worldStatus struct {
	*netns.Status
	Machines []machineStatus `json:"machines"`
}

func statusCommand() command {
	c := command{
		name: "status", usage: "[--world NAME] [--json]",
		what: "shows the machines of a world: role, state, addresses, tunnel; with --json also the paths of their namespaces",
	}
	c.run = func(ctx context.Context, args []string, s streams) error {
		f, world := flagSet(c)
		asJSON := f.Bool("json", false, "everything, as JSON")
		words, rest, err := parse(c, f, args)
		if err != nil {
			return err
		}
		if len(words) > 0 || rest != nil {
			return errUsage(c, "status takes no words")
		}
		w, err := open(ctx, *world)
		if err != nil {
			return err
		}
		status, err := gather(ctx, w)
		if err != nil {
			return err
		}
		if *asJSON {
			e := json.NewEncoder(s.out)
			e.SetIndent("", "  ")
			return e.Encode(status)
		}
		return show(s.out, status)
	}
	return c
}

// gather asks the keeper, and every machine that is on.
func gather(ctx context.Context, w *netns.World) (worldStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s, err := w.Status(ctx)
	if err != nil {
		return worldStatus{}, err
	}
	all := worldStatus{Status: s, Machines: make([]machineStatus, len(s.Machines))}
	var wait sync.WaitGroup
	for i, m := range s.Machines {
		wait.Go(func() {
			one := machineStatus{Machine: m, Inner: bringup.Inner(m.Number)}
			if m.State == netns.On {
				// A phone that cannot answer is a state too, not an error.
				if p, err := bringup.StatusOf(ctx, w, m.Name); err == nil {
					one.Tunnel, one.Keystore = &p.Tunnel, string(p.Keystore.State)
				}
			}
			all.Machines[i] = one
		})
	}
	wait.Wait()
	return all, nil
}

// show prints a status for a person.
func show(w io.Writer, s worldStatus) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "MACHINE\tROLE\tSTATE\tPID\tADDRESSES\tKEYSTORE\tTUNNEL\n")
	for _, m := range s.Machines {
		tunnel, pid := "-", "-"
		if m.Tunnel != nil {
			tunnel = m.Tunnel.State
		}
		if m.PID != 0 {
			pid = fmt.Sprint(m.PID)
		}
		keystore := m.Keystore
		if keystore == "" {
			keystore = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s %s\t%s\t%s\n", m.Name, m.Role, m.State, pid, m.Radio.V4.Addr(), m.Radio.V6.Addr(), keystore, tunnel)
		if m.Reason != "" {
			fmt.Fprintf(t, "\t%s\n", m.Reason)
		}
	}
	return t.Flush()
}
