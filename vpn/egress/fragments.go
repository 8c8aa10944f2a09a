package egress

import (
	"net/netip"
	"time"
)

// FragmentLife is how long after a datagram's first fragment its other ones are taken.
const FragmentLife = 2 * time.Second

// Fragments is what the gate remembers of the first fragments that it admitted. The
// gate has room for about a thousand and forgets the oldest when that is full; the
// model has room for all. The zero value is empty.
type Fragments struct {
	Now  time.Duration // the monotonic clock, as Meta's other facts are told from outside
	seen map[fragmentKey]fragmentFacts
}

// fragmentKey names a datagram: RFC 791 section 2.3 and RFC 8200 section 4.5, which leaves
// the protocol out.
type fragmentKey struct {
	dir      Direction
	src, dst netip.Addr
	proto    uint8
	id       uint32
}

type fragmentFacts struct {
	expires time.Duration
	cgroup  uint64
	first   int  // where the first fragment ends
	end     int  // where the datagram ends, at the latest
	exact   bool // it ends there
}

// Len is the number of first fragments that are remembered.
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
		f.seen = map[fragmentKey]fragmentFacts{}
	}
	f.seen[d.fragmentKey(dir)] = fragmentFacts{f.Now + FragmentLife, cgroup, d.size, d.end, dir == Egress && d.Proto == UDP}
}

// find returns the first fragment that a later one belongs to, if it fits there: it does
// not overlap the first (RFC 5722) and goes no further than the datagram does.
func (f *Fragments) find(d *datagram, dir Direction) (fragmentFacts, Reason) {
	if f == nil {
		return fragmentFacts{}, NoFirst
	}
	facts, ok := f.seen[d.fragmentKey(dir)]
	if !ok || f.Now >= facts.expires {
		return facts, NoFirst
	}
	end := d.offset + d.size
	if d.offset < facts.first || end > facts.end || facts.exact && (end == facts.end) == d.more {
		return facts, Fragment
	}
	return facts, Admitted
}
