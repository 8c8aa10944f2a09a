package scenario

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"rempart/board/scenario/attack"
)

func marshal(v any) []byte { b, _ := json.Marshal(v); return b }

func rowNamed(t *testing.T, l *LeakReport, part string) RowResult {
	t.Helper()
	for _, r := range l.Rows {
		if strings.Contains(r.Name, part) {
			return r
		}
	}
	t.Fatalf("no row called %q", part)
	return RowResult{}
}

func TestAHandsetThatHoldsPasses(t *testing.T) {
	var told []RowResult
	l, b := run(t, fault{}, func(r *Runner) { r.Progress = func(x RowResult) { told = append(told, x) } })
	if !l.Passed || len(l.Failures) > 0 || l.Err() != nil {
		t.Fatalf("failures: %s", strings.Join(l.Failures, "\n"))
	}
	if len(told) != len(l.Rows) || *b.twins != 0 {
		t.Errorf("told of %d rows of %d; %d twins left", len(told), len(l.Rows), *b.twins)
	}
	for part, want := range map[string]Verdict{
		"UDP from red": Refused, "UDP to an inner": Tunnelled, "UDP from black": Dropped, "AF_PACKET on the radio from black": Refused,
		"kill -9 of tunneld": Dropped, "init's namespace": Refused, "kill -9 of init": Dropped, "restart": Dropped,
	} {
		r := rowNamed(t, l, part)
		if r.Verdict != want || r.State != Held || r.Twin.Verdict != Leaked || r.Twin.Seen == 0 || len(r.Twin.Stripped) == 0 {
			t.Errorf("%s: %+v", part, r)
		}
	}
	if r := rowNamed(t, l, "UDP from black"); r.Detail != "wrong-cgroup" {
		t.Errorf("the drop's reason is %q", r.Detail)
	}
	if l.Outside.Outside != 0 || l.Outside.Frames == 0 {
		t.Errorf("outside: %+v", l.Outside)
	}
	// init died last, and the handset was brought up again for whoever comes next.
	if i := slices.Index(*b.log, "kill init"); i < 0 || !slices.Contains((*b.log)[i:], "restart") {
		t.Errorf("events: %q", *b.log)
	}
}

func TestEveryFaultOfTheWorldIsAFailure(t *testing.T) {
	for name, c := range map[string]struct {
		f     fault
		says  string
		row   string
		state State
	}{
		"a leak":                    {fault{leak: attack.UDP}, "leaked", "UDP from black", Failed},
		"a leak under a kill":       {fault{leak: attack.Constant}, "leaked", "kill -9 of egressd", Failed},
		"a leak of a new device":    {fault{leak: attack.Hotplug}, "leaked", "init's namespace", Failed},
		"a leak after its row":      {fault{leak: attack.TCP, late: true}, "leaked", "TCP from black", Failed},
		"a twin that does not leak": {fault{deadTwin: true}, "unproven", "UDP from black", Unproven},
		"no twin":                   {fault{noTwin: true}, "no room for a twin", "UDP from black", Unproven},
		"somebody's strange frame":  {fault{stray: true}, "outside the admitted classes", "kill -9 of egressd", Failed},
		"senders without result":    {fault{mute: true}, "without a result", "UDP from black", Failed},
		"a handset that stays down": {fault{stuck: true}, "did not recover", "kill -9 of egressd", Failed},
	} {
		t.Run(name, func(t *testing.T) {
			l, b := run(t, c.f, func(r *Runner) {
				r.RowTimeout = 700 * time.Millisecond
				r.Rows = slices.DeleteFunc(Rows(fakeSite()), func(row Row) bool {
					return row.From != Init && !strings.Contains(row.Name, "UDP from black") && !strings.Contains(row.Name, "TCP from black") && !strings.Contains(row.Name, "egressd")
				})
			})
			if l.Passed || l.Err() == nil || !strings.Contains(strings.Join(l.Failures, "\n"), c.says) {
				t.Fatalf("passed %v with failures %q, want %q", l.Passed, l.Failures, c.says)
			}
			if r := rowNamed(t, l, c.row); r.State != c.state {
				t.Errorf("%+v, want %s", r, c.state)
			}
			if *b.twins != 0 {
				t.Errorf("%d twins left", *b.twins)
			}
		})
	}
}

func TestADeafCaptureStartsNothing(t *testing.T) {
	r := &Runner{Board: newFake(fault{deaf: true}), Sender: []string{"/desk/rempart-lab", "attack"}}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if l, err := r.LeakTest(ctx); err == nil || !strings.Contains(err.Error(), "frame 1 of the capture") {
		t.Errorf("report %+v, error %v", l, err)
	}
	if _, err := (&Runner{Board: newFake(fault{})}).LeakTest(context.Background()); err == nil {
		t.Error("started without a sender")
	}
}

func TestCountersOnlyNameTheReason(t *testing.T) {
	l, _ := run(t, fault{noCounters: true}, func(r *Runner) {
		r.Rows = slices.DeleteFunc(Rows(fakeSite()), func(row Row) bool { return !strings.Contains(row.Name, "UDP") })
	})
	if r := rowNamed(t, l, "UDP from black"); r.Verdict != Dropped || r.Detail != Unaccounted || r.State != Held {
		t.Errorf("%+v", r)
	}
	// Without counters nothing shows that the tunnel carried it.
	if r := rowNamed(t, l, "UDP to an inner"); r.State != Failed {
		t.Errorf("%+v", r)
	}
}

func TestJudge(t *testing.T) {
	sent, refused := attack.Result{Sent: 3}, attack.Result{Errno: "EPERM"}
	drops := func(n uint64) Counters { return Counters{Drops: map[string]uint64{"floor": n, "a": 1}, Tunnelled: n} }
	for name, c := range map[string]struct {
		e      evidence
		want   Verdict
		detail string
	}{
		"seen beats all":              {evidence{seen: 1, results: []attack.Result{refused}}, Leaked, "1 frames"},
		"seen without a result":       {evidence{seen: 2}, Leaked, "2 frames"},
		"refused":                     {evidence{results: []attack.Result{refused}}, Refused, "EPERM"},
		"nothing at all":              {evidence{}, Broken, ""},
		"neither sent nor refused":    {evidence{results: []attack.Result{{}}}, Broken, ""},
		"dropped by the floor":        {evidence{from: Black, results: []attack.Result{sent}, before: drops(1), after: drops(4), counted: true}, Dropped, "floor"},
		"tunnelled":                   {evidence{from: Red, results: []attack.Result{sent}, before: drops(1), after: drops(4), counted: true}, Tunnelled, "3 packets"},
		"one in the tunnel of three":  {evidence{from: Red, results: []attack.Result{sent}, before: drops(1), after: drops(2), counted: true}, Dropped, "floor"},
		"black is never tunnelled":    {evidence{from: Black, results: []attack.Result{sent}, after: Counters{Tunnelled: 9}, counted: true}, Dropped, Unaccounted},
		"counters of another boot":    {evidence{from: Black, results: []attack.Result{sent}, before: drops(1), after: drops(4)}, Dropped, Unaccounted},
		"partly refused":              {evidence{results: []attack.Result{sent, refused}}, Dropped, "EPERM"},
		"cut off with the handset":    {evidence{cut: true}, Dropped, "ended with the handset"},
		"a counter that was set back": {evidence{results: []attack.Result{sent}, before: drops(9), after: drops(2), counted: true}, Dropped, Unaccounted},
	} {
		if v, detail := judge(c.e); v != c.want || c.detail != "" && detail != c.detail {
			t.Errorf("%s: %s (%s), want %s (%s)", name, v, detail, c.want, c.detail)
		}
	}
}

func TestRisenIsTheSameInEveryRun(t *testing.T) {
	for range 50 {
		if r, n := risen(nil, map[string]uint64{"b": 2, "a": 2, "c": 1}); r != "a" || n != 2 {
			t.Fatalf("%s, %d", r, n)
		}
	}
}

// TestAnInterruptedTestEndsSoonAndFails: whoever presses Ctrl-C does not wait for the remaining rows.
func TestAnInterruptedTestEndsSoonAndFails(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	rows := 0
	r := &Runner{Board: newFake(fault{}), Sender: []string{"/desk/rempart-lab", "attack"}, Progress: func(RowResult) {
		if rows++; rows == 3 {
			cancel()
		}
	}}
	began := time.Now()
	l, err := r.LeakTest(ctx)
	if err == nil && (l.Passed || len(l.Failures) == 0) {
		t.Errorf("passed: %+v", l)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("ended after %v", took)
	}
}
