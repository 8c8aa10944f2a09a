package vault

import (
	"math/rand/v2"
	"testing"
)

// The whole machine, said a second time.
var moves = map[State]map[Event]State{
	Empty:  {Provisioned: Sealed, Broken: Failed},
	Sealed: {Unsealed: Open, Broken: Failed},
	Open:   {CapExtended: Capped, Broken: Failed},
	Capped: {Broken: Failed},
	Failed: {Broken: Failed},
}

func TestAllPairs(t *testing.T) {
	pairs := 0
	for _, s := range append(States(), 0, Failed+1) {
		for _, e := range append(Events(), 0, Broken+1) {
			pairs++
			next, err := Next(s, e)
			want, known := moves[s][e]
			switch {
			case known && (err != nil || next != want):
				t.Errorf("%v, %v: %v, %v; want %v", s, e, next, err, want)
			case !known && (err == nil || next != s):
				t.Errorf("%v, %v: %v, %v; want an error and no move", s, e, next, err)
			}
		}
	}
	if pairs != 7*6 {
		t.Errorf("walked %d pairs", pairs)
	}
}

func TestSecretsAreServedOnlyBehindTheCap(t *testing.T) {
	for _, s := range append(States(), 0, Failed+1) {
		if s.Serves() != (s == Capped) {
			t.Errorf("%v: serves %v", s, s.Serves())
		}
	}
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range append(States(), 0) {
		seen[s.String()] = true
	}
	for _, e := range append(Events(), 0) {
		seen[e.String()] = true
	}
	if len(seen) != 11 {
		t.Errorf("names collide: %v", seen)
	}
}

func FuzzWalk(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		r := rand.New(rand.NewPCG(a, b))
		s, capped, failed := Empty, false, false
		for range 64 {
			e := Events()[r.IntN(len(Events()))]
			next, err := Next(s, e)
			if err == nil {
				s = next
			}
			capped = capped || e == CapExtended && err == nil
			failed = failed || e == Broken
			if failed && s != Failed {
				t.Fatal("a way out of failed")
			}
			if s.Serves() && !capped {
				t.Fatal("serves without a cap")
			}
		}
	})
}
