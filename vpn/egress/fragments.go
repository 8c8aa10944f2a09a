package egress

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// FragmentLife is how long after a datagram's first fragment its other ones are taken.
const FragmentLife = 2 * time.Second

// fragmentBits is the size of the gate's table, the program's FRAGMENT_BITS.
const fragmentBits = 12

// Fragments is what the gate remembers of the first fragments that it admitted: a table
// in which a datagram has one place, and the newest of two that share one has it. The
// zero value is empty.
type Fragments struct {
	Now  time.Duration // the monotonic clock, as Meta's other facts are told from outside
	seen map[uint64]fragmentFacts
}

// fragmentKey names a datagram: RFC 791 section 2.3 and RFC 8200 section 4.5, which leaves
// the protocol out.
type fragmentKey struct {
	dir      Direction
	src, dst netip.Addr
	proto    uint8
	id       uint32
}

// place is where in the table a datagram is remembered.
func (k fragmentKey) place() uint64 {
	half := func(a netip.Addr) (high, low uint64) {
		if a.Is4() {
			b := a.As4()
			return uint64(binary.LittleEndian.Uint32(b[:])), 0
		}
		b := a.As16()
		return binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])
	}
	family := uint64(6)
	if k.src.Is4() {
		family = 4
	}
	srcHigh, srcLow := half(k.src)
	dstHigh, dstLow := half(k.dst)
	name := uint64(k.id) | uint64(k.proto)<<32 | family<<40 | uint64(k.dir)<<48
	return ((srcHigh^dstLow)*0x9e3779b97f4a7c15 + (srcLow^dstHigh)*0xbf58476d1ce4e5b9 + name*0x94d049bb133111eb) >> (64 - fragmentBits)
}

type fragmentFacts struct {
	key     fragmentKey
	expires time.Duration
	cgroup  uint64
	first   int  // where the first fragment ends
	end     int  // where the datagram ends, at the latest
	exact   bool // it ends there
}

// Len is the number of first fragments that are remembered, aged ones included.
func (f *Fragments) Len() int { return len(f.seen) }

func (d *datagram) fragmentKey(dir Direction) fragmentKey {
	k := fragmentKey{dir: dir, src: d.Src, dst: d.Dst, id: d.id}
	if d.Src.Is4() {
		k.proto = d.Proto
	}
	return k
}

// add remembers a first fragment that is admitted; again, if one of that name was.
func (f *Fragments) add(d *datagram, dir Direction, cgroup uint64) {
	if f == nil {
		return
	}
	if f.seen == nil {
		f.seen = map[uint64]fragmentFacts{}
	}
	k := d.fragmentKey(dir)
	f.seen[k.place()] = fragmentFacts{k, f.Now + FragmentLife, cgroup, d.size, d.end, dir == Egress && d.Proto == UDP}
}

// find returns the first fragment that a later one belongs to, if it fits there: it does
// not overlap the first (RFC 5722) and goes no further than the datagram does.
func (f *Fragments) find(d *datagram, dir Direction) (fragmentFacts, Reason) {
	if f == nil {
		return fragmentFacts{}, NoFirst
	}
	k := d.fragmentKey(dir)
	facts, ok := f.seen[k.place()]
	if !ok || facts.key != k || f.Now >= facts.expires {
		return facts, NoFirst
	}
	end := d.offset + d.size
	if d.offset < facts.first || end > facts.end || facts.exact && (end == facts.end) == d.more {
		return facts, Fragment
	}
	return facts, Admitted
}
