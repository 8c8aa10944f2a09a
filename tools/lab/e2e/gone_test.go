package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/netns"
	"rempart/internal/proof"
)

// inGroup returns the one process of a machine's control group, as the desk
// numbers it.
func inGroup(t *testing.T, dir string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	pids := strings.Fields(string(text))
	if len(pids) != 1 {
		t.Fatalf("%s has the processes %v, want one", dir, pids)
	}
	pid, err := strconv.Atoi(pids[0])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func kill9(t *testing.T, pid int) time.Time {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	return time.Now()
}

// order fails the test unless the texts are in the console after from, in
// their order, and returns the rest.
func order(t *testing.T, console string, texts ...string) {
	t.Helper()
	rest := console
	for _, text := range texts {
		_, after, found := strings.Cut(rest, text)
		if !found {
			t.Fatalf("the journal has no %q, or not after the one before it, of %q:\n%s", text, texts, console)
		}
		rest = after
	}
}

// killedDaemons kills every daemon whose death the handset survives: it is
// closed before the daemon starts again, and whole again soon.
func killedDaemons(t *testing.T, w *world) {
	proof.SFR(t, "FPT_FLS.1", "")
	for _, name := range []string{"egressd", "watchd", "tunneld", "voiced"} {
		before := len(w.console(t, "a"))
		m := w.machine(t, "a")
		at := kill9(t, inGroup(t, filepath.Join(m.Paths.Cgroup, name)))
		s := w.await(t, "a", "whole again", 10*time.Second, func(s seen) bool {
			if !ready(s) {
				return false
			}
			d, ok := s.Boot.Daemon(name)
			return ok && d.Restarts > 0
		})
		took := time.Since(at)
		t.Logf("%s: whole again %s after kill -9", name, took.Round(time.Millisecond))
		if d, _ := s.Boot.Daemon(name); d.Restarts != 1 || d.LastExit != "killed by SIGKILL" {
			t.Errorf("%s after kill -9: %+v", name, d)
		}
		if text := w.phone(t, "a", "", "status"); !strings.Contains(text.out, name+" was started again, 1 since the boot: killed by SIGKILL\n") {
			t.Errorf("status does not tell of the restart: %s", text)
		}
		order(t, w.console(t, "a")[before:],
			fmt.Sprintf(`event=phone.close subject="%s died: killed by SIGKILL" outcome=success`, name),
			"event=daemon.death subject="+name,
			"event=daemon.start subject="+name+" outcome=success",
			`event=phone.release subject="all daemons run" outcome=success`)
		if now := w.machine(t, "a"); now.PID != m.PID {
			t.Errorf("kill -9 of %s restarted the handset", name)
		}
	}
	w.talks(t, "a", "b")
}

// keystoreLost ends keyd and then the TPM. Each time the handset must restart
// closed and stay so until the PIN is given again.
func keystoreLost(t *testing.T, w *world) {
	for what, one := range map[string]struct {
		victim func(netns.Machine) string
		words  []string
	}{
		"keyd": {func(m netns.Machine) string { return filepath.Join(m.Paths.Cgroup, "keyd") },
			[]string{`event=phone.close subject="keyd died: killed by SIGKILL" outcome=success`}},
		"swtpm": {func(m netns.Machine) string { return filepath.Join(filepath.Dir(m.Paths.Cgroup), "hw") },
			[]string{`daemon=keyd event=keystore.failed subject=keyd outcome=failure reason="tpm is gone`,
				`event=phone.close subject="keyd died: exit code 1" outcome=success`}},
	} {
		m := w.machine(t, "b")
		at := kill9(t, inGroup(t, one.victim(m)))
		s := w.await(t, "b", "restarted", 10*time.Second, func(s seen) bool {
			return w.machine(t, "b").PID != m.PID && s.Keystore.State == "sealed" && s.Boot != nil && s.Boot.ReadyNS != 0 && !s.Boot.Closed
		})
		t.Logf("%s: restarted and locked %s after kill -9", what, time.Since(at).Round(time.Millisecond))
		last, err := os.ReadFile(filepath.Join(w.state, "machines", "b", "console.log.1"))
		if err != nil {
			t.Fatal(err)
		}
		order(t, string(last), append(one.words, `event=phone.end subject="the handset must restart: keyd ended`)...)
		// A line of its own, which init may read after the death that it tells of.
		if what == "swtpm" && !strings.Contains(string(last), "\nkeyd: tpm is gone") {
			t.Errorf("keyd does not say why it ended:\n%s", last)
		}
		time.Sleep(500 * time.Millisecond)
		if s = w.look(t, "b"); s.Gate == nil || s.Gate.Admitted != "" || s.Tunnel.State != "locked" || s.Keystore.State != "sealed" {
			t.Errorf("after the death of %s and before the PIN: %+v", what, s)
		}
		w.unlock(t, "b")
		w.awaitReady(t, "b")
	}
	w.talks(t, "a", "b")
}

// gatewayGone switches the gateway off.
func gatewayGone(t *testing.T, w *world) {
	off := time.Now()
	if err := w.PowerOff(t.Context(), "gateway", 3*time.Second); err != nil {
		t.Fatal(err)
	}
	s := w.await(t, "a", "without its tunnel, retrying", 40*time.Second, func(s seen) bool {
		return s.Tunnel.State != "up" && s.Tunnel.Retries >= 2
	})
	t.Logf("noticed, %d retries: %s, %s after the gateway went", s.Tunnel.Retries, s.Tunnel.Reason, time.Since(off).Round(time.Millisecond))
	if s.Tunnel.Reason == "" || s.Tunnel.Since.Before(off.Add(-30*time.Second)) || s.Tunnel.Since.After(time.Now()) {
		t.Errorf("status of a handset whose gateway is gone: %+v", s.Tunnel)
	}
	if text := w.phone(t, "a", "", "status"); !strings.Contains(text.out, "since "+s.Tunnel.Since.Format(time.RFC3339)) {
		t.Errorf("status does not say since when: %s", text)
	}
	phone := w.await(t, "a", "unregistered", 40*time.Second, func(s seen) bool { return s.Telephone != nil && s.Telephone.Registration.State != "registered" })
	if r := phone.Telephone.Registration; r.Reason == "" || r.Since == 0 {
		t.Errorf("the telephone of a handset whose gateway is gone: %+v", r)
	}
	if again := phone.Tunnel; again.Retries < s.Tunnel.Retries || !again.Since.Equal(s.Tunnel.Since) {
		t.Errorf("later the status has forgotten since when: %+v, before %+v", again, s.Tunnel)
	}
	if _, err := w.PowerOn(t.Context(), "gateway"); err != nil {
		t.Fatal(err)
	}
	w.await(t, "gateway", "locked", 10*time.Second, func(s seen) bool { return s.Keystore.State == "sealed" })
	w.unlock(t, "gateway")
	back := time.Now()
	for _, name := range []string{"gateway", "a", "b", "c"} {
		w.await(t, name, "ready", 40*time.Second, ready)
	}
	t.Logf("all tunnels back %s after the gateway was unlocked", time.Since(back).Round(time.Millisecond))
	w.talks(t, "c", "b")
}

// hungEgressd stops egressd without ending it: init must not wait for it, and
// must not need a restart either.
func hungEgressd(t *testing.T, w *world) {
	before := len(w.console(t, "b"))
	m := w.machine(t, "b")
	if err := unix.Kill(inGroup(t, filepath.Join(m.Paths.Cgroup, "egressd")), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	w.await(t, "b", "whole again", 20*time.Second, func(s seen) bool {
		if !ready(s) {
			return false
		}
		d, _ := s.Boot.Daemon("egressd")
		return d.Restarts > 0
	})
	t.Logf("whole again %s after egressd hung", time.Since(at).Round(time.Millisecond))
	order(t, w.console(t, "b")[before:], `event=phone.close subject="egressd does not answer`, "event=daemon.death subject=egressd", "event=daemon.start subject=egressd",
		`event=phone.release subject="all daemons run"`)
	if now := w.machine(t, "b"); now.PID != m.PID {
		t.Error("a hanging egressd restarted the handset")
	}
}
