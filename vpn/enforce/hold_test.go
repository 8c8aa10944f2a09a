package enforce

import (
	"testing"
	"time"

	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/vpn/egress"
)

// TestHoldStaysThroughAMove: the floor ends when its device changes its namespace; without the hold the device would pass all
// that is sent until the floor is laid again.
func TestHoldStaysThroughAMove(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the subtest twin")
	t.Run("held", func(t *testing.T) { moveSends(t, true) })
	t.Run("twin", func(t *testing.T) { moveSends(t, false) })
}

func moveSends(t *testing.T, held bool) {
	w := newWorld(t)
	w.in(w.black, func() error { return AttachFloor(w.ifindex) })
	var hold *Hold
	if held {
		w.in(w.black, func() (err error) { hold, err = HoldDevice(w.ifindex); return err })
		if len(hold.links) != 2 {
			t.Skip("this kernel has no TCX")
		}
	}
	to := namespace(t)
	w.in(w.black, func() error { return link.MoveTo("bl0", to) })
	w.in(w.internet, func() error { return link.SetUp("in0") })
	w.in(to, func() error { return link.SetUp("bl0") })
	index, before := 0, uint64(0)
	w.in(w.internet, func() (err error) { before, err = link.Received("in0"); return err })
	w.in(to, func() (err error) { index, err = link.Index("bl0"); return err })
	w.in(to, func() error {
		if err := FloorInForce(index); err == nil {
			t.Error("the floor has outlived the move: the hold is of no use")
		}
		return rawSend("bl0", append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 11, 0x88, 0xb5}, make([]byte, 46)...))
	})
	time.Sleep(20 * time.Millisecond)
	var after uint64
	w.in(w.internet, func() (err error) { after, err = link.Received("in0"); return err })
	if got := after > before; got == held {
		t.Errorf("held %v: a frame left: %v", held, got)
	}
	if !held {
		return
	}
	// Floor and gate again; then the hold goes, and all is as the read-back wants it.
	w.in(to, func() error { return link.SetDown("bl0") })
	w.in(to, func() error { return AttachFloor(index) })
	w.in(to, func() error {
		r, err := ReadBack(index, egress.DenyAll(), egress.LinkFacts{})
		if err == nil && r.Bare() == nil {
			t.Error("a hold counts as nothing")
		}
		return err
	})
	w.in(to, func() error {
		g, err := Attach(index, w.pins)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = g.Release() })
		return hold.Close()
	})
	w.in(to, func() error {
		r, err := ReadBack(index, egress.DenyAll(), egress.LinkFacts{})
		if err != nil {
			return err
		}
		return r.Err()
	})
}

// TestBareIsTheFloorAlone: a severed device has no gate, which is not the same as something else in its place.
func TestBareIsTheFloorAlone(t *testing.T) {
	w := newWorld(t)
	w.gate(w.tunnel())
	bare := func() (err error) {
		w.in(w.black, func() error {
			r, rerr := ReadBack(w.ifindex, egress.DenyAll(), egress.LinkFacts{})
			err = r.Bare()
			return rerr
		})
		return err
	}
	if bare() == nil {
		t.Error("a gate that admits is bare")
	}
	w.in(w.black, func() error { return Sever(w.ifindex) })
	if err := bare(); err != nil {
		t.Errorf("severed: %v", err)
	}
	w.in(w.black, func() error { _, err := HoldDevice(w.ifindex); return err })
	if bare() == nil {
		t.Error("another program is bare")
	}
}
