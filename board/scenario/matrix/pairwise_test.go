package matrix

import (
	"slices"
	"testing"
)

var daemons = []string{"egressd", "watchd", "tunneld", "voiced", "keyd"}

// TestPairwiseHoldsEveryAllowedPair is the promise of the part that CI runs.
func TestPairwiseHoldsEveryAllowedPair(t *testing.T) {
	rows, _ := All(daemons)
	for seed := range uint64(3) {
		picked := Pairwise(rows, seed)
		missing := map[pair]bool{}
		for _, r := range rows {
			for _, p := range r.pairs() {
				missing[p] = true
			}
		}
		all := len(missing)
		for _, r := range picked {
			if why := Excluded(r); why != "" {
				t.Errorf("%s is picked and excluded: %s", r.ID(), why)
			}
			for _, p := range r.pairs() {
				delete(missing, p)
			}
		}
		for p := range missing {
			t.Errorf("seed %d: no row holds %q with %q", seed, p.va, p.vb)
		}
		t.Logf("seed %d: %d of %d rows hold all %d pairs", seed, len(picked), len(rows), all)
		if len(picked) > len(rows)/6 {
			t.Errorf("%d of %d rows are no part worth the name", len(picked), len(rows))
		}
	}
}

func TestPairwiseIsTheSeedsAlone(t *testing.T) {
	rows, _ := All(daemons)
	a, b, c := Pairwise(rows, 7), Pairwise(rows, 7), Pairwise(rows, 8)
	if !slices.Equal(a, b) {
		t.Error("the same seed picked other rows")
	}
	if slices.Equal(a, c) {
		t.Error("another seed picked the same rows")
	}
	if len(Pairwise(nil, 1)) != 0 {
		t.Error("picked from nothing")
	}
}

// TestEveryValueIsTriedOrItsAbsenceHasAReason: no value of an axis is lost without a word.
func TestEveryValueIsTriedOrItsAbsenceHasAReason(t *testing.T) {
	rows, rules := All(daemons)
	tried := map[string]bool{}
	for _, r := range rows {
		for i, v := range r.values() {
			tried[Axes(daemons)[i].Name+" "+v] = true
		}
	}
	absent := map[string]bool{"device modem": true, "device loopback": true}
	for _, a := range Axes(daemons) {
		for _, v := range a.Values {
			if tried[a.Name+" "+v] == absent[a.Name+" "+v] {
				t.Errorf("%s %s: tried %v", a.Name, v, tried[a.Name+" "+v])
			}
		}
	}
	excluded := 0
	for _, r := range rules {
		if r.Reason == "" || r.Rows == 0 {
			t.Errorf("rule %q excludes %d rows", r.Reason, r.Rows)
		}
		excluded += r.Rows
	}
	whole := 1
	for _, a := range Axes(daemons) {
		whole *= len(a.Values)
	}
	if excluded+len(rows) != whole {
		t.Errorf("%d rows and %d excluded are not the %d of all axes", len(rows), excluded, whole)
	}
}
