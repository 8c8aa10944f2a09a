package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/boot/stage"
	"rempart/internal/journal"
)

func TestPauseDoublesAndResets(t *testing.T) {
	d := &daemon{}
	d.since = mono()
	var got []time.Duration
	for range 10 {
		got = append(got, d.nextPause())
	}
	if got[0] != firstPause || got[1] != 2*firstPause || got[9] != longPause {
		t.Errorf("pauses %v", got)
	}
	d.since = mono() - int64(steadyAfter) - 1
	if p := d.nextPause(); p != firstPause {
		t.Errorf("after a steady life: %v", p)
	}
}

// TestTableIsThatOfTheStages: every program that is measured as a daemon has exactly one row here, and no row is unmeasured.
func TestTableIsThatOfTheStages(t *testing.T) {
	rows := map[string]int{}
	uids := map[uint32]string{}
	for _, d := range newSupervisor(&phone{}).table {
		rows[d.name]++
		if other, ok := uids[d.uid]; ok || d.uid == 0 {
			t.Errorf("%s runs as uid %d like %s", d.name, d.uid, other)
		}
		uids[d.uid] = d.name
		if d.name != "egressd" && d.name != "watchd" && (len(d.caps) != 0 || d.trusted) {
			t.Errorf("%s holds capabilities %v", d.name, d.caps)
		}
	}
	for _, role := range []string{stage.Handset, stage.Gateway} {
		names, err := stage.Daemons(role)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if rows[n] != 1 {
				t.Errorf("%s has %d rows", n, rows[n])
			}
		}
	}
}

func TestReaperTellsOwnFromOrphan(t *testing.T) {
	p := &phone{journal: journal.New(io.Discard, "init")}
	s := newSupervisor(p)
	p.sup = s
	own := exec.Command("/bin/sh", "-c", "exit 7")
	orphan := exec.Command("/bin/true")
	s.mu.Lock()
	for _, c := range []*exec.Cmd{own, orphan} {
		if err := c.Start(); err != nil {
			s.mu.Unlock()
			t.Fatal(err)
		}
	}
	d := s.daemon("keyd")
	d.pid, d.started = own.Process.Pid, true
	s.mu.Unlock()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		for s.reapOne() {
		}
		if !s.running(d) {
			break
		}
	}
	select {
	case got := <-s.deaths:
		if got.name != "keyd" || got.status.ExitStatus() != 7 || d.lastExit != "exit code 7" {
			t.Errorf("death %+v, last exit %q", got, d.lastExit)
		}
	default:
		t.Fatal("no death was told")
	}
	if s.allUp() {
		t.Error("all up with keyd down")
	}
	for deadline := time.Now().Add(5 * time.Second); unix.Kill(orphan.Process.Pid, 0) == nil && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		s.reapOne()
	}
	if err := unix.Kill(orphan.Process.Pid, 0); err != unix.ESRCH {
		t.Errorf("the orphan is still there: %v", err)
	}
	if len(s.deaths) != 0 {
		t.Error("an orphan was told as a death")
	}
}

func TestChangedProgramDoesNotRun(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	if err := os.WriteFile(path, []byte("a"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := &phone{measured: map[string][32]byte{"sh": {1}}}
	if err := p.unchanged("keyd"); err == nil {
		t.Error("a program that was never measured may run")
	}
	if err := p.unchanged("sh"); err == nil {
		t.Error("a program with another digest may run")
	}
}
