package main

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"rempart/vpn/egress"
)

func anonymous(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if w := strings.Fields(line); len(w) > 1 && w[0] == "RssAnon:" {
			kb, err := strconv.Atoi(w[1])
			if err != nil {
				t.Fatal(err)
			}
			return kb
		}
	}
	t.Fatal("no RssAnon")
	return 0
}

// What a change has left behind is given back; a question for the status puts nothing off.
func TestLeanGivesBack(t *testing.T) {
	l := newLean()
	defer func() {
		l.timer.Stop()
		debug.SetGCPercent(100)
		debug.SetMemoryLimit(math.MaxInt64)
	}()
	l.asked(egress.OpAdmit)
	garbage := make([]byte, 16<<20)
	for i := range garbage {
		garbage[i] = 1
	}
	full := anonymous(t)
	runtime.KeepAlive(garbage)
	garbage = nil
	for end := time.Now().Add(quietAfter + 2*time.Second); anonymous(t) > full-12<<10; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d KiB before, %d KiB later", full, anonymous(t))
		}
		l.asked(egress.OpStatus)
	}
}
