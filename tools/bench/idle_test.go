package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"rempart/board/netns"
	"rempart/tools/lab/bringup"
)

// A process that sleeps is woken; one that only computes is not.
func TestWakeupsAreSeen(t *testing.T) {
	pid := strconv.Itoa(os.Getpid())
	before, err := wakeups(pid)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		time.Sleep(time.Millisecond)
	}
	after, err := wakeups(pid)
	if err != nil || after-before < 10 {
		t.Errorf("20 sleeps woke this process %d times, %v", after-before, err)
	}
	if n, err := wakeups("no-process"); err == nil {
		t.Errorf("a process that is not was woken %d times", n)
	}
	var s idleSample
	if err := s.memory(pid); err != nil || s.MemoryKB < 1000 || s.AnonKB+s.FileKB > s.MemoryKB+1000 {
		t.Errorf("memory of this process: %+v, %v", s, err)
	}
	if v, err := statusField("/proc/self/status", "NoSuchField:"); err == nil {
		t.Errorf("a field that is not there is %d", v)
	}
}

func TestDroppedLeavesTheAdmittedOut(t *testing.T) {
	var s bringup.PhoneStatus
	if dropped(s) != 0 {
		t.Error("without an answer something was dropped")
	}
	text := `{"gate": {"devices": [{"egress": {"admitted": 100, "arp": 2, "class": 3}}, {"egress": {"class": 4}, "ingress": {"class": 50}}]}}`
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	if n := dropped(s); n != 9 {
		t.Errorf("dropped %d, want 9", n)
	}
}

// All but egressd are stopped, and go on afterwards, also when one of them cannot be.
func TestFreezeOthers(t *testing.T) {
	dir := t.TempDir()
	m := netns.Machine{Name: "a", Paths: netns.Paths{Cgroup: dir}}
	for _, g := range []string{"egressd", "init", "tunneld"} {
		if err := os.Mkdir(filepath.Join(dir, g), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	frozen := func(g string) string {
		b, _ := os.ReadFile(filepath.Join(dir, g, "cgroup.freeze"))
		return string(b)
	}
	thaw, err := freezeOthers(m)
	if err != nil || frozen("init") != "1" || frozen("tunneld") != "1" || frozen("egressd") != "" {
		t.Errorf("frozen: init %q, tunneld %q, egressd %q, %v", frozen("init"), frozen("tunneld"), frozen("egressd"), err)
	}
	if err := thaw(); err != nil || frozen("init") != "0" || frozen("tunneld") != "0" {
		t.Errorf("thawed: init %q, tunneld %q, %v", frozen("init"), frozen("tunneld"), err)
	}
	if err := os.Mkdir(filepath.Join(dir, "tunneld", "cgroup.freeze.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "tunneld", "cgroup.freeze")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "tunneld", "cgroup.freeze.d"), filepath.Join(dir, "tunneld", "cgroup.freeze")); err != nil {
		t.Fatal(err)
	}
	thaw, err = freezeOthers(m)
	if err == nil {
		t.Error("one that cannot be frozen was")
	}
	if err := thaw(); err != nil || frozen("init") != "0" {
		t.Errorf("thawed after a failure: init %q, %v", frozen("init"), err)
	}
}
