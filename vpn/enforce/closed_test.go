package enforce

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"rempart/internal/proof"
	"rempart/vpn/egress"
	"rempart/vpn/egress/egresstest"
)

// closedSubject is the closed gate, with a record.
func closedSubject(t *testing.T) *subject {
	t.Helper()
	r, _ := record(t)
	s := &subject{t: t, own: ownCgroup(t), memory: memory{record: r}}
	var err error
	if s.counters, err = newCounters(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.counters.Close() })
	if s.in, err = loadInstance(egress.DenyAll(), egress.LinkFacts{}, s.memory); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.in.close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestDenyAllAdmitsNothing: the closed gate, on every good frame and on random ones, as
// the model says.
func TestDenyAllAdmitsNothing(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "TestProgramEqualsModel, whose frames are the same")
	s := closedSubject(t)
	var frames [2][][]byte
	for d := egress.Egress; d <= egress.Ingress; d++ {
		for _, c := range modelPolicy(s.own).Classes {
			remote := c.Addr
			if !remote.IsValid() {
				remote = netip.MustParseAddr("198.51.100.7")
			}
			frames[d] = append(frames[d], frameOf(remote, d, c.Proto, c.Port, c.Port, 8))
		}
		seed := uint64(time.Now().UnixNano())
		t.Logf("%v: seed %d", d, seed)
		for r := rand.New(rand.NewPCG(seed, 0)); len(frames[d]) < 20_000; {
			frames[d] = append(frames[d], egresstest.Random(r, d))
		}
	}
	var want egress.Counters
	for d, list := range frames {
		for _, frame := range list {
			code, ok := s.run(egress.Direction(d), frame, 0)
			if !ok {
				continue
			}
			verdict, reason := egress.Decide(egress.DenyAll(), egress.Direction(d), frame, egress.Meta{Cgroup: s.own})
			if want[d][reason]++; code != 2 || verdict != egress.Drop {
				t.Fatalf("%v %x: the program says %d, the model %v", egress.Direction(d), frame, code, reason)
			}
		}
	}
	if got := s.counts(t); got != want {
		t.Errorf("counted %v, want %v", got, want)
	}
}

// TestClosedGateRecords: who sent what is in the drop record.
func TestClosedGateRecords(t *testing.T) {
	proof.SFR(t, "FAU_GEN.1", "an empty record is read first")
	s := closedSubject(t)
	if d := all(t, s.record, 0); len(d.Samples) != 0 {
		t.Fatalf("a new record holds %v", d.Samples)
	}
	remote := netip.MustParseAddr("2001:db8:113::1")
	if code, ok := s.run(egress.Egress, frameOf(remote, egress.Egress, egress.UDP, 51820, 40000, 8), 0); !ok || code != 2 {
		t.Fatalf("verdict %d", code)
	}
	tagged := frameOf(remote, egress.Ingress, egress.UDP, 51820, 40000, 8)
	tagged = append(tagged[:12:12], append([]byte{0x81, 0, 0, 5}, tagged[12:]...)...)
	if code, ok := s.run(egress.Ingress, tagged, 0); !ok || code != 2 {
		t.Fatalf("verdict %d", code)
	}
	d := all(t, s.record, 0)
	if len(d.Samples) != 2 {
		t.Fatalf("%v", d.Samples)
	}
	if r := d.Samples[0]; r.Program != egress.ProgramGate || r.Direction != egress.Egress || r.Reason != uint8(egress.Closed) || r.Cgroup != s.own ||
		r.Proto != egress.UDP || r.Dst != remote || r.SrcPort != 40000 || r.DstPort != 51820 {
		t.Errorf("%v", r)
	}
	if r := d.Samples[1]; r.Direction != egress.Ingress || r.Reason != uint8(egress.Closed) || r.Dst.IsValid() {
		t.Errorf("tagged: %v", r)
	}
}

// TestReadBackOfAClosedDevice: anything but the closed gate there is noticed.
func TestReadBackOfAClosedDevice(t *testing.T) {
	proof.SFR(t, "FPT_TST_EXT.1", "the closed gate itself")
	modes(t, func(t *testing.T, w *world, options ...Option) {
		g := w.gate(egress.DenyAll(), options...)
		if out := w.differences(egress.DenyAll()); out != "" {
			t.Errorf("differences: %s", out)
		}
		if out := w.differences(w.tunnel()); strings.Count(out, "the closed gate is in force and not wanted") != 2 {
			t.Errorf("against a policy: %s", out)
		}
		// The full gate without a rule admits nothing too, but it is another program.
		full, err := loadFull(egress.DenyAll(), egress.LinkFacts{}, g.memory)
		if err != nil {
			t.Fatal(err)
		}
		defer full.close()
		w.in(w.black, func() error { return g.set(egress.Egress, full.programs[egress.Egress]) })
		if out := strings.TrimSpace(w.differences(egress.DenyAll())); out != "egress: the closed gate is wanted and not in force" {
			t.Errorf("the full gate: %s", out)
		}
	})
}

// TestClosedGateLoadsAtOnce: closing must not wait for the verifier. The bound is far above what it takes and far below
// what the full gate does.
func TestClosedGateLoadsAtOnce(t *testing.T) {
	s := closedSubject(t)
	for d, p := range s.in.programs {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		n, ok := info.VerifiedInstructions()
		t.Logf("%v: %d instructions verified", egress.Direction(d), n)
		if ok && n > 2000 {
			t.Errorf("%v: the verifier walks %d instructions", egress.Direction(d), n)
		}
	}
	if s.in.fragments != nil || s.in.facts != nil || s.in.dhcp != nil {
		t.Error("the closed gate has maps of its own")
	}
}
