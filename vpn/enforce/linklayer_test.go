package enforce

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"rempart/internal/proof"
	"rempart/vpn/egress"
)

func linkFacts(own uint64) egress.LinkFacts {
	return egress.LinkFacts{
		Linkd: own, MAC: [6]byte{2, 0, 0, 0, 0, 11},
		Addr4: netip.MustParseAddr("203.0.113.11"), Router4: netip.MustParseAddr("203.0.113.254"),
		Local6: netip.MustParseAddr("fe80::b:11:b"), Addr6: netip.MustParseAddr("2001:db8:113::11"), Router6: netip.MustParseAddr("fe80::fe:1:fe"),
	}
}

var routerMAC = [6]byte{2, 0, 0, 0, 0, 0xfe}

// arpOf makes a correct frame of the minimum: a question or an answer.
func arpOf(f egress.LinkFacts, d egress.Direction, request bool, padded bool) []byte {
	src, spa, dst, tpa := f.MAC, f.Addr4, routerMAC, f.Router4
	if d == egress.Ingress {
		src, spa, dst, tpa = routerMAC, f.Router4, f.MAC, f.Addr4
	}
	tha, op := dst, byte(2)
	if request {
		dst, tha, op = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, [6]byte{}, 1
	}
	b := append(append(dst[:], src[:]...), 8, 6, 0, 1, 8, 0, 6, 4, 0, op)
	b = append(append(append(append(b, src[:]...), spa.AsSlice()...), tha[:]...), tpa.AsSlice()...)
	if padded {
		b = append(b, make([]byte, 18)...)
	}
	return b
}

// ndOf makes a correct frame of the minimum, or of its other direction.
func ndOf(f egress.LinkFacts, d egress.Direction, kind byte, option, group bool) []byte {
	src, dst, own, target := f.MAC, routerMAC, f.Addr6, f.Router6
	from, to := own, f.Router6
	if d == egress.Ingress {
		src, dst, target = routerMAC, f.MAC, own
		from, to = f.Router6, own
	}
	var body []byte
	switch kind {
	case 133:
		from, to, dst = f.Local6, netip.MustParseAddr("ff02::2"), [6]byte{0x33, 0x33, 0, 0, 0, 2}
		body = append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 1, 1}, src[:]...)
	case 134:
		from, to, dst = f.Router6, netip.MustParseAddr("ff02::1"), [6]byte{0x33, 0x33, 0, 0, 0, 1}
		body = make([]byte, 16+32)
	default:
		body = make([]byte, 8)
		if kind == 136 {
			target = from
			body[4] = 0x40
			if option {
				body[4] = 0x60
			}
		} else if group {
			b := target.As16()
			to = netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
			dst = [6]byte{0x33, 0x33, 0xff, b[13], b[14], b[15]}
		}
		body = append(body, target.AsSlice()...)
		if option {
			body = append(append(body, 2-(kind&1), 1), src[:]...)
		}
	}
	body[0] = kind
	b := append(append(dst[:], src[:]...), 0x86, 0xdd, 0x60, 0, 0, 0)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(body))), 58, 255)
	return append(append(append(b, from.AsSlice()...), to.AsSlice()...), body...)
}

func dhcpOf(f egress.LinkFacts, d egress.Direction, m egress.DHCPMessage, xid [4]byte) []byte {
	if d == egress.Egress {
		b := f.Template(m).Value
		copy(b[42:], f.DHCP(m, xid, netip.MustParseAddr("203.0.113.77"), netip.MustParseAddr("203.0.113.254")))
		return b[:]
	}
	b := f.Template(egress.DHCPDiscover).Value
	copy(b[6:], routerMAC[:])
	copy(b[26:], f.Router4.AsSlice())
	b[35], b[37], b[42] = 67, 68, 2
	copy(b[46:], xid[:])
	return b[:]
}

// linkFrame makes a frame near the minimum.
func linkFrame(r *rand.Rand, f egress.LinkFacts, d egress.Direction, xid [4]byte) []byte {
	flip := func() bool { return r.IntN(2) == 0 }
	from := d
	if r.IntN(16) == 0 {
		from = 1 - d // right, but the other way round
	}
	switch r.IntN(3) {
	case 0:
		return arpOf(f, from, flip(), from == egress.Ingress && flip())
	case 1:
		return ndOf(f, from, byte(133+r.IntN(4)), r.IntN(4) > 0, flip())
	}
	return dhcpOf(f, from, egress.DHCPMessage(r.IntN(int(egress.DHCPMessages))), xid)
}

// linkMutate damages fields that the minimum looks at.
func linkMutate(r *rand.Rand, f egress.LinkFacts, p *[]byte) {
	b := *p
	switch r.IntN(6) {
	case 0:
		b[r.IntN(len(b))] ^= 1 << r.IntN(8)
	case 1: // an address of the link in the place of another
		known := [][]byte{f.MAC[:], routerMAC[:], f.Addr4.AsSlice(), f.Router4.AsSlice(), f.Addr6.AsSlice(), f.Local6.AsSlice(), f.Router6.AsSlice(),
			{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {0, 0, 0, 0, 0, 0}}
		at := []int{0, 6, 22, 26, 28, 30, 32, 38, 62, 80}[r.IntN(10)]
		if v := known[r.IntN(len(known))]; at+len(v) <= len(b) {
			copy(b[at:], v)
		}
	case 2:
		if len(b) > 60 {
			b[54+r.IntN(6)] = byte(r.Uint32())
		}
	case 3:
		*p = append(b, make([]byte, []int{1, 4, 8, 18}[r.IntN(4)])...)
	case 4:
		*p = b[:max(14, len(b)-[]int{1, 4, 8, 16}[r.IntN(4)])]
	case 5:
		mutate(r, p)
	}
	for len(*p) < 14 {
		*p = append(*p, 0)
	}
}

// putState writes what the gate remembers: buckets that are full or empty, and a reply that is expected or not. The model
// gets the same, so that no clock decides.
func putState(t *testing.T, s *subject, l *egress.Link, empty uint8, expected bool, xid [4]byte) {
	t.Helper()
	var w [egress.LinkWords]uint64
	const future = 1 << 62
	for i := range 6 {
		if empty&(1<<i) != 0 {
			w[i] = future
		}
	}
	if expected {
		w[6] = future
	}
	w[7] = uint64(binary.LittleEndian.Uint32(xid[:]))
	for i, word := range w {
		if err := s.link.Put(uint32(i), word); err != nil {
			t.Fatal(err)
		}
	}
	l.Now, l.State = 1<<40, egress.LinkStateOf(w)
}

// TestLinkProgramEqualsModel tries random and mutated ARP, ND and DHCP frames, with facts that are whole, partly there and
// missing, on the loaded program and on the model.
func TestLinkProgramEqualsModel(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the frames of it that are admitted")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 3))
	var reasons [2][egress.Reasons]int
	for name, facts := range map[string]func(uint64) egress.LinkFacts{
		"whole": linkFacts,
		"no lease": func(own uint64) egress.LinkFacts {
			f := linkFacts(own)
			f.Addr4, f.Router4 = netip.Addr{}, netip.Addr{}
			return f
		},
		"no prefix": func(own uint64) egress.LinkFacts {
			f := linkFacts(own)
			f.Addr6, f.Router6 = netip.Addr{}, netip.Addr{}
			return f
		},
		"not linkd": func(own uint64) egress.LinkFacts { return linkFacts(own + 1) },
		"no linkd":  func(uint64) egress.LinkFacts { return linkFacts(0) },
		"no IPv6": func(own uint64) egress.LinkFacts {
			f := linkFacts(own)
			f.Local6, f.Addr6, f.Router6 = netip.Addr{}, netip.Addr{}, netip.Addr{}
			return f
		},
		"no fact":      func(uint64) egress.LinkFacts { return egress.LinkFacts{} },
		"whole, again": linkFacts,
	} {
		s := newLinkSubject(t, facts)
		l := &egress.Link{Facts: facts(s.own)}
		var want egress.Counters
		for i := range 10_000 {
			for d := egress.Egress; d <= egress.Ingress; d++ {
				xid := [4]byte{byte(r.IntN(2)), 1, 2, 3}
				frame := linkFrame(r, linkFacts(s.own), d, xid)
				for range r.IntN(3) {
					linkMutate(r, linkFacts(s.own), &frame)
				}
				empty := uint8(0)
				if r.IntN(4) == 0 {
					empty = uint8(r.Uint32())
				}
				putState(t, s, l, empty, r.IntN(4) > 0, [4]byte{0, 1, 2, 3})
				var mark uint32
				if r.IntN(16) == 0 {
					mark = 1
				}
				verdict, reason := egress.Decide(s.policy, d, frame, egress.Meta{Cgroup: s.own, Mark: mark, Link: l})
				code, ok := s.run(d, frame, mark)
				if !ok {
					continue
				}
				if want[d][reason]++; (code == 0) != bool(verdict) {
					t.Fatalf("seed %d, %s: %v %x mark %d: program says %d, model %v", seed, name, d, frame, mark, code, reason)
				}
				reasons[d][reason]++
			}
			if i%100 == 99 {
				if got := s.counts(t); got != want {
					t.Fatalf("seed %d, %s: reasons differ: program %v, model %v", seed, name, got, want)
				}
			}
		}
	}
	for d := egress.Egress; d <= egress.Ingress; d++ {
		for _, want := range []egress.Reason{egress.Admitted, egress.ARP, egress.ND, egress.DHCP, egress.LinkRate, egress.Mark, egress.Cgroup} {
			if reasons[d][want] == 0 && !unreachable(d, want) {
				t.Errorf("seed %d: no frame with %v %v: the generator is blind there", seed, d, want)
			}
		}
	}
	t.Logf("%v", reasons)
}

func (s *subject) counts(t *testing.T) egress.Counters {
	t.Helper()
	c, err := readCounters(s.counters)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestLinkAdmitsTheMinimum: each kind of the minimum, undamaged, both ways; and a reply only after its request.
func TestLinkAdmitsTheMinimum(t *testing.T) {
	s := newLinkSubject(t, linkFacts)
	f := linkFacts(s.own)
	xid := [4]byte{1, 2, 3, 4}
	try := func(what string, want bool, d egress.Direction, frame []byte) {
		t.Helper()
		if code, ok := s.run(d, frame, 0); !ok || (code == 0) != want {
			t.Errorf("%s, %v: %d, want admitted %t", what, d, code, want)
		}
	}
	try("a reply that is not expected", false, egress.Ingress, dhcpOf(f, egress.Ingress, 0, xid))
	for m := range egress.DHCPMessages {
		try("DHCP", true, egress.Egress, dhcpOf(f, egress.Egress, m, xid))
	}
	try("a reply", true, egress.Ingress, dhcpOf(f, egress.Ingress, 0, xid))
	try("a reply to another", false, egress.Ingress, dhcpOf(f, egress.Ingress, 0, [4]byte{}))
	for _, d := range []egress.Direction{egress.Egress, egress.Ingress} {
		try("ARP question", true, d, arpOf(f, d, true, false))
		try("ARP answer", true, d, arpOf(f, d, false, false))
		try("padded ARP answer", d == egress.Ingress, d, arpOf(f, d, false, true))
		try("router solicitation", d == egress.Egress, d, ndOf(f, d, 133, false, false))
		try("router advertisement", d == egress.Ingress, d, ndOf(f, d, 134, false, false))
		try("neighbour solicitation to the group", true, d, ndOf(f, d, 135, true, true))
		try("neighbour solicitation", true, d, ndOf(f, d, 135, true, false))
		try("neighbour advertisement", true, d, ndOf(f, d, 136, false, false))
		try("neighbour advertisement with the address", true, d, ndOf(f, d, 136, true, false))
	}
}

// TestLinkRateOfTheProgram is coarse, as the clock is the kernel's: of a thousand at once, the burst and what the time gave.
func TestLinkRateOfTheProgram(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the frames within the rate")
	s := newLinkSubject(t, linkFacts)
	f := linkFacts(s.own)
	for name, c := range map[string]struct {
		frame    []byte
		burst    int
		interval time.Duration
	}{
		"ARP":  {arpOf(f, egress.Egress, true, false), egress.LinkBurst, egress.LinkInterval},
		"ND":   {ndOf(f, egress.Egress, 135, true, true), egress.LinkBurst, egress.LinkInterval},
		"DHCP": {dhcpOf(f, egress.Egress, egress.DHCPDiscover, [4]byte{}), egress.DHCPBurst, egress.DHCPInterval},
	} {
		start, n := time.Now(), 0
		for range 1000 {
			if code, ok := s.run(egress.Egress, c.frame, 0); ok && code == 0 {
				n++
			}
		}
		if most := c.burst + 1 + int(time.Since(start)/c.interval); n < c.burst || n > most {
			t.Errorf("%s: %d of 1000 at once, want %d to %d", name, n, c.burst, most)
		}
	}
	if c := s.counts(t); c[egress.Egress][egress.LinkRate] < 2900 {
		t.Errorf("%d were over the rate", c[egress.Egress][egress.LinkRate])
	}
}

// TestLinkFactsInForce: facts outlive swaps of the policy, are read back, and a wish for others is a difference.
func TestLinkFactsInForce(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the read-back that agrees")
	w := newWorld(t)
	w.in(w.black, func() error {
		if err := AttachFloor(w.ifindex); err != nil {
			return err
		}
		g, err := Attach(w.ifindex, w.pins)
		if err != nil {
			return err
		}
		defer g.Close()
		differences := func(p egress.Policy, f egress.LinkFacts) int {
			r, err := ReadBack(w.ifindex, p, f)
			if err != nil {
				t.Error(err)
			}
			return len(r.Differences)
		}
		f := linkFacts(cgroupID(t, w.tunneld))
		bad := f
		bad.Router4 = bad.Addr4
		if err := g.SetLink(bad); err == nil || g.Link() != (egress.LinkFacts{}) {
			t.Errorf("facts that mean nothing: %v", err)
		}
		if err := g.SetLink(f); err != nil {
			return err
		}
		if n := differences(egress.DenyAll(), f); n != 0 {
			t.Errorf("%d differences", n)
		}
		if n := differences(egress.DenyAll(), egress.LinkFacts{}); n == 0 {
			t.Error("facts that nobody wants went unnoticed")
		}
		if err := g.Swap(w.tunnel()); err != nil {
			return err
		}
		if n := differences(w.tunnel(), f); n != 0 {
			t.Errorf("%d differences after a swap", n)
		}
		f.Addr4, f.Router4 = netip.Addr{}, netip.Addr{}
		if n := differences(w.tunnel(), f); n == 0 {
			t.Error("a lease that ended went unnoticed")
		}
		if err := g.link.Put(uint32(0), uint64(0)); err == nil {
			t.Error("a process could fill the buckets")
		}
		return g.SetLink(f)
	})
}
