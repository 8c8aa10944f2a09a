package main

import (
	"encoding/json"
	"os"
	"strconv"
	"testing"
	"time"

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
