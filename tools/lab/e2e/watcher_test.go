package e2e_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/netns"
	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/vpn/watch"
)

// radioUp looks at a handset's radio from the desk: nobody in the handset is asked.
func radioUp(t *testing.T, m netns.Machine) (up bool) {
	t.Helper()
	black, err := link.Open(m.Paths.Black)
	if err != nil {
		t.Fatal(err)
	}
	defer black.Close()
	err = black.Do(func() error {
		list, err := link.List()
		for _, d := range list {
			up = up || d.Name == m.Radio.Device && d.Up
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return up
}

// watcher: a watcher that is killed or stopped is a difference, and so is an init that is stopped. Each takes the radios down,
// and they come up again when all was read back; nobody has to restart the handset.
func watcher(t *testing.T, w *world) {
	proof.SFR(t, "FPT_FLS.1", "doctors: a real difference stays down")
	m := w.machine(t, "a")
	group := func(name string) string { return filepath.Join(m.Paths.Cgroup, name) }
	freeze := func(name, state string) error {
		return os.WriteFile(filepath.Join(group(name), "cgroup.freeze"), []byte(state), 0)
	}
	const soon = 500 * time.Millisecond
	late := watch.Silence + watch.Beat + soon // two missing beats, and up to one until the next look
	for _, c := range []struct {
		name   string
		stop   func() error
		within time.Duration
		resume func() error // nil: it recovers by itself
	}{
		{"watchd is killed", func() error { return unix.Kill(inGroup(t, group("watchd")), unix.SIGKILL) }, soon, nil},
		{"watchd is stopped", func() error { return unix.Kill(inGroup(t, group("watchd")), unix.SIGSTOP) }, late, nil},
		{"watchd is frozen", func() error { return freeze("watchd", "1") }, late, nil},
		{"init is stopped", func() error { return unix.Kill(m.PID, unix.SIGSTOP) }, late, func() error { return unix.Kill(m.PID, unix.SIGCONT) }},
		{"watchd and egressd are killed at once", func() error {
			watchd, egressd := inGroup(t, group("watchd")), inGroup(t, group("egressd"))
			if err := unix.Kill(watchd, unix.SIGKILL); err != nil {
				return err
			}
			return unix.Kill(egressd, unix.SIGKILL)
		}, soon, nil},
	} {
		w.awaitReady(t, "a")
		if !radioUp(t, m) {
			t.Fatalf("%s: the radio is down before", c.name)
		}
		if c.resume != nil {
			defer c.resume()
		}
		at := time.Now()
		if err := c.stop(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		for radioUp(t, m) {
			if time.Since(at) > c.within {
				t.Fatalf("%s: the radio is up after %s\n%s", c.name, c.within, w.console(t, "a"))
			}
			time.Sleep(time.Millisecond)
		}
		down := time.Since(at)
		if c.resume != nil {
			if err := c.resume(); err != nil {
				t.Fatal(err)
			}
		}
		w.await(t, "a", "whole again", 20*time.Second, func(s seen) bool { return ready(s) && radioUp(t, m) })
		t.Logf("%s: radio down after %s, whole again after %s", c.name, down.Round(time.Millisecond), time.Since(at).Round(time.Millisecond))
	}
	if now := w.machine(t, "a"); now.PID != m.PID {
		t.Error("the handset was restarted")
	}
	w.talks(t, "a", "b")
}
