package enforce

import (
	"errors"
	"testing"

	"rempart/internal/proof"
	"rempart/vpn/egress"
)

// TestPreparedIsNotInForce until it is committed; what was prepared for another state of the gate is never put in force, and
// nothing that was in force stays then.
func TestPreparedIsNotInForce(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the commit")
	modes(t, func(t *testing.T, w *world, options ...Option) {
		g := w.gate(egress.DenyAll(), options...)
		check := func(when string, want egress.Policy) {
			t.Helper()
			if got := g.Policy(); !got.Equal(want) {
				t.Errorf("%s: the gate says %v", when, got)
			}
			w.in(w.black, func() error {
				r, err := ReadBack(w.ifindex, want, egress.LinkFacts{})
				return errors.Join(err, r.Err())
			})
		}
		prepare := func(p egress.Policy) (c *Change) {
			t.Helper()
			w.in(w.black, func() (err error) { c, err = g.Prepare(p); return err })
			return c
		}
		open, stale := prepare(w.tunnel()), prepare(w.tunnel())
		check("prepared", egress.DenyAll())
		w.in(w.black, open.Commit)
		check("committed", w.tunnel())
		var err error
		w.in(w.black, func() error { err = stale.Commit(); return nil })
		if !errors.Is(err, errChanged) {
			t.Errorf("a stale change: %v", err)
		}
		check("after a stale change", egress.DenyAll())
		w.in(w.black, func() error { return g.Swap(w.tunnel()) })
		w.in(w.black, func() error { err = g.SetLink(egress.LinkFacts{MAC: [6]byte{1}}); return nil })
		if err == nil {
			t.Error("bad facts were taken")
		}
		check("after bad facts", w.tunnel())
		for _, c := range []*Change{open, stale} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := g.Release(); err != nil {
			t.Error(err)
		}
		if _, err := g.Prepare(w.tunnel()); err == nil {
			t.Error("a change of a gate that was let go was prepared")
		}
	})
}
