package scenario

import (
	"encoding/json"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"rempart/board/scenario/attack"
	"rempart/board/scenario/watch"
)

// TestRowsHoldTheIssuesList names every attempt that the leak test must have.
func TestRowsHoldTheIssuesList(t *testing.T) {
	rows := Rows(fakeSite())
	for _, from := range []Where{Red, Black} {
		for _, k := range []attack.Kind{attack.UDP, attack.TCP, attack.ICMP, attack.DNS, attack.BindToDevice, attack.Packet,
			attack.PacketBypass, attack.XDP, attack.Multicast, attack.Raw} {
			for _, f := range []attack.Family{attack.IPv4, attack.IPv6} {
				if !slices.ContainsFunc(rows, func(r Row) bool {
					return r.From == from && r.Kind == k && r.Event == None && slices.Equal(r.Family, []attack.Family{f})
				}) {
					t.Errorf("no row: %s from %s over IPv%d", k, from, f)
				}
			}
		}
	}
	for _, e := range []Event{Kill, HotPlug, Restart, KillInit} {
		if !slices.ContainsFunc(rows, func(r Row) bool { return r.Event == e && len(r.Family) == 2 }) {
			t.Errorf("no row with event %q over both families", e)
		}
	}
	for _, d := range fakeSite().Daemons {
		if !slices.ContainsFunc(rows, func(r Row) bool { return r.Event == Kill && r.Daemon == d && r.Kind == attack.Constant }) {
			t.Errorf("%s is never killed", d)
		}
	}
	if rows[len(rows)-1].Event != KillInit {
		t.Error("init is not killed last")
	}
	other := 0
	for _, r := range rows {
		if r.To == Gateway && r.Kind == attack.UDP && r.Port == 51821 {
			other++
		}
	}
	if other != 4 {
		t.Errorf("%d rows to the gateway's address on another port, want 4", other)
	}
}

func TestEveryRowIsWellFormed(t *testing.T) {
	s, names := fakeSite(), map[string]bool{}
	for _, r := range Rows(s) {
		if names[r.Name] {
			t.Errorf("two rows are called %q", r.Name)
		}
		names[r.Name] = true
		if len(r.Stops) == 0 || len(r.Want) == 0 || slices.Contains(r.Want, Leaked) || slices.Contains(r.Want, Broken) {
			t.Errorf("%s: stops %v, wants %v", r.Name, r.Stops, r.Want)
		}
		if slices.Contains(r.Want, Tunnelled) != (r.From == Red) {
			t.Errorf("%s: tunnelled is allowed from red only", r.Name)
		}
		if slices.Contains(r.Stops, Jail) != (r.From == Red) {
			t.Errorf("%s: a twin from red needs a radio, others must not have it: %v", r.Name, r.Stops)
		}
		for _, f := range r.Family {
			j := r.job(s, f, newMarker())
			got, err := attack.Parse(j.Args())
			if err != nil || !reflect.DeepEqual(got, j) {
				t.Errorf("%s: %v: %+v, want %+v", r.Name, err, got, j)
			}
		}
	}
}

func TestGroupsKeepWorldsApart(t *testing.T) {
	rows := Rows(fakeSite())
	all := groups(rows)
	seen := map[int]bool{}
	for _, g := range all {
		for _, i := range g {
			if seen[i] {
				t.Fatalf("row %d is in two groups", i)
			}
			seen[i] = true
			if (rows[i].From == Red) != (rows[g[0]].From == Red) || (rows[i].Event == None) != (rows[g[0]].Event == None) {
				t.Errorf("%s shares a twin with %s", rows[i].Name, rows[g[0]].Name)
			}
		}
	}
	if len(seen) != len(rows) || len(all) != 3 {
		t.Errorf("%d of %d rows in %d groups", len(seen), len(rows), len(all))
	}
	if last := all[2][len(all[2])-1]; rows[last].Event != KillInit {
		t.Errorf("%s comes after init's death", rows[last].Name)
	}
	if got := strip([]Row{{Stops: []Layer{Gate, Floor}}, {Stops: []Layer{Floor, Guard}}}); !slices.Equal(got, []Layer{Gate, Floor, Guard}) {
		t.Errorf("stripped %v", got)
	}
}

func TestSiteIsChecked(t *testing.T) {
	for name, change := range map[string]func(*Site){
		"no radio":         func(s *Site) { s.Radio = "" },
		"no next hop":      func(s *Site) { s.NextHop = nil },
		"no tunnel port":   func(s *Site) { s.TunnelPort = 0 },
		"no resolver":      func(s *Site) { s.Resolver6 = netip.Addr{} },
		"families swapped": func(s *Site) { s.Host4, s.Host6 = s.Host6, s.Host4 },
		"no classes":       func(s *Site) { s.Rules = watch.Rules{} },
	} {
		s := fakeSite()
		change(&s)
		if s.check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestReportsJSONIsStable: scripts read `rempart-lab leaktest --json`. A change
// of the file is a change of ReportVersion, unless it only adds fields.
func TestReportsJSONIsStable(t *testing.T) {
	l := &LeakReport{Seconds: 1.5, Outside: watch.Summary{Interfaces: []string{"air"}, Frames: 2, Classes: []watch.ClassCount{}, Ended: true}, Rows: []RowResult{
		{Name: "UDP from black, IPv4", From: Black, Kind: "udp", Family: "IPv4", Verdict: Dropped, Detail: "wrong-cgroup", Sent: 3,
			Layers: []Layer{Gate, Floor}, Twin: TwinResult{Verdict: Leaked, Detail: "3 frames", Seen: 3, Stripped: []Layer{Gate, Floor}}, want: []Verdict{Dropped}},
		{Name: "TCP from black, IPv4", From: Black, Kind: "tcp", Family: "IPv4", Verdict: Leaked, Detail: "1 frames", Sent: 1, Seen: 1, Layers: []Layer{Gate}, want: []Verdict{Dropped}},
	}}
	l.finish()
	got, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/report.json")
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(string(want)) != string(got) {
		t.Errorf("the report reads\n%s", got)
	}
}

func TestAnEmptyReportDoesNotPass(t *testing.T) {
	l := &LeakReport{}
	l.finish()
	if l.Passed || l.Err() == nil {
		t.Error("a leak test without rows passes")
	}
}
