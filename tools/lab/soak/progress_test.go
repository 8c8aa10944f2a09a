package soak

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func begin(t *testing.T, dir string, resume bool, swaps, kills int) *progress {
	t.Helper()
	p, err := load(dir, resume, swaps, kills)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// An interrupted run goes on where it was; one that is not resumed begins anew.
func TestResume(t *testing.T) {
	dir := t.TempDir()
	p := begin(t, dir, false, 100, 10)
	err := p.change(func(s *Summary) {
		s.Swaps.Done, s.Outside = 60, 0
		s.Kills["keyd"] = Count{7, 10}
	})
	if err != nil {
		t.Fatal(err)
	}
	again := begin(t, dir, true, 200, 20)
	if s := again.look(); s.Swaps != (Count{60, 200}) || s.Kills["keyd"] != (Count{7, 20}) || s.Done {
		t.Errorf("resumed with %+v", s)
	}
	if s := begin(t, dir, true, 60, 7).look(); s.Swaps.Done != 60 {
		t.Errorf("an unfinished run of more was begun anew: %+v", s)
	}
	err = again.change(func(s *Summary) { s.Swaps, s.Kills["keyd"] = Count{200, 200}, Count{20, 20} })
	if err != nil {
		t.Fatal(err)
	}
	if s := begin(t, dir, true, 300, 20).look(); s.Swaps != (Count{200, 300}) {
		t.Errorf("more of a finished run: %+v", s)
	}
	if err := again.change(func(*Summary) {}); err != nil {
		t.Fatal(err)
	}
	if s := begin(t, dir, true, 200, 20).look(); s.Swaps.Done != 0 {
		t.Errorf("a finished run was not begun anew: %+v", s)
	}
	if s := begin(t, dir, false, 200, 20).look(); s.Swaps.Done != 0 || len(s.Kills) != 0 {
		t.Errorf("begun anew with %+v", s)
	}
	for _, text := range []string{"{", `{"version": 2}`} {
		if err := os.WriteFile(filepath.Join(dir, "summary.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if p, err := load(dir, true, 1, 1); err == nil {
			t.Errorf("resumed from %q with %+v", text, p.Summary)
		}
	}
}

func TestPassedOnlyWhenAllIsDoneAndNothingLeft(t *testing.T) {
	whole := func() Summary {
		return Summary{Swaps: Count{2, 2}, Kills: map[string]Count{"init": {1, 1}}, OpenSent: 4, OpenSeen: 4, ClosedSent: 4,
			Growth: []Growth{{Process: "egressd", MemoryKB: [2]int{5000, 6000}, Files: [2]int{11, 11}}}}
	}
	for name, change := range map[string]func(*Summary){
		"":                                func(*Summary) {},
		"not all swaps":                   func(s *Summary) { s.Swaps.Done = 1 },
		"not all kills":                   func(s *Summary) { s.Kills["keyd"] = Count{0, 1} },
		"no kill at all":                  func(s *Summary) { s.Kills = nil },
		"1 frames outside":                func(s *Summary) { s.Outside = 1 },
		"1 markers":                       func(s *Summary) { s.Markers = 1 },
		"1 packets left behind a close":   func(s *Summary) { s.ClosedSeen = 1 },
		"3 of 4 packets behind":           func(s *Summary) { s.OpenSeen = 3 },
		"egressd grew during 9 swaps":     func(s *Summary) { s.Growth[0] = Growth{"egressd", "swaps", 9, [2]int{5000, 5000}, [2]int{11, 12}} },
		"5000 to 15000 KiB":               func(s *Summary) { s.Growth[0].MemoryKB[1] = 15000 },
		"a handset that did not recover.": func(s *Summary) { s.Failures = []string{"a handset that did not recover."} },
	} {
		s := whole()
		change(&s)
		s.settle()
		if s.Passed != (name == "") {
			t.Errorf("%q: passed %v", name, s.Passed)
		}
		if err := s.Err(); err != nil && !strings.Contains(err.Error(), name) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// Handsets that share the rounds do each once, and of a resumed run only what is left.
func TestClaim(t *testing.T) {
	for done, want := range map[int]int{0: 10, 7: 3, 10: 0} {
		r := &runner{o: Options{Kills: 10}, p: begin(t, t.TempDir(), false, 0, 10)}
		r.p.Kills["egressd"] = Count{min(done+2, 10), 10}
		r.p.Kills["init"] = Count{done, 10}
		var mu sync.Mutex
		claimed := 0
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				for r.claim() {
					mu.Lock()
					claimed++
					mu.Unlock()
				}
			})
		}
		all.Wait()
		if claimed != want {
			t.Errorf("with %d done %d rounds were begun, want %d", done, claimed, want)
		}
	}
}

func TestGrowthKeepsTheWorst(t *testing.T) {
	r := &runner{p: begin(t, t.TempDir(), false, 0, 0)}
	for _, after := range []held{{100, 10}, {300, 10}, {200, 10}, {100, 11}, {900, 10}} {
		if err := r.grew("init", "deaths", 3, held{100, 10}, after); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.grew("init", "swaps", 3, held{1, 1}, held{1, 1}); err != nil {
		t.Fatal(err)
	}
	want := []Growth{{"init", "deaths", 3, [2]int{100, 100}, [2]int{10, 11}}, {"init", "swaps", 3, [2]int{1, 1}, [2]int{1, 1}}}
	if got := r.p.look().Growth; !slices.Equal(got, want) {
		t.Errorf("kept %+v, want %+v", got, want)
	}
}

func TestLookAt(t *testing.T) {
	before, err := lookAt(os.Getpid())
	if err != nil || before.memoryKB == 0 || before.files == 0 {
		t.Fatalf("this process: %+v, %v", before, err)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if after, err := lookAt(os.Getpid()); err != nil || after.files != before.files+1 {
		t.Errorf("with one file more: %+v, before %+v, %v", after, before, err)
	}
	if h, err := lookAt(1 << 30); err == nil {
		t.Errorf("a process that is not: %+v", h)
	}
}

func TestAdmitted(t *testing.T) {
	line := func(event string) string {
		return "time=x mono=1 daemon=egressd event=" + event + " subject=a outcome=success\n"
	}
	for _, c := range []struct {
		events []string
		want   bool
	}{
		{nil, false},
		{[]string{"gate.attach", "gate.table"}, false},
		{[]string{"gate.attach", "gate.swap", "gate.table"}, true},
		{[]string{"gate.attach", "gate.swap", "gate.close"}, false},
		{[]string{"gate.swap", "gate.close", "gate.swap"}, true},
		{[]string{"gate.swap", "gate.attach"}, false},
	} {
		text := ""
		for _, e := range c.events {
			text += line(e)
		}
		if got := admitted(text); got != c.want {
			t.Errorf("%v: %v", c.events, got)
		}
	}
}
