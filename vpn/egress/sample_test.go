package egress

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// samples are one of each family.
func samples() []Sample {
	return []Sample{
		{Seq: 1, Time: time.Second, Cgroup: 77, Ifindex: 3, Program: ProgramGate, Reason: uint8(NoClass), Proto: UDP,
			Src: netip.MustParseAddr("203.0.113.11"), Dst: netip.MustParseAddr("198.51.100.7"), SrcPort: 40000, DstPort: 53},
		{Seq: 1<<64 - 2, Program: ProgramLevels, Direction: Ingress, Reason: RecordReasons - 1, Proto: TCP,
			Src: netip.MustParseAddr("2001:db8::1"), Dst: netip.MustParseAddr("::ffff:192.0.2.1"), SrcPort: 1},
		{Seq: 1024, Program: ProgramFloor, Ifindex: 1<<31 - 1},
	}
}

func TestSampleIsItsBytes(t *testing.T) {
	for _, s := range samples() {
		b := s.Append(nil)
		got, err := ParseSample(b)
		if err != nil || got != s {
			t.Errorf("%v came back as %v, %v", s, got, err)
		}
	}
	text := samples()[0].String()
	for _, want := range []string{"gate egress", "203.0.113.11:40000 > 198.51.100.7:53", "no-class"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q does not say %q", text, want)
		}
	}
}

// TestSampleRefuses: one fault each, in a sample that is good without it.
func TestSampleRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		sample int
		at     int
		value  byte
	}{
		"number 0":                {2, 1, 0},
		"time below zero":         {0, 15, 0x80},
		"interface below zero":    {0, 27, 0x80},
		"program 0":               {0, 28, 0},
		"program 4":               {0, 28, 4},
		"direction 2":             {0, 29, 2},
		"reason 32":               {0, 30, 32},
		"family 5":                {0, 31, 5},
		"padding":                 {0, 33, 1},
		"ports without addresses": {2, 36, 1},
		"address without family":  {2, 40, 1},
		"long IPv4 source":        {0, 44, 1},
		"long IPv4 destination":   {0, 71, 1},
	} {
		b := samples()[c.sample].Append(nil)
		b[c.at] = c.value
		if name == "number 0" {
			clear(b[:8])
		}
		if s, err := ParseSample(b); err == nil {
			t.Errorf("%s: taken as %v", name, s)
		}
	}
	busy := samples()[0]
	busy.Seq = 1<<64 - 1
	if _, err := ParseSample(busy.Append(nil)); err == nil {
		t.Error("a place that is being written was taken")
	}
	for _, n := range []int{0, SampleSize - 1, SampleSize + 1} {
		if _, err := ParseSample(make([]byte, n)); err == nil {
			t.Errorf("%d bytes were taken", n)
		}
	}
}

func FuzzParseSample(f *testing.F) {
	for _, s := range samples() {
		f.Add(s.Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSample(b)
		if err != nil {
			return
		}
		if again := s.Append(nil); !bytes.Equal(again, b) {
			t.Errorf("%x came back as %x", b, again)
		}
	})
}
