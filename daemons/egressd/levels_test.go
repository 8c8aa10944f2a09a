package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/proof"
	"rempart/vpn/egress"
	"rempart/vpn/egress/ask"
	"rempart/vpn/enforce"
)

// levelTable lets the test's own cgroup, init, talk to a network of black.
func (h *handset) levelTable() egress.LevelTable {
	h.t.Helper()
	cookie, err := h.black.Cookie()
	if err != nil {
		h.t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(h.cgroups+"/init", &st); err != nil {
		h.t.Fatal(err)
	}
	return egress.LevelTable{
		Networks: []egress.LevelNetwork{{Name: "net", Netns: cookie, Prefixes: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}},
		Rows:     []egress.LevelRow{{Name: "init", Cgroup: st.Ino, Netns: cookie, Send: 1, Receive: 1}},
	}
}

func (h *handset) levelsInForce(want egress.LevelTable) {
	h.t.Helper()
	r, err := enforce.ReadBackLevels(h.cgroups, want)
	if err := errors.Join(err, r.Err()); err != nil {
		h.t.Error(err)
	}
}

// dialAs tries to connect a UDP socket in black and tells the error's name.
func (h *handset) dialAs(to string) string {
	h.t.Helper()
	err := h.black.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: netip.MustParseAddr(to).As4()})
	})
	var errno unix.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return fmt.Sprint(err)
}

// TestInsideLevels: egressd, with two capabilities in its sandbox, puts the hooks on and
// changes their table; kill -9 leaves the table, the next egressd empties it.
func TestInsideLevels(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the address in the table's network")
	h := inside(t)
	ctx := t.Context()
	p := h.start()
	init := h.dial()
	if _, err := init.Status(ctx); err != nil {
		t.Fatal(err)
	}
	h.levelsInForce(egress.LevelTable{})
	if got := h.dialAs("203.0.113.1"); got != "EPERM" {
		t.Errorf("before a table: %s", got)
	}
	table := h.levelTable()
	s, err := init.Levels(ctx, table)
	if err != nil || s.Levels != table.Digest() || s.Rights != table.Rights() || s.Decided[egress.HookSocket][egress.LevelProcess] == 0 {
		t.Fatalf("%v, %v", s, err)
	}
	h.levelsInForce(table)
	for to, want := range map[string]bool{"203.0.113.1": false, "198.51.100.7": true} {
		if got := h.dialAs(to); (got == "EPERM") != want {
			t.Errorf("connect to %s: %s", to, got)
		}
	}
	drops, err := init.Drops(ctx, 0)
	if err != nil || len(drops.Samples) != 2 || drops.Samples[1].Dst != netip.MustParseAddr("198.51.100.7") || drops.Samples[1].Cgroup != table.Rows[0].Cgroup {
		t.Errorf("drops: %+v, %v", drops, err)
	}
	if drops, err := init.Drops(ctx, drops.Next); err != nil || len(drops.Samples) != 0 {
		t.Errorf("drops behind these: %+v, %v", drops, err)
	}
	if got := h.as(903, "/tunneld", "levels", ""); got != "cannot levels: egressd: uid 903 in /tunneld may not levels" {
		t.Errorf("levels by tunneld: %s", got)
	}
	var refused *ask.RefusedError
	if _, err := init.Levels(ctx, egress.LevelTable{Rows: []egress.LevelRow{{Name: "x"}}}); err == nil || errors.As(err, &refused) {
		t.Errorf("a bad table: %v, want no question", err)
	}

	h.stop(p, unix.SIGKILL)
	h.levelsInForce(table)
	p = h.start()
	init = h.dial()
	if s, err := init.Status(ctx); err != nil || s.Levels != (egress.LevelTable{}).Digest() || s.Decided[egress.HookConnect][egress.LevelNetworkNo] != 1 {
		t.Errorf("the next egressd: %+v, %v", s, err)
	}
	h.levelsInForce(egress.LevelTable{})
	if drops, err := init.Drops(ctx, 0); err != nil || len(drops.Samples) < 2 {
		t.Errorf("the record did not outlive egressd: %+v, %v", drops, err)
	}
	// Hooks that someone took off are put on again with the next table.
	if err := enforce.RemoveLevels(h.cgroups); err != nil {
		t.Fatal(err)
	}
	if _, err := init.Levels(ctx, table); err != nil {
		t.Errorf("a table after the hooks were taken off: %v", err)
	}
	h.levelsInForce(table)
	if state := h.stop(p, unix.SIGTERM); !state.Success() {
		t.Errorf("after SIGTERM: %v", state)
	}
	h.levelsInForce(egress.LevelTable{})
}

// TestInsideIdle: nothing wakes egressd while packets are dropped and no one asks.
func TestInsideIdle(t *testing.T) {
	h := inside(t)
	p := h.start()
	defer h.stop(p, unix.SIGTERM)
	if _, err := h.dial().Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := switches(t, p.Pid)
	for range 2000 {
		if got := h.dialAs("203.0.113.1"); got != "EPERM" {
			t.Fatal(got)
		}
	}
	time.Sleep(200 * time.Millisecond)
	// A thread of the runtime may finish what the answer left: 2000 wakeups it is not.
	if n := switches(t, p.Pid) - before; n > 50 {
		t.Errorf("egressd was woken %d times by 2000 drops", n)
	}
}

// switches is how often the threads of a process have given up a processor.
func switches(t *testing.T, pid int) (n int) {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, task.Name()))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(b)) {
			if count, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
				k, err := strconv.Atoi(strings.TrimSpace(count))
				if err != nil {
					t.Fatal(err)
				}
				n += k
			}
		}
	}
	return n
}
