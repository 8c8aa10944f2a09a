package enforce

import (
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"rempart/internal/bpf"
	"rempart/internal/proof"
	"rempart/vpn/egress"
)

// record opens a drop record with pins of its own.
func record(t *testing.T) (*Record, string) {
	t.Helper()
	proof.NeedRoot(t)
	dir := bpffs(t)
	r, err := OpenRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r, dir
}

// dropper loads the level hooks without a table, which refuse every packet, and
// returns a function that lets them refuse one n times. Unlimited takes the limit of
// samples per second out of the program.
func dropper(t *testing.T, r *Record, unlimited bool) func(packet []byte, n int) {
	t.Helper()
	spec, err := bpf.LoadLevel()
	if err != nil {
		t.Fatal(err)
	}
	if unlimited {
		found := 0
		for i, in := range spec.Programs["level_egress"].Instructions {
			if in.OpCode.JumpOp() == asm.JLT && in.Constant == egress.RecordBurst {
				spec.Programs["level_egress"].Instructions[i].Constant = 1<<31 - 1
				found++
			}
		}
		if found != 1 {
			t.Fatalf("%d instructions compare with the limit, want 1", found)
		}
	}
	objects, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: r.into(map[string]*ebpf.Map{})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(objects.Close)
	return func(packet []byte, n int) {
		_, err := objects.Programs["level_egress"].Run(&ebpf.RunOptions{Data: packet, Repeat: uint32(n)})
		if err != nil {
			t.Error(err)
		}
	}
}

// marked is an Ethernet frame with a UDP datagram, every byte of whose addresses and
// ports is mark.
func marked(mark byte) []byte {
	p := make([]byte, 14+20+8)
	p[12], p[13] = 8, 0
	ip := p[14:]
	ip[0], ip[3], ip[9] = 0x45, 28, egress.UDP
	for i := range 8 {
		ip[12+i] = mark
	}
	for i := range 4 {
		ip[20+i] = mark
	}
	return p
}

func all(t *testing.T, r *Record, since uint64) egress.Drops {
	t.Helper()
	total := egress.Drops{Next: since}
	for {
		d, err := r.Read(total.Next)
		if err != nil {
			t.Fatal(err)
		}
		total.Samples = append(total.Samples, d.Samples...)
		total.Missed += d.Missed
		total.LeftOut = d.LeftOut
		if d.Next == total.Next {
			return total
		}
		total.Next = d.Next
	}
}

func TestRecordSaysWhatWasDropped(t *testing.T) {
	proof.SFR(t, "FAU_GEN.1", "an empty record is read first")
	r, _ := record(t)
	drop := dropper(t, r, false)
	if d := all(t, r, 0); len(d.Samples) != 0 || d.Next != 0 || d.LeftOut != 0 {
		t.Fatalf("a new record holds %+v", d)
	}
	before := monotonic(t)
	for mark := range byte(3) {
		drop(marked(mark+1), 1)
	}
	d := all(t, r, 0)
	if len(d.Samples) != 3 || d.Next != 3 || d.Missed != 0 || d.LeftOut != 0 {
		t.Fatalf("three drops are %+v", d)
	}
	for i, s := range d.Samples {
		mark := byte(i + 1)
		if s.Seq != uint64(i+1) || s.Program != egress.ProgramLevels || s.Direction != egress.Egress || s.Proto != egress.UDP ||
			s.Src.As4() != [4]byte{mark, mark, mark, mark} || s.Dst != s.Src || s.SrcPort != uint16(mark)<<8|uint16(mark) || s.DstPort != s.SrcPort {
			t.Errorf("sample %d is %v", i, s)
		}
		if s.Time < before-20*time.Millisecond || s.Time > monotonic(t) {
			t.Errorf("sample %d is of %v, now is %v", i, s.Time, monotonic(t))
		}
	}
	if rest := all(t, r, 2); len(rest.Samples) != 1 || rest.Samples[0].Seq != 3 {
		t.Errorf("behind 2: %+v", rest)
	}
	if again := all(t, r, 99); len(again.Samples) != 3 {
		t.Errorf("a number of another record: %+v", again)
	}
}

func TestRecordLimitsAndCountsTheRest(t *testing.T) {
	r, _ := record(t)
	drop := dropper(t, r, false)
	const n = 5000
	start := time.Now()
	drop(marked(1), n)
	// The seconds that the run touched, on each processor that it ran on.
	most := (int(time.Since(start)/time.Second) + 2) * egress.RecordBurst * 2
	d := all(t, r, 0)
	if len(d.Samples) < egress.RecordBurst || len(d.Samples) > most {
		t.Errorf("%d of %d drops are recorded", len(d.Samples), n)
	}
	if uint64(len(d.Samples))+d.LeftOut != n || d.Missed != 0 {
		t.Errorf("%d recorded and %d left out of %d", len(d.Samples), d.LeftOut, n)
	}
}

// TestRecordKeepsTheNewest: what was overwritten before it was read is counted, and the
// order stays.
func TestRecordKeepsTheNewest(t *testing.T) {
	r, _ := record(t)
	drop := dropper(t, r, true)
	drop(marked(1), 3*egress.RecordSamples)
	drop(marked(2), 1)
	d := all(t, r, 0)
	if len(d.Samples) != egress.RecordSamples || d.Missed != 2*egress.RecordSamples+1 || d.LeftOut != 0 {
		t.Fatalf("%d samples, %d missed, %d left out", len(d.Samples), d.Missed, d.LeftOut)
	}
	for i, s := range d.Samples {
		if s.Seq != d.Missed+uint64(i)+1 {
			t.Fatalf("sample %d has number %d", i, s.Seq)
		}
	}
	if newest := d.Samples[len(d.Samples)-1]; newest.SrcPort != 0x0202 {
		t.Errorf("the newest is %v", newest)
	}
}

// TestRecordIsNeverTorn reads while two processors write as fast as they can: a sample
// is one writer's or it is missing.
func TestRecordIsNeverTorn(t *testing.T) {
	r, _ := record(t)
	drop := dropper(t, r, true)
	// A batch fills the record once: what is overwritten is another packet.
	const each, batch = 600_000, egress.RecordSamples
	var writers sync.WaitGroup
	for writer := range 2 {
		writers.Go(func() {
			for i := range each / batch {
				drop(marked(byte(2*(i%100)+writer+1)), batch)
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	read, next, missed := 0, uint64(0), uint64(0)
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		torn(t, r)
		d, err := r.Read(next)
		if err != nil {
			t.Fatal(err)
		}
		if uint64(len(d.Samples))+d.Missed != d.Next-next {
			t.Fatalf("from %d to %d: %d samples, %d missed", next, d.Next, len(d.Samples), d.Missed)
		}
		for _, s := range d.Samples {
			mark := byte(s.SrcPort)
			if s.Seq <= next || s.Src.As4() != [4]byte{mark, mark, mark, mark} || s.Dst != s.Src || s.DstPort != s.SrcPort || byte(s.SrcPort>>8) != mark {
				t.Fatalf("torn or out of order behind %d: %v", next, s)
			}
			next = s.Seq
		}
		read, next, missed = read+len(d.Samples), d.Next, missed+d.Missed
	}
	d := all(t, r, next)
	read, missed = read+len(d.Samples), missed+d.Missed
	const total = 2 * (each / batch) * batch
	// A signal ends a run early, and the library starts it anew: there may be some more.
	if d.Next < total || uint64(read)+missed != d.Next || read < egress.RecordSamples {
		t.Errorf("%d read, %d missed, the last is %d of %d", read, missed, d.Next, total)
	}
	t.Logf("%d of %d read, the others overwritten", read, total)
}

// TestTornCopiesAreNoSamples: the moments of a writer that a copy can fall on.
func TestTornCopiesAreNoSamples(t *testing.T) {
	at := func(seq uint64, mark byte) []byte {
		a := netip.AddrFrom4([4]byte{mark, mark, mark, mark})
		return egress.Sample{Seq: seq, Program: egress.ProgramLevels, Src: a, Dst: a}.Append(nil)
	}
	old, busy, after := at(7, 1), at(1<<64-1, 2), at(1031, 2)
	half := append(append([]byte(nil), old[:40]...), after[40:]...) // the old number, the new packet
	for name, c := range map[string]struct {
		first, second []byte
		ok            bool
	}{
		"nobody writes":                   {old, old, true},
		"it is being written":             {busy, busy, false},
		"it was overwritten before":       {after, after, false},
		"overwritten between the copies":  {old, after, false},
		"overwritten in the first copy":   {half, after, false},
		"the second falls on the writer":  {half, busy, false},
		"the first is whole, then a half": {old, half, false},
	} {
		copies := [][]byte{c.first, c.second}
		s, ok, err := twice(7, func() ([]byte, error) { b := copies[0]; copies = copies[1:]; return b, nil })
		if err != nil || ok != c.ok || ok && s.Src != netip.AddrFrom4([4]byte{1, 1, 1, 1}) {
			t.Errorf("%s: %v, %v, %v", name, s, ok, err)
		}
	}
}

// torn reads the oldest samples, which are being overwritten right now.
func torn(t *testing.T, r *Record) {
	t.Helper()
	var head uint64
	if err := r.maps[bpf.LevelMapDropHead].Lookup(uint32(0), &head); err != nil {
		t.Fatal(err)
	}
	for ahead := range uint64(200) {
		if head < egress.RecordSamples {
			return
		}
		s, ok, err := r.sample(head + 1 + ahead*3 - egress.RecordSamples)
		if err != nil {
			t.Fatal(err)
		}
		if mark := byte(s.SrcPort); ok && (s.Src.As4() != [4]byte{mark, mark, mark, mark} || s.Dst != s.Src || s.DstPort != s.SrcPort) {
			t.Fatalf("torn: %v", s)
		}
	}
}

func TestRecordIsTakenOver(t *testing.T) {
	r, dir := record(t)
	dropper(t, r, false)(marked(7), 1)
	again, err := OpenRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if d := all(t, again, 0); len(d.Samples) != 1 || d.Samples[0].SrcPort != 0x0707 {
		t.Errorf("after it was opened again: %+v", d)
	}
}

// TestRecordIsClosedToProcesses: not even who made it can change it.
func TestRecordIsClosedToProcesses(t *testing.T) {
	proof.SFR(t, "FAU_STG.1", "the programs of TestRecordSaysWhatWasDropped write it")
	r, dir := record(t)
	for name, m := range r.maps {
		pinned, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer pinned.Close()
		for _, m := range []*ebpf.Map{m, pinned} {
			value := make([]byte, m.ValueSize())
			if m.Type() == ebpf.PerCPUArray {
				if err := m.Put(uint32(0), make([][]byte, ebpf.MustPossibleCPU())); err == nil {
					t.Errorf("%s took a value", name)
				}
			} else if err := m.Put(uint32(0), value); err == nil {
				t.Errorf("%s took a value", name)
			}
		}
	}
}

// TestForeignRecordIsRefused: a pin that is no record is not taken for one.
func TestForeignRecordIsRefused(t *testing.T) {
	r, dir := record(t)
	path := filepath.Join(dir, bpf.LevelMapDropHead)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := pinObject(r.maps[bpf.LevelMapDropRecord], path); err != nil {
		t.Fatal(err)
	}
	if other, err := OpenRecord(dir); err == nil {
		_ = other.Close()
		t.Error("another map's pin was taken for the head")
	}
}
