package egress_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rempart/internal/proof"
	"rempart/vpn/egress"
	"rempart/vpn/egress/egresstest"
)

var update = flag.Bool("update", false, "write the frame corpus anew")

const (
	own, other  = 77, 78
	corpus      = "testdata/frames"
	corpusFiles = 60
)

// TestCorpus: the model decides on each kept frame as it did when the frame was kept.
// vpn/enforce tries the same frames on the program.
func TestCorpus(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the corpus names the reason of each frame")
	if *update {
		writeCorpus(t)
	}
	for _, c := range egresstest.Corpus(t, corpus, corpusFiles) {
		var f egress.Fragments
		for i, s := range c.Steps {
			v, r := egress.Decide(egresstest.Policy(own, other), s.Direction, s.Frame, egress.Meta{Cgroup: own, Mark: s.Mark, Fragments: &f})
			if r != s.Want || bool(v) != (r == egress.Admitted) {
				t.Errorf("%s, frame %d: %v, want %v", c.Name, i+1, r, s.Want)
			}
		}
	}
}

// writeCorpus keeps some frames of each direction, reason and IP version, and pairs of
// fragments.
func writeCorpus(t *testing.T) {
	files := map[string][]string{}
	r := rand.New(rand.NewPCG(3, 2026))
	for range 400_000 {
		d := egress.Direction(r.IntN(2))
		frame := egresstest.Random(r, d)
		var mark uint32
		if r.IntN(20) == 0 {
			mark = r.Uint32()
		}
		var f egress.Fragments
		_, reason := egress.Decide(egresstest.Policy(own, other), d, frame, egress.Meta{Cgroup: own, Mark: mark, Fragments: &f})
		name := fmt.Sprintf("%v-%v-%s", d, reason, shape(frame))
		line := egresstest.Step{Direction: d, Mark: mark, Want: reason, Frame: frame}.Text()
		if f.Len() == 1 {
			name = fmt.Sprintf("%v-first-fragment-%s", d, shape(frame))
		}
		if len(files[name]) < 4 {
			files[name] = append(files[name], line)
		}
	}
	if err := os.MkdirAll(corpus, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, lines := range files {
		if err := os.WriteFile(filepath.Join(corpus, name+".txt"), []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d files", len(files))
}

func shape(frame []byte) string {
	s := egress.Show(egress.Ingress, frame, false)
	switch {
	case !s.Src.IsValid():
		return "no-ip"
	case s.Src.Is4():
		return "ipv4"
	}
	return "ipv6"
}

// sequence of one datagram in parts, and what becomes of each.
type part struct {
	frame []byte
	meta  egress.Meta
	after time.Duration
	want  egress.Reason
}

// ipv4 makes a fragment of a UDP datagram to or from the gateway.
func ipv4(d egress.Direction, id byte, offset int, more bool, data []byte) []byte {
	field := offset / 8
	if more {
		field |= 0x2000
	}
	b := append(make([]byte, 12), 8, 0, 0x45, 0, 0, byte(20+len(data)), 0, id, byte(field>>8), byte(field), 64, egress.UDP, 0, 0)
	local, gateway := []byte{203, 0, 113, 11}, []byte{203, 0, 113, 1}
	if d == egress.Egress {
		b = append(append(b, local...), gateway...)
	} else {
		b = append(append(b, gateway...), local...)
	}
	return append(b, data...)
}

// udp is a UDP header of that length, and data up to n bytes.
func udp(length, n int) []byte {
	b := make([]byte, n)
	copy(b, []byte{0xca, 0x6c, 0xca, 0x6c, byte(length >> 8), byte(length)})
	return b
}

func TestFragmentsFollowTheirFirst(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the rows that are admitted")
	mine := egress.Meta{Cgroup: own}
	for name, parts := range map[string][]part{
		"in order":                         {{ipv4(0, 1, 0, true, udp(40, 24)), mine, 0, egress.Admitted}, {ipv4(0, 1, 24, false, make([]byte, 16)), mine, 0, egress.Admitted}},
		"the later one first":              {{ipv4(0, 1, 24, false, make([]byte, 16)), mine, 0, egress.NoFirst}},
		"another number":                   {{ipv4(0, 1, 0, true, udp(40, 24)), mine, 0, egress.Admitted}, {ipv4(0, 2, 24, false, make([]byte, 16)), mine, 0, egress.NoFirst}},
		"from another cgroup":              {{ipv4(0, 1, 0, true, udp(40, 24)), mine, 0, egress.Admitted}, {ipv4(0, 1, 24, false, make([]byte, 16)), egress.Meta{Cgroup: other}, 0, egress.Cgroup}},
		"from no socket":                   {{ipv4(0, 1, 0, true, udp(40, 24)), mine, 0, egress.Admitted}, {ipv4(0, 1, 24, false, make([]byte, 16)), egress.Meta{}, 0, egress.Cgroup}},
		"marked":                           {{ipv4(0, 1, 0, true, udp(40, 24)), mine, 0, egress.Admitted}, {ipv4(0, 1, 24, false, make([]byte, 16)), egress.Meta{Cgroup: own, Mark: 1}, 0, egress.Mark}},
		"the first one not admitted":       {{ipv4(0, 1, 0, true, udp(40, 24)), egress.Meta{Cgroup: other}, 0, egress.Cgroup}, {ipv4(0, 1, 24, false, make([]byte, 16)), egress.Meta{Cgroup: other}, 0, egress.NoFirst}},
		"too late":                         {{ipv4(0, 1, 0, true, udp(40, 24)), mine, 0, egress.Admitted}, {ipv4(0, 1, 24, false, make([]byte, 16)), mine, egress.FragmentLife, egress.NoFirst}},
		"just in time":                     {{ipv4(0, 1, 0, true, udp(40, 24)), mine, 0, egress.Admitted}, {ipv4(0, 1, 24, false, make([]byte, 16)), mine, egress.FragmentLife - 1, egress.Admitted}},
		"over the ports":                   {{ipv4(0, 1, 0, true, udp(40, 24)), mine, 0, egress.Admitted}, {ipv4(0, 1, 16, false, make([]byte, 24)), mine, 0, egress.Fragment}},
		"more than the datagram":           {{ipv4(0, 1, 0, true, udp(40, 24)), mine, 0, egress.Admitted}, {ipv4(0, 1, 24, false, make([]byte, 17)), mine, 0, egress.Fragment}},
		"less than the datagram":           {{ipv4(0, 1, 0, true, udp(40, 24)), mine, 0, egress.Admitted}, {ipv4(0, 1, 24, false, make([]byte, 15)), mine, 0, egress.Fragment}},
		"more behind the end":              {{ipv4(0, 1, 0, true, udp(40, 24)), mine, 0, egress.Admitted}, {ipv4(0, 1, 24, true, make([]byte, 16)), mine, 0, egress.Fragment}},
		"a tiny first one":                 {{ipv4(0, 1, 0, true, udp(40, 0)), mine, 0, egress.L4Length}},
		"a first one of seven bytes":       {{ipv4(0, 1, 0, true, udp(40, 7)), mine, 0, egress.Fragment}},
		"a first one that says it is all":  {{ipv4(0, 1, 0, true, udp(24, 24)), mine, 0, egress.Fragment}},
		"one the other way":                {{ipv4(1, 1, 0, true, udp(40, 24)), mine, 0, egress.Admitted}, {ipv4(1, 1, 24, false, make([]byte, 16)), mine, 0, egress.Admitted}},
		"two directions are two datagrams": {{ipv4(0, 1, 0, true, udp(40, 24)), mine, 0, egress.Admitted}, {ipv4(1, 1, 24, false, make([]byte, 16)), mine, 0, egress.NoFirst}},
	} {
		var f egress.Fragments
		for i, p := range parts {
			d := egress.Egress
			if p.frame[14+12+3] == 1 {
				d = egress.Ingress
			}
			f.Now += p.after
			p.meta.Fragments = &f
			if _, r := egress.Decide(egresstest.Policy(own, other), d, p.frame, p.meta); r != p.want {
				t.Errorf("%s, part %d: %v, want %v", name, i+1, r, p.want)
			}
		}
	}
	// A gate without a memory passes no later fragment.
	if _, r := egress.Decide(egresstest.Policy(own, other), 0, ipv4(0, 1, 24, false, make([]byte, 16)), mine); r != egress.NoFirst {
		t.Errorf("without a memory: %v", r)
	}
}

// FuzzDecide: the model is total, and what it admits has a class or an admitted first
// fragment.
func FuzzDecide(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 64 {
		f.Add(egresstest.Random(r, egress.Egress), false, false, uint32(0), uint64(own))
		f.Add(egresstest.Random(r, egress.Ingress), true, r.IntN(8) == 0, uint32(0), uint64(0))
	}
	f.Fuzz(func(t *testing.T, frame []byte, ingress, tagged bool, mark uint32, cgroup uint64) {
		d := egress.Egress
		if ingress {
			d = egress.Ingress
		}
		var memory egress.Fragments
		p := egresstest.Policy(own, other)
		v, reason := egress.Decide(p, d, frame, egress.Meta{Cgroup: cgroup, Mark: mark, VLAN: tagged, Fragments: &memory})
		if bool(v) != (reason == egress.Admitted) || reason >= egress.Reasons {
			t.Fatalf("%v with %v", v, reason)
		}
		s := egress.Show(d, frame, tagged)
		if !v {
			return
		}
		if tagged || d == egress.Egress && (mark != 0 || cgroup != own && cgroup != other) {
			t.Fatalf("admitted: tagged %v, mark %d, cgroup %d", tagged, mark, cgroup)
		}
		remote, port, local := s.Dst, s.DstPort, s.SrcPort
		if ingress {
			remote, port, local = s.Src, s.SrcPort, s.DstPort
		}
		for _, c := range p.Classes {
			if c.Proto == s.Proto && (c.Addr == remote && c.Port == port || c.Responder() && c.Port == local) {
				return
			}
		}
		t.Fatalf("admitted without a class: %v", s)
	})
}
