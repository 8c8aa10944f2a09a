package egress

import (
	"encoding/binary"
	"errors"
)

// The rules as the gate's program looks them up: a hash table in which each rule is in
// one of two places (cuckoo hashing). Same policy, same bytes: a table is compared as a
// whole.
//
// It begins with three multipliers (8 bytes each), the life of a fragment in
// nanoseconds (8), the number of rules (4) and of responders' rules among them (4); then the
// slots, each with the first 16 and the last 4 bytes of a [Key], 4 bytes of zeros and
// the cgroup id (8). Numbers are little endian, as the program's are.
const (
	slotBits   = 12 // the program's SLOT_BITS
	tableSlots = 1 << slotBits
	tableHead  = 40
	slotLen    = 32
	// TableLen is the length of a table in bytes.
	TableLen = tableHead + tableSlots*slotLen
	// A rule that finds both places taken moves another one, which may move a third …; with
	// a quarter of the slots in use a few moves do, and other multipliers where they do not.
	tableMoves = 200
	tableTries = 100
)

// Table compiles p for the gate's program.
func (p Policy) Table() ([]byte, error) {
	entries := p.Entries()
	b := make([]byte, TableLen)
	responders := uint32(0)
	for _, e := range entries {
		if e.Key[19] == kindAny {
			responders++
		}
	}
	binary.LittleEndian.PutUint64(b[24:], uint64(FragmentLife))
	binary.LittleEndian.PutUint32(b[32:], uint32(len(entries)))
	binary.LittleEndian.PutUint32(b[36:], responders)
	var sequence uint64
	for range tableTries {
		var m multipliers
		for i := range m {
			sequence, m[i] = splitmix(sequence)
			m[i] |= 1
			binary.LittleEndian.PutUint64(b[8*i:], m[i])
		}
		if slots, ok := m.place(entries); ok {
			for i, e := range slots {
				slot := b[tableHead+i*slotLen:]
				copy(slot, e.Key[:])
				binary.LittleEndian.PutUint64(slot[24:], e.Cgroup)
			}
			return b, nil
		}
	}
	return nil, errors.New("cannot compile a policy: no hash has a place for each rule")
}

type multipliers [3]uint64

// places returns the two slots that a rule may be in.
func (m multipliers) places(k Key) (first, second uint64) {
	high, low, tail := binary.LittleEndian.Uint64(k[:]), binary.LittleEndian.Uint64(k[8:]), binary.LittleEndian.Uint32(k[16:])
	hash := high*m[0] + low*m[1] + uint64(tail)*m[2]
	return hash >> (64 - slotBits), hash >> (64 - 2*slotBits) % tableSlots
}

// place gives each entry a slot of its own, or not.
func (m multipliers) place(entries []Entry) (slots [tableSlots]Entry, ok bool) {
	empty := Entry{}
	for _, e := range entries {
		at, other := m.places(e.Key)
		if slots[at] != empty {
			at = other
		}
		for moves := 0; slots[at] != empty; moves++ {
			if moves == tableMoves {
				return slots, false
			}
			e, slots[at] = slots[at], e
			first, second := m.places(e.Key)
			at ^= first ^ second
		}
		slots[at] = e
	}
	return slots, true
}

// splitmix is the generator SplitMix64: the state that follows, and a number of it.
func splitmix(state uint64) (next, n uint64) {
	state += 0x9e3779b97f4a7c15
	n = (state ^ state>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return state, n ^ n>>31
}

// TableEntries returns the rules of a table in the order of their keys, wherever they
// stand in it.
func TableEntries(b []byte) []Entry {
	var entries []Entry
	for ; len(b) >= tableHead+slotLen; b = b[slotLen:] {
		slot := b[tableHead:]
		if binary.LittleEndian.Uint32(slot[16:]) != 0 {
			entries = append(entries, Entry{Key(slot[:20]), binary.LittleEndian.Uint64(slot[24:])})
		}
	}
	sortEntries(entries)
	return entries
}
