package egress

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// SampleSize is the length of a sample's byte form.
const SampleSize = 72

// Bounds of the drop record, as in internal/bpf/c/drops.h.
const (
	RecordSamples = 1024 // the newest that are kept
	RecordBurst   = 32   // of one reason of a program, per second and processor
	RecordReasons = 32   // a program has fewer
)

// Program says which program refused a packet.
type Program uint8

// Programs.
const (
	ProgramGate   Program = iota + 1 // on a black device
	ProgramLevels                    // the level hooks at the handset's cgroup
	ProgramFloor                     // under the gate
)

func (p Program) String() string {
	switch p {
	case ProgramGate:
		return "gate"
	case ProgramLevels:
		return "levels"
	case ProgramFloor:
		return "floor"
	}
	return fmt.Sprintf("program(%d)", uint8(p))
}

// Sample is one refused packet or call, as a program recorded it.
type Sample struct {
	// Seq numbers the samples from 1. A number that is missing was overwritten.
	Seq uint64
	// Time is the kernel's monotonic clock, to a tick.
	Time time.Duration
	// Cgroup is the id of the cgroup of the socket or caller; 0: unknown.
	Cgroup uint64
	// Ifindex is the device, of the namespace where it happened; 0: none yet.
	Ifindex   int
	Program   Program
	Direction Direction
	// Reason is of that program: see [Sample.Words].
	Reason uint8
	// Proto is the packet's protocol number; 0 if it could not be told.
	Proto uint8
	// Src and Dst are invalid where the packet is neither IPv4 nor IPv6. Ports are 0
	// where the protocol has none.
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
}

func (s Sample) String() string {
	return fmt.Sprintf("%v %v cgroup %d device %d: %s > %s protocol %d: %s", s.Program, s.Direction, s.Cgroup, s.Ifindex,
		end(s.Src, s.SrcPort), end(s.Dst, s.DstPort), s.Proto, s.Why())
}

// end is an address with its port, for people.
func end(a netip.Addr, port uint16) string {
	switch {
	case !a.IsValid():
		return "?"
	case port == 0:
		return a.String()
	}
	return netip.AddrPortFrom(a, port).String()
}

// Families of a sample, as the programs write them.
const (
	familyNone uint8 = 0
	familyV4   uint8 = 4
	familyV6   uint8 = 6
)

// Append appends s's byte form, which is struct drop_sample of the programs: little
// endian, ports in network order, IPv4 addresses in the first four bytes.
func (s Sample) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, s.Seq)
	b = binary.LittleEndian.AppendUint64(b, uint64(s.Time))
	b = binary.LittleEndian.AppendUint64(b, s.Cgroup)
	b = binary.LittleEndian.AppendUint32(b, uint32(s.Ifindex))
	family := familyNone
	switch {
	case s.Src.Is4():
		family = familyV4
	case s.Src.Is6():
		family = familyV6
	}
	b = append(b, byte(s.Program), byte(s.Direction), s.Reason, family, s.Proto, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, s.SrcPort)
	b = binary.BigEndian.AppendUint16(b, s.DstPort)
	for _, a := range []netip.Addr{s.Src, s.Dst} {
		var raw [16]byte
		copy(raw[:], a.AsSlice())
		b = append(b, raw[:]...)
	}
	return b
}

// ParseSample reads a byte form. It refuses what [Sample.Append] would not have
// written: parse and append are each other's inverse.
func ParseSample(b []byte) (Sample, error) {
	s, err := parseSample(b)
	if err != nil {
		return Sample{}, fmt.Errorf("cannot parse a sample: %w", err)
	}
	return s, nil
}

func parseSample(b []byte) (Sample, error) {
	if len(b) != SampleSize {
		return Sample{}, fmt.Errorf("%d bytes, want %d", len(b), SampleSize)
	}
	ifindex, at := binary.LittleEndian.Uint32(b[24:]), binary.LittleEndian.Uint64(b[8:])
	s := Sample{
		Seq: binary.LittleEndian.Uint64(b), Time: time.Duration(at), Cgroup: binary.LittleEndian.Uint64(b[16:]),
		Ifindex: int(ifindex), Program: Program(b[28]), Direction: Direction(b[29]), Reason: b[30], Proto: b[32],
		SrcPort: binary.BigEndian.Uint16(b[36:]), DstPort: binary.BigEndian.Uint16(b[38:]),
	}
	switch {
	case s.Seq == 0 || s.Seq == 1<<64-1:
		return s, fmt.Errorf("number %d", s.Seq)
	case at > 1<<63-1 || ifindex > 1<<31-1:
		return s, fmt.Errorf("time %d or interface index %d is no such thing", at, ifindex)
	case s.Program < ProgramGate || s.Program > ProgramFloor || s.Direction > Ingress || s.Reason >= RecordReasons:
		return s, fmt.Errorf("unknown %v, %v or reason %d", s.Program, s.Direction, s.Reason)
	case b[33]|b[34]|b[35] != 0:
		return s, fmt.Errorf("bytes where there are none")
	}
	src, dst := b[40:56], b[56:72]
	used := 16
	switch b[31] {
	case familyNone:
		used = 0
		if s.SrcPort|s.DstPort != 0 {
			return s, fmt.Errorf("ports without addresses")
		}
	case familyV4:
		used = 4
		s.Src, s.Dst = netip.AddrFrom4([4]byte(src)), netip.AddrFrom4([4]byte(dst))
	case familyV6:
		s.Src, s.Dst = netip.AddrFrom16([16]byte(src)), netip.AddrFrom16([16]byte(dst))
	default:
		return s, fmt.Errorf("family %d", b[31])
	}
	for i := used; i < 16; i++ {
		if src[i]|dst[i] != 0 {
			return s, fmt.Errorf("bytes behind the addresses")
		}
	}
	return s, nil
}
