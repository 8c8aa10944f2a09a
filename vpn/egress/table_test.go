package egress

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// TestTableFindsItsRulesAndNoOthers looks rules up as the program does.
func TestTableFindsItsRulesAndNoOthers(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	for _, n := range []int{0, 1, 2, 16, 250, 500, MaxClasses} {
		for range 4 {
			p := manyClasses(r, n)
			table, err := p.Table()
			if err != nil {
				t.Fatalf("%d classes: %v", n, err)
			}
			for _, e := range p.Entries() {
				if got := look(table, e.Key); got != e.Cgroup {
					t.Fatalf("%d classes: rule %v is for %d, want %d", n, e.Key, got, e.Cgroup)
				}
				other := e.Key
				other[r.IntN(len(other))] ^= 1 << r.IntN(8)
				if got := look(table, other); got != 0 && !slices.ContainsFunc(p.Entries(), func(e Entry) bool { return e.Key == other }) {
					t.Fatalf("%d classes: a rule for %v, which nobody wrote", n, other)
				}
			}
			if got := TableEntries(table); !slices.Equal(got, p.Entries()) {
				t.Fatalf("%d classes: the entries came back as %d others", n, len(got))
			}
			// The order of the classes does not matter.
			r.Shuffle(len(p.Classes), func(i, j int) { p.Classes[i], p.Classes[j] = p.Classes[j], p.Classes[i] })
			if again, err := p.Table(); err != nil || !bytes.Equal(again, table) {
				t.Fatalf("%d classes: another order gave another table, %v", n, err)
			}
		}
	}
}

// look is find() of gate.c.
func look(table []byte, k Key) uint64 {
	high, low, tail := binary.LittleEndian.Uint64(k[:]), binary.LittleEndian.Uint64(k[8:]), binary.LittleEndian.Uint32(k[16:])
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(table[8*i:]) }
	hash := high*word(0) + low*word(1) + uint64(tail)*word(2)
	for _, place := range []uint64{hash >> 52, hash >> 40 & 4095} {
		if slot := table[40+place*32:]; bytes.Equal(slot[:20], k[:]) {
			return binary.LittleEndian.Uint64(slot[24:])
		}
	}
	return 0
}

func manyClasses(r *rand.Rand, n int) (p Policy) {
	seen := map[Key]bool{}
	for len(p.Classes) < n {
		c := Class{Gateway: "g", Proto: []uint8{TCP, UDP}[r.IntN(2)], Port: []uint16{51820, 443, 4500}[r.IntN(3)], Purpose: Tunnel, Cgroup: 1 + r.Uint64N(1<<40)}
		switch r.IntN(8) {
		case 0:
			c.Port = uint16(1 + r.IntN(65535)) // a responder's
		case 1, 2, 3:
			c.Addr = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(r.IntN(256)), 15: byte(r.IntN(256))})
		default:
			c.Addr = netip.AddrFrom4([4]byte{203, 0, byte(r.IntN(8)), byte(r.IntN(256))})
		}
		if k := c.key(); !seen[k] {
			seen[k] = true
			p.Classes = append(p.Classes, c)
		}
	}
	return p
}
