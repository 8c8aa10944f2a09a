package matrix

import (
	"context"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"rempart/board/scenario"
)

func marshal(v any) []byte { b, _ := json.Marshal(v); return b }

func aloneRows(t *testing.T) []Row {
	t.Helper()
	rows, _ := All(daemons)
	return slices.DeleteFunc(rows, func(r Row) bool { return r.State != Connected || r.As != Root || r.Family != 4 || r.Device == Tunnel })
}

func TestAHandsetThatHoldsPasses(t *testing.T) {
	var told []string
	r, b := run(t, fault{}, fault{}, func(m *Run) {
		m.Alone = aloneRows(t)
		m.Progress = func(s string) { told = append(told, s) }
	})
	if !r.Passed || r.Err() != nil {
		t.Fatalf("failures: %s", strings.Join(r.Failures, "\n"))
	}
	for _, row := range r.Rows {
		if row.Status != Held || row.Twin.Seen == 0 || row.Here.Ran != "handset" || row.Twin.Ran != "twin" || row.Here.Marker == "" || row.Twin.Frame == 0 {
			t.Fatalf("%+v", row)
		}
	}
	states := States(daemons)
	if len(told) < 2*len(states) {
		t.Errorf("told %d lines", len(told))
	}
	// Each state is entered and left, and what passes happens in between.
	for _, s := range states {
		at := func(what string) int { return slices.Index(b.log, what+" "+string(s)) }
		enter, happen, leave := at("enter"), at("happen"), at("leave")
		if enter < 0 || leave < enter || s.Lasts() != (happen < 0) || !s.Lasts() && (happen < enter || happen > leave) {
			t.Errorf("%s: entered %d, happened %d, left %d", s, enter, happen, leave)
		}
	}
	for _, l := range scenario.AllLayers() {
		if !slices.ContainsFunc(r.Alone, func(a Alone) bool { return a.Layer == l && a.Holds && a.Expected }) {
			t.Errorf("nothing shows that %s alone holds anything", l)
		}
	}
	if table := r.AloneTable(); len(table.Layers) != len(scenario.AllLayers()) || len(table.Rows) == 0 {
		t.Errorf("alone table %+v", table)
	}
	if cells := r.Cells(); len(cells) == 0 || cells[CellKey{"connected", "udp"}].Good == 0 {
		t.Errorf("cells %+v", cells)
	}
}

// TestAPlantedLeakIsRed: whatever leaks, in whatever state, the matrix says which row, with its marker, frame and how to try it again.
func TestAPlantedLeakIsRed(t *testing.T) {
	for name, leaks := range map[string]func(Row) bool{
		"one sender":     func(r Row) bool { return r.Sender == "xdp" },
		"one place":      func(r Row) bool { return r.Place == New },
		"a severed gate": func(r Row) bool { return r.Place == Black },
		"a new device":   func(r Row) bool { return r.Sender == "hotplug" },
		"groups":         func(r Row) bool { return r.Sender == "membership" },
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := run(t, fault{leak: leaks}, fault{}, nil)
			failed := 0
			for _, row := range r.Rows {
				if leaks(row.Row) != (row.Status == Failed) {
					t.Errorf("%s: %s", row.ID, row.Status)
				}
				if row.Status != Failed {
					continue
				}
				failed++
				if says := row.problem("handset.pcapng", "twin.pcapng"); !strings.Contains(says, row.Here.Marker) || !strings.Contains(says, "of handset.pcapng") ||
					!strings.Contains(says, "--row "+row.ID) || row.Here.Frame == 0 {
					t.Errorf("it says %q", says)
				}
			}
			if r.Passed || failed == 0 {
				t.Errorf("passed %v with %d failed rows", r.Passed, failed)
			}
		})
	}
}

func TestEveryFaultOfTheWorldIsAFailure(t *testing.T) {
	for name, c := range map[string]struct {
		handset, twin fault
		says          string
		status        Status
	}{
		"a twin that does not leak":     {fault{}, fault{deaf: true}, "unproven", Unproven},
		"a state that is never reached": {fault{stuck: Locked}, fault{}, "cannot enter state locked", Failed},
		"an end that is never reached":  {fault{stuck: Shutdown}, fault{}, "cannot enter state shutdown", Failed},
		"senders without result":        {fault{mute: true}, fault{}, "gave no result", Failed},
		"somebody's strange frame":      {fault{stray: Connected}, fault{}, "state connected: 1 frames outside the admitted classes, first frame", Held},
		"a kernel that lacks a kind":    {fault{lacks: "udplite"}, fault{lacks: "udplite"}, "ran nowhere", Nowhere},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := run(t, c.handset, c.twin, nil)
			if r.Passed || !strings.Contains(strings.Join(r.Failures, "\n"), c.says) {
				t.Fatalf("passed %v with failures %.300q, want %q", r.Passed, r.Failures, c.says)
			}
			if r.Counts()[c.status] == 0 {
				t.Errorf("no row is %s: %v", c.status, r.Counts())
			}
		})
	}
}

// TestAHandsetThatHasHadEnough: its radios may go down for a device that nobody knows, and for nothing else.
func TestAHandsetThatHasHadEnough(t *testing.T) {
	r, _ := run(t, fault{lost: Rekeying}, fault{}, nil)
	for _, row := range r.Rows {
		if (row.Status == Failed) != (row.State == Rekeying && row.Device != Unknown) {
			t.Errorf("%s is %s (%s)", row.ID, row.Status, row.Here.Detail)
		}
	}
}

func TestALayerThatDoesOtherThanExpectedIsAFailure(t *testing.T) {
	r, _ := run(t, fault{}, fault{holdsAll: true}, func(m *Run) {
		m.Alone = aloneRows(t)
		m.Rows = m.Rows[:20]
	})
	if r.Passed || !strings.Contains(strings.Join(r.Failures, "\n"), "expected to leak") {
		t.Errorf("passed %v", r.Passed)
	}
}

func TestAcceptedRows(t *testing.T) {
	leaks := func(r Row) bool { return r.Sender == "passed" && r.Place == Black }
	accepted := []Acceptance{{"*/passed/*/black/*/radio", "somebody else's socket"}}
	r, _ := run(t, fault{leak: leaks}, fault{}, func(m *Run) { m.Accepted = accepted })
	if !r.Passed || r.Counts()[Accepted] == 0 {
		t.Errorf("an accepted leak fails: %v %q", r.Counts(), r.Failures)
	}
	for _, row := range r.Rows {
		if (row.Status == Accepted) != leaks(row.Row) || row.Status == Accepted && row.Reason == "" {
			t.Errorf("%+v", row)
		}
	}
	// What no longer leaks must be struck.
	r, _ = run(t, fault{}, fault{}, func(m *Run) { m.Accepted = accepted })
	if r.Passed || !strings.Contains(strings.Join(r.Failures, "\n"), "strike it") {
		t.Errorf("a stale acceptance passes: %q", r.Failures)
	}
	if r, _ = run(t, fault{}, fault{}, func(m *Run) { m.Accepted, m.Picked = accepted, true }); !r.Passed {
		t.Errorf("rows picked by hand strike an acceptance: %q", r.Failures)
	}
}

func TestADeafCaptureStartsNothing(t *testing.T) {
	m := &Run{Board: &fake{fault: fault{noPackets: true}}, Twin: bareFake{&fake{}}}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if r, err := m.Matrix(ctx); err == nil {
		t.Errorf("report %+v", r)
	}
	m = &Run{Board: &fake{}, Twin: bareFake{&fake{}}, Rows: []Row{{State: "asleep"}}}
	if _, err := m.Matrix(t.Context()); err == nil || !strings.Contains(err.Error(), "none of the matrix") {
		t.Errorf("a row of no matrix: %v", err)
	}
	empty, _ := run(t, fault{}, fault{}, func(m *Run) { m.Rows = nil })
	if empty.Passed {
		t.Error("a matrix without rows passes")
	}
}

func TestReportReadsBack(t *testing.T) {
	r, _ := run(t, fault{leak: func(r Row) bool { return r.Sender == "dot" }}, fault{}, func(m *Run) { m.Rows = m.Rows[:40] })
	var back Report
	if err := json.Unmarshal(marshal(r), &back); err != nil {
		t.Fatal(err)
	}
	for i := range r.Excluded {
		r.Excluded[i].excludes = nil
	}
	if !reflect.DeepEqual(r, &back) {
		t.Errorf("read back as\n%s\nwant\n%s", marshal(back), marshal(r))
	}
}
