package soak

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/netns"
	"rempart/board/scenario"
	"rempart/board/scenario/attack"
	"rempart/boot/report"
	"rempart/tools/lab/bringup"
)

// handset is one machine under the soak.
type handset struct {
	r       *runner
	name    string
	order   sending // of its senders, without place and marker
	markers map[string]attack.Marker
	bare    bool // its senders run outside the control group: what is keyed to it is not there
}

// poll asks until ok, for at most limit.
func poll(ctx context.Context, limit time.Duration, what string, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		done, err := ok()
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("cannot wait longer for %s: %w", what, ctx.Err()), err)
		case <-time.After(8 * time.Millisecond):
		}
	}
}

// recovery bounds how long a handset may take to admit its gateway again after a death or a boot.
const recovery = 30 * time.Second

// open waits until the handset runs all its daemons and its gate admits a gateway: a boot that needs the PIN gets it. dead is
// the daemon that was killed and how often it had been started again before; "" for none.
func (h *handset) open(ctx context.Context, dead string, restarts int) (m netns.Machine, err error) {
	unlocked := 0
	err = poll(ctx, recovery, h.name+" to admit its gateway", func() (bool, error) {
		if m, err = h.r.w.Machine(ctx, h.name); err != nil || m.State != netns.On {
			return false, errors.Join(err, errors.New("it is "+string(m.State)+" "+m.Reason))
		}
		at := func(path string) string { return filepath.Join(m.Paths.Root, path) }
		// The key store's door is there before its keeper: a PIN that comes too early waits.
		if _, err := os.Stat(at("/run/rempart/keyd.sock")); err != nil {
			return false, err
		}
		if unlocked != m.PID && dead == "" {
			if _, err := h.r.w.Phone(ctx, h.name, []byte(h.r.o.PIN+"\n"), "unlock"); err != nil {
				return false, err
			}
			unlocked = m.PID
		}
		boot, err := report.Read(at(report.Path))
		if err != nil {
			return false, err
		}
		if dead != "" {
			if d, _ := boot.Daemon(dead); !d.Running || d.Restarts <= restarts {
				return false, errors.New(dead + " is not there again")
			}
		}
		if boot.Closed || boot.ReadyNS == 0 {
			return false, errors.New("closed: " + boot.Reason)
		}
		text, err := os.ReadFile(at(report.JournalPath))
		if err != nil {
			return false, err
		}
		return admitted(string(text)), errors.New("its gate is closed")
	})
	return m, err
}

// admitted tells from a journal whether the last that happened to the gate is an admission.
func admitted(journal string) bool {
	last := func(event string) int { return strings.LastIndex(journal, " event="+event+" ") }
	swap := last("gate.swap")
	return swap > last("gate.close") && swap > last("gate.attach")
}

// daemons are the names of those that the handset's init has started.
func daemons(m netns.Machine) (names []string, err error) {
	boot, err := report.Read(filepath.Join(m.Paths.Root, report.Path))
	if err != nil {
		return nil, err
	}
	for _, d := range boot.Daemons {
		names = append(names, d.Name)
	}
	return names, nil
}

// pidOf is a daemon's number on the desk: from its control group alone.
func pidOf(m netns.Machine, daemon string) (int, error) {
	text, err := os.ReadFile(filepath.Join(m.Paths.Cgroup, daemon, "cgroup.procs"))
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		return 0, fmt.Errorf("cannot find %s of %s: it does not run", daemon, m.Name)
	}
	return pid, nil
}

// kill ends one daemon of an open handset and waits until it is open again.
func (h *handset) kill(ctx context.Context, m netns.Machine, daemon string) error {
	boot, err := report.Read(filepath.Join(m.Paths.Root, report.Path))
	if err != nil {
		return err
	}
	d, _ := boot.Daemon(daemon)
	pid, err := pidOf(m, daemon)
	if err != nil {
		return err
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return fmt.Errorf("cannot kill %s: %w", daemon, err)
	}
	if daemon != "keyd" {
		_, err = h.open(ctx, daemon, d.Restarts)
		return err
	}
	// The handset restarts itself.
	return poll(ctx, recovery, h.name+" to restart", func() (bool, error) {
		now, err := h.r.w.Machine(ctx, h.name)
		return err == nil && now.State == netns.On && now.PID != m.PID, err
	})
}

// killInit cuts the handset off at its root, and switches it on again.
func (h *handset) killInit(ctx context.Context) error {
	if err := h.r.w.Kill9(ctx, h.name); err != nil {
		return err
	}
	_, err := h.r.w.PowerOn(ctx, h.name)
	return err
}

// round kills each daemon once: those that init starts again, then keyd, then, after the boot, init. told is called after each.
func (h *handset) round(ctx context.Context, told func(daemon string) error) error {
	m, err := h.open(ctx, "", 0)
	if err != nil {
		return err
	}
	names, err := daemons(m)
	if err != nil {
		return err
	}
	before, err := lookAt(m.PID)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == "keyd" {
			continue
		}
		if err := h.kill(ctx, m, name); err != nil {
			return fmt.Errorf("after the death of %s: %w", name, err)
		}
		if err := told(name); err != nil {
			return err
		}
	}
	after, err := lookAgain(ctx, m.PID, before)
	if err != nil {
		return err
	}
	if err := h.r.grew("init", "deaths of daemons", len(names)-1, before, after); err != nil {
		return err
	}
	if err := errors.Join(h.kill(ctx, m, "keyd"), told("keyd")); err != nil {
		return fmt.Errorf("after the death of keyd: %w", err)
	}
	if _, err := h.open(ctx, "", 0); err != nil {
		return fmt.Errorf("after the death of keyd: %w", err)
	}
	if err := errors.Join(h.killInit(ctx), told("init")); err != nil {
		return fmt.Errorf("after the death of init: %w", err)
	}
	return nil
}

// sendFrom keeps one sender of a place running for as long as ctx lasts, from boot to boot.
func (h *handset) sendFrom(ctx context.Context, place string) {
	for ctx.Err() == nil {
		cmd, err := h.sender(ctx, place)
		if err == nil {
			h.run(cmd)
		}
		select { // the handset is off, or has no network yet
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (h *handset) sender(ctx context.Context, place string) (*exec.Cmd, error) {
	order := h.order
	order.Place, order.Marker = place, h.markers[place].String()
	if place == fromRed {
		order.EveryUS = int(redEvery.Microseconds())
	}
	text, err := json.Marshal(order)
	if err != nil {
		return nil, err
	}
	argv := []string{h.r.self, "soak-send", string(text)}
	if place != fromOutside && !h.bare {
		where := netns.Where{Machine: h.name, Colour: place}
		if place == fromRed {
			where.App = scenario.TunnelApp // what is no app is refused before it meets the rest
		}
		return h.r.w.Command(ctx, where, argv...)
	}
	m, err := h.r.w.Machine(ctx, h.name)
	if err != nil {
		return nil, err
	}
	if m.State != netns.On {
		return nil, netns.ErrOff
	}
	network := m.Paths.Black
	if place == fromRed {
		network = m.Paths.Red
	}
	if _, err := os.Stat(network); err != nil {
		return nil, err
	}
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + network}, argv...)...), nil
}

// run runs a sender to its end and adds up what it says.
func (h *handset) run(cmd *exec.Cmd) {
	out, err := cmd.StdoutPipe()
	if err != nil || cmd.Start() != nil {
		return
	}
	var t tally
	for lines := bufio.NewScanner(out); lines.Scan(); {
		// A sender that was killed in the middle of a line has told the rest before.
		_ = json.Unmarshal(bytes.TrimSpace(lines.Bytes()), &t)
	}
	_ = cmd.Wait() // killed with its handset, most of the time
	h.r.sent(t)
}

// swap runs swaps in tunneld's place, with the true one stopped.
func (h *handset) swap(ctx context.Context, order swapping, told func(swapped) error) (err error) {
	m, err := h.open(ctx, "", 0)
	if err != nil {
		return err
	}
	s, err := bringup.StatusOf(ctx, h.r.w, h.name)
	if err != nil {
		return err
	}
	if s.Gate == nil {
		return errors.New("cannot swap: egressd does not answer")
	}
	order.Gateway = s.Gate.Admitted
	pid, err := pidOf(m, "tunneld")
	if err != nil {
		return err
	}
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		return fmt.Errorf("cannot stop tunneld: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Kill(pid, unix.SIGCONT)) }()
	text, err := json.Marshal(order)
	if err != nil {
		return err
	}
	cmd, err := h.r.w.InPlaceOf(ctx, h.name, "tunneld", h.r.self, "soak-swap", string(text))
	if err != nil {
		return err
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	var tellErr error
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var s swapped
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			tellErr = errors.Join(tellErr, err)
			continue
		}
		tellErr = errors.Join(tellErr, told(s))
	}
	if err := cmd.Wait(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("the swaps ended: %w: %s", errors.Join(err, tellErr), strings.TrimSpace(errs.String()))
	}
	return tellErr
}
