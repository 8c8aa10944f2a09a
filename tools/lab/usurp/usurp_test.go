package usurp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/netns"
	"rempart/board/scenario"
	"rempart/board/scenario/attack"
	"rempart/internal/proof"
	"rempart/tools/lab/bringup"
	"rempart/tools/lab/leak"
)

func TestMain(m *testing.M) {
	netns.Stage()
	os.Exit(m.Run())
}

func worldUp(t *testing.T) (*netns.World, string) {
	t.Helper()
	proof.NeedRoot(t)
	proof.Need(t, "swtpm", "swtpm_setup", "tcpdump", "tc", "nsenter")
	bin := os.Getenv("REMPART_BIN")
	if bin == "" {
		proof.Missing(t, "REMPART_BIN, the folder of the built programs (run make scenarios)")
	}
	state := t.TempDir()
	w, err := netns.Start(t.Context(), "usurp", state)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := errors.Join(w.Release(), netns.Down(ctx, "usurp")); err != nil {
			t.Error(err)
		}
	})
	if err := bringup.Up(t.Context(), w, bringup.Options{State: state, Bin: bin}, nil); err != nil {
		t.Fatal(err)
	}
	return w, bin
}

// TestHostileTunneld: a program in tunneld's place gets nothing out but what it may send to its gateway. Its twin, in the same
// world, is the same program on a handset without the layers.
func TestHostileTunneld(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "TestHostileTunneld/twin")
	w, bin := worldUp(t)
	t.Setenv("TMPDIR", t.TempDir())
	t.Run("in its place", func(t *testing.T) { inItsPlace(t, w, bin) })
	results, err := Run(t.Context(), Options{World: w, Machine: "a", Bin: bin})
	if err != nil {
		t.Fatal(err)
	}
	left := 0
	for _, r := range results {
		if !r.Held() {
			t.Errorf("%s, IPv%d, filter %v: %s (%s)", r.Row, r.Family, r.Sandboxed, r.Outcome, r.Detail)
		}
		if r.Outcome == Left {
			left++
		}
	}
	// Without these the capture, or the place, was not what it is said to be.
	if len(results) < 150 || left < 8 {
		t.Errorf("%d tries, %d left to it", len(results), left)
	}
	t.Run("twin", func(t *testing.T) {
		m, err := w.Machine(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		if err := leak.Strip(t.Context(), w, m, scenario.AllLayers()); err != nil {
			t.Fatal(err)
		}
		bare, err := Run(t.Context(), Options{World: w, Machine: "b", Bin: bin, Bare: true, Rows: func(r Row) bool { return r.Twin }})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range bare {
			if r.Seen == 0 {
				t.Errorf("%s, IPv%d: nothing was seen where nothing stops it: %s (%s)", r.Row, r.Family, r.Outcome, r.Detail)
			}
		}
		if len(bare) < 30 {
			t.Errorf("%d tries of the twin", len(bare))
		}
	})
}

// inItsPlace compares what the kernel says of the program and of tunneld.
func inItsPlace(t *testing.T, w *netns.World, bin string) {
	m, err := w.Machine(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	procs, err := os.ReadFile(filepath.Join(m.Paths.Cgroup, "tunneld", "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	want := self("/proc/" + strings.Fields(string(procs))[0])
	for _, sandboxed := range []bool{false, true} {
		text, err := json.Marshal(order{Row: Row{Kind: kindSelf}, Sandboxed: sandboxed, Job: attack.Job{Kind: attack.UDP, Family: attack.IPv4, Marker: attack.Marker{1},
			Target: netip.MustParseAddr("192.0.2.1")}.Args()})
		if err != nil {
			t.Fatal(err)
		}
		cmd, err := w.InPlaceOf(t.Context(), "a", "tunneld", filepath.Join(bin, "rempart-lab"), "usurp-attempt", string(text))
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		var r result
		if err := json.Unmarshal(out, &r); err != nil {
			t.Fatal(err)
		}
		expect := want
		if !sandboxed {
			expect = strings.Replace(want, "Seccomp: 2", "Seccomp: 0", 1)
		}
		if r.Refused != expect || !strings.Contains(want, "Uid: 903 903 903 903") || !strings.Contains(want, "CapBnd: 0000000000000000") {
			t.Errorf("filter %v: the program is\n%s\nand tunneld\n%s", sandboxed, r.Refused, expect)
		}
	}
	for _, daemon := range []string{"nobody", "init"} {
		if cmd, err := w.InPlaceOf(t.Context(), "a", daemon, filepath.Join(bin, "rempart-lab"), "help"); err == nil {
			if out, err := cmd.CombinedOutput(); err == nil {
				t.Errorf("in the place of %s: %s", daemon, out)
			}
		}
	}
}

func TestHeld(t *testing.T) {
	for _, c := range []struct {
		want, got Outcome
		sandboxed bool
		held      bool
	}{
		{Stopped, Stopped, false, true}, {Stopped, Left, false, false}, {Stopped, Leaked, true, false}, {Stopped, Broken, true, false}, {Stopped, Granted, false, false},
		{Left, Left, false, true}, {Left, Stopped, false, false}, {Left, Stopped, true, true}, {Left, Leaked, true, false}, {Left, Broken, true, false},
	} {
		if got := (Result{Want: c.want, Outcome: c.got, Sandboxed: c.sandboxed}).Held(); got != c.held {
			t.Errorf("%+v: held %v", c, got)
		}
	}
}

func TestToGateway(t *testing.T) {
	g := &test{gateway: [2]netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:113::1")}}
	for what, want := range map[string]bool{
		"IPv4 fragment, 203.0.113.11 to 203.0.113.1":                 true,
		"UDP, 192.0.2.77:1 to 203.0.113.1:51820":                     true,
		"IPv4 fragment, 203.0.113.11 to 203.0.113.10":                false,
		"IPv4 fragment, 203.0.113.1 to 203.0.113.11":                 false,
		"UDP, 203.0.113.11:1 to 203.0.113.1:53":                      false,
		"IP protocol 44, 2001:db8:113::11 to 2001:db8:113::1":        false, // another family
		"bytes behind the IPv4 packet, 203.0.113.11 to 198.51.100.7": false,
	} {
		if got := g.toGateway(what, attack.IPv4); got != want {
			t.Errorf("%q: %v", what, got)
		}
	}
	if !g.toGateway("UDP, [2001:db8:dead::beef]:1 to [2001:db8:113::1]:51820", attack.IPv6) {
		t.Error("the gateway's IPv6 address was not seen")
	}
}

// Every field reaches the other end of a link without layers, set: what the rows try is what they say.
func TestFieldsAreSet(t *testing.T) {
	proof.NeedRoot(t)
	fields := map[string]bool{}
	for _, r := range Rows() {
		if r.Kind == kindField {
			fields[r.field()] = true
		}
	}
	if want := []string{"UDP-Lite", "class", "destination", "flowlabel", "fragments", "hop-by-hop", "mark", "options", "payload", "source", "sourceport", "ttl"}; len(fields) != len(want) ||
		slices.ContainsFunc(want, func(f string) bool { return !fields[f] }) {
		t.Fatalf("fields %v, want %v", fields, want)
	}
	ln, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback, Port: tunnelPort})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	raw, err := ln.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(raw.Control(func(fd uintptr) {
		for _, o := range []int{unix.IPV6_RECVHOPLIMIT, unix.IPV6_RECVTCLASS} {
			err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, o, 1))
		}
	}), err)
	if err != nil {
		t.Fatal(err)
	}
	job := attack.Job{Family: attack.IPv6, Marker: attack.Marker{9}, Target: netip.IPv6Loopback()}
	for name, want := range map[string]struct {
		control byte
		value   byte
	}{"ttl": {unix.IPV6_HOPLIMIT, 77}, "class": {unix.IPV6_TCLASS, 0xb8}, "payload": {}, "sourceport": {}, "flowlabel": {}, "fragments": {}, "mark": {}} {
		if r := field(name, job); r.Sent != 1 || r.Refused != "" {
			t.Errorf("%s: %+v", name, r)
			continue
		}
		data, oob := make([]byte, 8192), make([]byte, 256)
		if err := ln.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		n, nc, _, from, err := ln.ReadMsgUDP(data, oob)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		messages, err := unix.ParseSocketControlMessage(oob[:nc])
		if err != nil {
			t.Fatal(err)
		}
		found := want.control == 0
		for _, m := range messages {
			found = found || m.Header.Type == int32(want.control) && m.Data[0] == want.value
		}
		if !found {
			t.Errorf("%s: control messages %+v", name, messages)
		}
		if name == "sourceport" && from.Port != 1234 || name == "payload" && n != 16 || name == "fragments" && n < 4000 {
			t.Errorf("%s: %d bytes from %v", name, n, from)
		}
	}
}

// A child's child is what says the result.
func TestAttemptReportsRefusals(t *testing.T) {
	text, err := json.Marshal(order{Row: Row{Name: "UDP", Kind: string(attack.UDP)}, Job: attack.Job{Kind: attack.UDP, Family: attack.IPv4, Marker: attack.Marker{1},
		Target: netip.MustParseAddr("127.0.0.1"), Count: 2}.Args()})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := Attempt(t.Context(), string(text), &out); err != nil {
		t.Fatal(err)
	}
	var r result
	if err := json.Unmarshal([]byte(out.String()), &r); err != nil || r.Sent == 0 {
		t.Errorf("%s: %+v, %v", out.String(), r, err)
	}
	for _, bad := range []string{"", "{}", `{"Job":["smoke"]}`} {
		if err := Attempt(t.Context(), bad, &out); err == nil {
			t.Errorf("%q was attempted", bad)
		}
	}
	var said result
	said.did("send", &exec.Error{Err: unix.EPERM})
	if said.Refused != "send: EPERM" {
		t.Errorf("a refusal reads %q", said.Refused)
	}
	said.did("ask", fmt.Errorf("no"))
	if said.Refused != "ask: no" {
		t.Errorf("a refusal reads %q", said.Refused)
	}
}
