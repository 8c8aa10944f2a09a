package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/boot/report"
	"rempart/internal/proof"
	"rempart/vpn/egress"
)

// recorded is a handset with an egressd, cgroups and a report, and the ids of the cgroups.
func recorded(t *testing.T) (*phone, *egressd, map[string]uint64) {
	t.Helper()
	p, g := newPhone(t), &egressd{}
	g.serve(t, p.e.socket("egressd"))
	ids := map[string]uint64{}
	for _, name := range []string{"tunneld", "apps/notes", "apps/notes/worker"} {
		dir := filepath.Join(p.e.cgroups, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			t.Fatal(err)
		}
		ids[name] = st.Ino
	}
	b, err := (&report.Report{Devices: []report.Device{{Name: "wwan0", Index: 2}}, Tunnels: []report.Tunnel{{Name: "wg0", Index: 2}}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.e.report, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return p, g, ids
}

func sample(seq, cgroup uint64) egress.Sample {
	return egress.Sample{Seq: seq, Time: 59 * time.Second, Cgroup: cgroup, Ifindex: 2, Program: egress.ProgramLevels, Reason: uint8(egress.LevelNetworkNo),
		Proto: egress.UDP, Src: netip.MustParseAddr("10.77.0.11"), SrcPort: 40000, Dst: netip.MustParseAddr("198.51.100.7"), DstPort: 53}
}

func TestDropsSayWhoWhereAndWhy(t *testing.T) {
	proof.SFR(t, "FAU_GEN.1", "a record with nothing in it")
	p, g, ids := recorded(t)
	if code := p.run("", "drops"); code != 0 || p.stdout.String() != "nothing was refused\n" {
		t.Errorf("an empty record: %d, %s%s", code, &p.stdout, &p.stderr)
	}
	fromTunneld := sample(2, ids["tunneld"])
	gate := sample(3, 0)
	gate.Program, gate.Direction, gate.Reason, gate.Src, gate.Dst = egress.ProgramGate, egress.Ingress, uint8(egress.NoClass), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	call := sample(4, ids["apps/notes/worker"])
	call.Ifindex, call.Src, call.SrcPort = 0, netip.IPv4Unspecified(), 0
	socket := egress.Sample{Seq: 5, Program: egress.ProgramLevels, Reason: uint8(egress.LevelProcess), Cgroup: 1 << 40, Proto: 255}
	late := sample(8, ids["apps/notes"])
	late.Ifindex = 9
	g.add(sample(1, ids["apps/notes"]), fromTunneld, gate, call, socket, late)
	g.leftOut = 77
	g.status.Decided[egress.HookSend][egress.LevelNetworkNo] = 12
	d := egress.Device{Ifindex: 2, Hook: egress.HookTCX}
	d.Counters[egress.Ingress][egress.NoClass] = 3
	g.status.Devices = append(g.status.Devices, d)
	if code := p.run("", "drops"); code != 0 {
		t.Fatalf("%d: %s", code, &p.stderr)
	}
	lines := strings.Split(p.stdout.String(), "\n")
	for i, want := range [][]string{
		{"levels", "notes", "egress wg0", "udp", "10.77.0.11:40000 > 198.51.100.7:53", "the address is in no network of the level table"},
		{"tunneld", "egress wwan0"},
		{"gate", "no socket", "ingress wwan0", "[2001:db8::1]:40000 > [2001:db8::2]:53", "no admitted class has this remote, protocol and port"},
		{"notes/worker", "0.0.0.0 > 198.51.100.7:53"},
		{fmt.Sprintf("cgroup %d", uint64(1)<<40), "protocol 255: the level table does not name this process"},
		{"device 9"},
		{"77 more were counted and not recorded", "2 were overwritten"},
		{"3  gate, wwan0 ingress: no admitted class"},
		{"12  levels, sendmsg: the address is in no network"},
	} {
		for _, w := range want {
			if i >= len(lines) || !strings.Contains(lines[i], w) {
				t.Fatalf("line %d of\n%sdoes not say %q", i, &p.stdout, w)
			}
		}
	}
	if code := p.run("", "drops", "--json"); code != 0 {
		t.Fatalf("%d: %s", code, &p.stderr)
	}
	var v DropView
	if err := json.Unmarshal(p.stdout.Bytes(), &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Drops) != 6 || v.LeftOut != 77 || v.Overwritten != 2 || v.Drops[0].Process != "notes" || v.Drops[0].Reason != "network" || v.Drops[0].Device != "wg0" || len(v.Refused) != 2 {
		t.Errorf("%+v", v)
	}
	// The sample is of the second before the clock of the test.
	if ago := time.Since(v.Drops[0].Time); ago < time.Second || ago > 10*time.Second {
		t.Errorf("the first is %v old", ago)
	}
}

// TestDropsInParts: a record longer than one answer.
func TestDropsInParts(t *testing.T) {
	p, g, ids := recorded(t)
	for n := range uint64(egress.RecordSamples) {
		g.add(sample(n+1, ids["tunneld"]))
	}
	if code := p.run("", "drops", "--json"); code != 0 {
		t.Fatalf("%d: %s", code, &p.stderr)
	}
	var v DropView
	if err := json.Unmarshal(p.stdout.Bytes(), &v); err != nil || len(v.Drops) != egress.RecordSamples {
		t.Fatalf("%d samples, %v", len(v.Drops), err)
	}
	for i, d := range v.Drops {
		if d.Number != uint64(i+1) {
			t.Fatalf("sample %d has number %d", i, d.Number)
		}
	}
}

// TestDropsFollow sees samples as they come, one of them from behind a new egressd, and
// ends cleanly when it is interrupted.
func TestDropsFollow(t *testing.T) {
	for _, asJSON := range []bool{false, true} {
		p, g, ids := recorded(t)
		g.add(sample(1, ids["tunneld"]))
		r, w := io.Pipe()
		p.e.stdout = w
		ctx, interrupt := context.WithCancel(t.Context())
		args := []string{"drops", "--follow"}
		if asJSON {
			args = append(args, "--json")
		}
		ended := make(chan error, 1)
		go func() { ended <- rempart(ctx, args, p.e); w.Close() }()
		lines := bufio.NewScanner(r)
		expect := func(want string) {
			t.Helper()
			if !lines.Scan() || !strings.Contains(lines.Text(), want) {
				t.Fatalf("json %v: %q does not say %q", asJSON, lines.Text(), want)
			}
		}
		expect("tunneld")
		g.add(sample(2, ids["apps/notes"]))
		expect("notes")
		g.die()
		g.add(sample(5, ids["apps/notes/worker"]))
		g.mu.Lock()
		g.leftOut = 9
		g.mu.Unlock()
		g.serve(t, p.e.socket("egressd"))
		expect("notes/worker")
		expect("9")
		interrupt()
		if err := <-ended; err != nil {
			t.Errorf("json %v: after an interrupt: %v", asJSON, err)
		}
		if lines.Scan() {
			t.Errorf("json %v: one more line: %q", asJSON, lines.Text())
		}
	}
}
