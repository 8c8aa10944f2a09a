package leak

import (
	"testing"

	"rempart/board/scenario/matrix"
)

// TestStatesOfOneTwin: a stripped twin stays for the states that begin alike and have no more than a daemon's life between them.
func TestStatesOfOneTwin(t *testing.T) {
	together := map[matrix.State]int{}
	for _, s := range matrix.States(daemonsOf()) {
		together[base(s)]++
	}
	// Connected, rekeying and policy-swap, and each daemon frozen and killed.
	if n := together[matrix.Connected]; n != 3+2*len(daemonsOf()) {
		t.Errorf("%d states begin connected", n)
	}
	if n := together[matrix.Connecting]; n != 3 {
		t.Errorf("%d states begin connecting", n)
	}
	for _, s := range []matrix.State{matrix.GateOnly, matrix.Locked, matrix.Restart, matrix.Shutdown, matrix.KilledInit} {
		if together[s] != 1 {
			t.Errorf("%s shares its twin with %d others", s, together[s]-1)
		}
	}
	// The order of the states lets each base be entered once.
	seen, last := map[matrix.State]bool{}, matrix.State("")
	for _, s := range matrix.States(daemonsOf()) {
		if b := base(s); b != last {
			if seen[b] {
				t.Errorf("%s comes back to %s", s, b)
			}
			seen[b], last = true, b
		}
	}
}
