package enforce

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	tcx "github.com/cilium/ebpf/link"

	"rempart/internal/proof"
	"rempart/vpn/egress"
)

// What a test run cannot make, by real packets: the fragments and the segments that the
// kernel makes, and a tag that a device has taken off.

// sendFrom sends one datagram of that size to the gateway, in segments if segment is not 0.
func (w *world) sendFrom(cg, from, to, size, segment string) {
	w.t.Helper()
	cmd := w.child(w.black, cg, "send", "FROM="+from, "TO="+to, "MARK=0", "SIZE="+size, "SEGMENT="+segment)
	if err := cmd.Wait(); err != nil {
		w.t.Fatalf("sender: %v: %v", err, cmd.Stdout)
	}
}

// moved returns by how much each counter of a direction moved during what.
func moved(t *testing.T, g *Gate, d egress.Direction, what func()) (by [egress.Reasons]uint64) {
	t.Helper()
	before, err := g.Counters()
	if err != nil {
		t.Fatal(err)
	}
	what()
	after, err := g.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for r := range by {
		by[r] = after[d][r] - before[d][r]
	}
	return by
}

func TestKernelsFragmentsFollowTheirFirst(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the rows of the right cgroup")
	modes(t, func(t *testing.T, w *world, options ...Option) {
		g := w.gate(w.tunnel(), options...)
		w.up()
		w.quiet()
		for name, ends := range map[string][2]string{"IPv4": {"203.0.113.11:0", "203.0.113.1:51820"}, "IPv6": {"[2001:db8:113::11]:0", "[2001:db8:113::1]:51820"}} {
			frames := w.frames(w.internet, "in0")
			by := moved(t, g, egress.Egress, func() { w.sendFrom(w.tunneld, ends[0], ends[1], "4000", "0") })
			if by[egress.Admitted] != 3 || w.frames(w.internet, "in0")-frames != 3 {
				t.Errorf("%s: a datagram in three parts: %v", name, by)
			}
			frames = w.frames(w.internet, "in0")
			by = moved(t, g, egress.Egress, func() { w.sendFrom(w.other, ends[0], ends[1], "4000", "0") })
			// The kernel gives the others up with the first; if it does not, they follow nothing.
			if by[egress.Cgroup] != 1 || by[egress.Admitted] != 0 || w.frames(w.internet, "in0") != frames {
				t.Errorf("%s: from another cgroup: %v", name, by)
			}
		}
	})
}

func TestSegmentsAreOneFrame(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the row of the right cgroup")
	modes(t, func(t *testing.T, w *world, options ...Option) {
		g := w.gate(w.tunnel(), options...)
		w.up()
		w.quiet()
		if by := moved(t, g, egress.Egress, func() { w.sendFrom(w.tunneld, "203.0.113.11:0", "203.0.113.1:51820", "4000", "1000") }); by[egress.Admitted] == 0 {
			t.Errorf("segments of the right cgroup: %v", by)
		}
		frames := w.frames(w.internet, "in0")
		if by := moved(t, g, egress.Egress, func() { w.sendFrom(w.other, "203.0.113.11:0", "203.0.113.1:51820", "4000", "1000") }); by[egress.Cgroup] == 0 || by[egress.Admitted] != 0 {
			t.Errorf("segments of another cgroup: %v", by)
		}
		if w.frames(w.internet, "in0") != frames {
			t.Error("segments of another cgroup passed")
		}
	})
}

// TestTagsThatADeviceTookOff: the frame carries its tag beside its bytes. The kernel takes
// it off what comes in; out, a program in front of the gate puts it there, as a VLAN
// device does.
func TestTagsThatADeviceTookOff(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "TestRealPackets")
	modes(t, func(t *testing.T, w *world, options ...Option) {
		if !haveTCX() {
			t.Skip("this kernel has no TCX for the program in front")
		}
		g := w.gate(w.tunnel(), options...)
		w.up()
		w.quiet()
		send := func() { w.send(w.black, w.tunneld, "203.0.113.11:0", "203.0.113.1:51820", 0) }
		if by := moved(t, g, egress.Egress, send); by[egress.Admitted] != 1 {
			t.Fatalf("without a tag: %v", by)
		}
		push, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "tag", Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R2, 0x0081), // 802.1Q in network order
			asm.Mov.Imm(asm.R3, 5),
			asm.FnSkbVlanPush.Call(),
			asm.Mov.Imm(asm.R0, -1), // TCX_NEXT
			asm.Return(),
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer push.Close()
		var front tcx.Link
		w.in(w.black, func() (err error) {
			front, err = tcx.AttachTCX(tcx.TCXOptions{Interface: w.ifindex, Program: push, Attach: ebpf.AttachTCXEgress, Anchor: tcx.Head()})
			return err
		})
		defer front.Close()
		frames := w.frames(w.internet, "in0")
		if by := moved(t, g, egress.Egress, send); by[egress.VLAN] == 0 || by[egress.Admitted] != 0 { // the devices' own frames may be among them
			t.Errorf("out: %v", by)
		}
		if w.frames(w.internet, "in0") != frames {
			t.Error("a tagged frame passed")
		}
		good := frameOf(gatewayV4, egress.Ingress, egress.UDP, 51820, 40000, 8)
		copy(good, macBlack)
		tagged := append(good[:12:12], append([]byte{0x81, 0, 0, 5}, good[12:]...)...)
		if by := moved(t, g, egress.Ingress, func() { w.in(w.internet, func() error { return rawSend("in0", good) }) }); by[egress.Admitted] != 1 {
			t.Errorf("in, without a tag: %v", by)
		}
		if by := moved(t, g, egress.Ingress, func() { w.in(w.internet, func() error { return rawSend("in0", tagged) }) }); by[egress.VLAN] != 1 {
			t.Errorf("in: %v", by)
		}
	})
}
