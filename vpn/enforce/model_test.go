package enforce

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"rempart/internal/proof"
	"rempart/vpn/egress"
)

// ownCgroup is the id of the cgroup that test runs' sockets get: the caller's.
func ownCgroup(t *testing.T) uint64 {
	t.Helper()
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return cgroupID(t, filepath.Join(cgroupRoot(t), path))
		}
	}
	t.Fatal("no cgroup2 line")
	return 0
}

func modelPolicy(own uint64) egress.Policy {
	return egress.Policy{Classes: []egress.Class{
		{Gateway: "g", Addr: netip.MustParseAddr("203.0.113.1"), Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: own},
		{Gateway: "g", Addr: netip.MustParseAddr("2001:db8:113::1"), Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: own},
		{Gateway: "g", Addr: netip.MustParseAddr("203.0.113.1"), Proto: egress.TCP, Port: 443, Purpose: egress.Attestation, Cgroup: own},
		{Gateway: "g", Addr: netip.MustParseAddr("203.0.113.2"), Proto: egress.UDP, Port: 4500, Purpose: egress.IKE, Cgroup: own + 1},
		{Gateway: "r", Proto: egress.UDP, Port: 51821, Purpose: egress.Tunnel, Cgroup: own},
		{Gateway: "r", Proto: egress.TCP, Port: 444, Purpose: egress.Attestation, Cgroup: own},
	}}
}

// subject is the loaded gate that frames are tried on.
type subject struct {
	t      *testing.T
	policy egress.Policy
	own    uint64
	in     *instance
	memory
}

func newSubject(t *testing.T) *subject {
	return newLinkSubject(t, func(uint64) egress.LinkFacts { return egress.LinkFacts{} })
}

// newLinkSubject gives the device link facts, which may name the test's own cgroup.
func newLinkSubject(t *testing.T, facts func(own uint64) egress.LinkFacts) *subject {
	t.Helper()
	proof.NeedRoot(t)
	s := &subject{t: t, own: ownCgroup(t)}
	s.policy = modelPolicy(s.own)
	var err error
	if s.counters, err = newCounters(); err != nil {
		t.Fatal(err)
	}
	if s.link, err = newMap("link_state"); err != nil {
		t.Fatal(err)
	}
	if s.in, err = loadInstance(s.policy, facts(s.own), s.memory); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.in.close(); err != nil {
			t.Error(err)
		}
		if err := errors.Join(s.counters.Close(), s.link.Close()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// skb is the part of the test run's context that may be set.
type skb struct{ Len, PktType, Mark uint32 }

// run returns the program's verdict code; ok is false where this kernel's test run
// takes no frame that ends inside its network header (TestShortFrames sends those).
func (s *subject) run(d egress.Direction, frame []byte, mark uint32) (code uint32, ok bool) {
	s.t.Helper()
	code, err := s.in.programs[d].Run(&ebpf.RunOptions{Data: frame, Context: skb{Mark: mark}})
	if errors.Is(err, unix.EINVAL) && len(frame) < 14+40 {
		return 0, false
	}
	if err != nil {
		s.t.Fatalf("test run of %x: %v", frame, err)
	}
	return code, true
}

// frameOf makes a correct frame. The remote is the destination of an outgoing
// frame and the source of an incoming one.
func frameOf(remote netip.Addr, d egress.Direction, proto uint8, remotePort, localPort uint16, payload int) []byte {
	l4 := 8
	if proto == egress.TCP {
		l4 = 20
	}
	f := make([]byte, 12, 128+payload)
	copy(f, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2})
	local := netip.MustParseAddr("203.0.113.11")
	if !remote.Is4() {
		local = netip.MustParseAddr("2001:db8:113::11")
	}
	src, dst, sport, dport := local, remote, localPort, remotePort
	if d == egress.Ingress {
		src, dst, sport, dport = remote, local, remotePort, localPort
	}
	if remote.Is4() {
		f = append(f, 8, 0, 0x45, 0)
		f = binary.BigEndian.AppendUint16(f, uint16(20+l4+payload))
		f = append(f, 0, 0, 0x40, 0, 64, proto, 0, 0)
	} else {
		f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0)
		f = binary.BigEndian.AppendUint16(f, uint16(l4+payload))
		f = append(f, proto, 64)
	}
	f = append(append(f, src.AsSlice()...), dst.AsSlice()...)
	f = binary.BigEndian.AppendUint16(f, sport)
	f = binary.BigEndian.AppendUint16(f, dport)
	if proto == egress.TCP {
		f = append(f, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0)
	} else {
		f = binary.BigEndian.AppendUint16(f, uint16(8+payload))
		f = append(f, 0, 0)
	}
	return append(f, make([]byte, payload)...)
}

// randomFrame makes a frame near the policy, then damages it or not.
func randomFrame(r *rand.Rand, d egress.Direction) []byte {
	pick := func(list ...string) netip.Addr { return netip.MustParseAddr(list[r.IntN(len(list))]) }
	remote := pick("203.0.113.1", "203.0.113.1", "203.0.113.2", "198.51.100.7", "2001:db8:113::1", "2001:db8:113::1", "2001:db8:51::7",
		"224.0.0.251", "255.255.255.255", "127.0.0.1", "0.0.0.0", "ff02::fb", "::1", "::", "::ffff:203.0.113.1", "fe80::1", "223.255.255.255")
	ports := []uint16{51820, 51820, 51821, 51821, 443, 444, 4500, 53, 0, 0x6ca, uint16(r.Uint32())}
	protos := []uint8{egress.UDP, egress.UDP, egress.UDP, egress.TCP, egress.TCP}
	f := frameOf(remote, d, protos[r.IntN(len(protos))], ports[r.IntN(len(ports))], ports[r.IntN(len(ports))], r.IntN(64))
	for range r.IntN(4) {
		mutate(r, &f)
	}
	for len(f) < 14 { // the kernel's test run takes no less than an Ethernet header
		f = append(f, 0)
	}
	return f
}

func mutate(r *rand.Rand, f *[]byte) {
	b := *f
	if len(b) < 15 {
		return
	}
	switch r.IntN(8) {
	case 0: // any bit
		b[r.IntN(len(b))] ^= 1 << r.IntN(8)
	case 1: // a bit of the headers
		b[12+r.IntN(min(len(b)-12, 54))] ^= 1 << r.IntN(8)
	case 2: // a byte of the IP header
		b[14+r.IntN(min(len(b)-14, 12))] = byte(r.Uint32())
	case 3: // cut
		*f = b[:r.IntN(len(b))]
	case 4: // padding, or bytes behind the datagram
		*f = append(b, make([]byte, 1+r.IntN(40))...)
	case 5: // EtherType
		types := []uint16{0x0800, 0x86dd, 0x0806, 0x8100, 0x88a8, 0x88cc, 0x0100, 0x9100}
		binary.BigEndian.PutUint16(b[12:], types[r.IntN(len(types))])
	case 6: // a tag in the frame
		*f = append(b[:12:12], append([]byte{0x81, 0, 0, 5}, b[12:]...)...)
	case 7: // protocol or next header
		protos := []byte{0, 1, 2, 6, 17, 43, 44, 50, 58, 59, 60, 132, 136}
		if at := []int{20, 23}[r.IntN(2)]; at < len(b) {
			b[at] = protos[r.IntN(len(protos))]
		}
	}
}

// TestProgramEqualsModel tries random frames near the policy on the loaded program
// and on the model: the verdict and, by the counters, the reason must be the same.
func TestProgramEqualsModel(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "TestEachReason")
	s := newSubject(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	refused := 0
	var fragments egress.Fragments
	const frames, batch = 120_000, 1000 // in each direction
	var want, got egress.Counters
	var reasons [2][egress.Reasons]int
	for i := range frames {
		for d := egress.Egress; d <= egress.Ingress; d++ {
			frame := randomFrame(r, d)
			var mark uint32
			if r.IntN(8) == 0 {
				mark = r.Uint32()
			}
			fragments.Now = coarse(t)
			verdict, reason := egress.Decide(s.policy, d, frame, egress.Meta{Cgroup: s.own, Mark: mark, Fragments: &fragments})
			code, ok := s.run(d, frame, mark)
			if !ok {
				refused++
				if reason != egress.Short {
					t.Fatalf("seed %d: the test run refused %x, model %v", seed, frame, reason)
				}
				continue
			}
			if (code == 0) != bool(verdict) || code != 0 && code != 2 {
				t.Fatalf("seed %d: %v %x mark %d: program says %d, model %v (%v)", seed, d, frame, mark, code, verdict, reason)
			}
			want[d][reason]++
			reasons[d][reason]++
		}
		if (i+1)%batch == 0 {
			var err error
			if got, err = readCounters(s.counters); err != nil {
				t.Fatal(err)
			}
			if got != want {
				t.Fatalf("seed %d: reasons differ: program %v, model %v", seed, got, want)
			}
		}
	}
	for d := range reasons {
		for reason, n := range reasons[d] {
			if n == 0 && !blind(egress.Reason(reason)) && !unreachable(egress.Direction(d), egress.Reason(reason)) && (refused == 0 || egress.Reason(reason) != egress.Short) {
				t.Errorf("seed %d: no frame with %v %v in %d: the generator is blind there", seed, egress.Direction(d), egress.Reason(reason), frames)
			}
		}
	}
	t.Logf("%d frames, %d too short for a test run: %v", 2*frames, refused, reasons)
}

// blind: the link-layer minimum has a generator of its own (TestLinkProgramEqualsModel).
func blind(r egress.Reason) bool {
	return r == egress.ND || r == egress.DHCP || r == egress.LinkRate
}

// unreachable: an incoming frame has no sender here.
func unreachable(d egress.Direction, r egress.Reason) bool {
	return d == egress.Ingress && (r == egress.Mark || r == egress.Cgroup)
}

// coarse is the clock that the program reads.
func coarse(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}
