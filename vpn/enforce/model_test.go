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

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"rempart/internal/proof"
	"rempart/vpn/egress"
	"rempart/vpn/egress/egresstest"
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

func modelPolicy(own uint64) egress.Policy { return egresstest.Policy(own, own+1) }

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

// mutate damages a frame.
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
