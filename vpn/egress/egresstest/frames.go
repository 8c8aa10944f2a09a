// Package egresstest makes frames near a policy, legal and damaged, and keeps the corpus
// of those on which the gate's program and its model are compared. Only tests import it.
package egresstest

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"rempart/vpn/egress"
)

// Policy is what the frames are near to: one gateway over both stacks, an attestation
// service, another process's class, responders' classes.
func Policy(own, other uint64) egress.Policy {
	gateway, second := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")
	return egress.Policy{Classes: []egress.Class{
		{Gateway: "g", Addr: gateway, Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: own},
		{Gateway: "g", Addr: netip.MustParseAddr("2001:db8:113::1"), Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: own},
		{Gateway: "g", Addr: gateway, Proto: egress.TCP, Port: 443, Purpose: egress.Attestation, Cgroup: own},
		{Gateway: "g", Addr: second, Proto: egress.UDP, Port: 4500, Purpose: egress.IKE, Cgroup: other},
		{Gateway: "r", Proto: egress.UDP, Port: 51821, Purpose: egress.Tunnel, Cgroup: own},
		{Gateway: "r", Proto: egress.TCP, Port: 444, Purpose: egress.Attestation, Cgroup: own},
	}}
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

// rarely is true once in n.
func rarely(r *rand.Rand, n int) bool { return r.IntN(n) == 0 }

// Random makes a frame of that direction: header by header, each legal more often than
// not, then damaged in some bytes or in none.
func Random(r *rand.Rand, d egress.Direction) []byte {
	b := append(make([]byte, 0, 512), 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2)
	if rarely(r, 12) {
		for range 1 + r.IntN(3) {
			b = append(b, pick(r, []byte{0x81, 0}, []byte{0x88, 0xa8})...)
			b = append(b, 0, byte(r.IntN(256)))
		}
	}
	switch {
	case rarely(r, 40):
		b = append(b, pick(r, []byte{8, 6}, []byte{0x88, 0xcc}, []byte{0x91, 0}, []byte{1, 0})...)
		b = append(b, make([]byte, 46)...)
	case rarely(r, 2):
		b = ipv6(r, d, append(b, 0x86, 0xdd))
	default:
		b = ipv4(r, d, append(b, 8, 0))
	}
	if d == egress.Ingress && rarely(r, 8) {
		b = append(b, make([]byte, r.IntN(20))...) // Ethernet padding
	}
	if rarely(r, 2) {
		for range 1 + r.IntN(3) {
			b = damage(r, b)
		}
	}
	for len(b) < 14 { // a test run takes no less
		b = append(b, 0)
	}
	return b
}

// damage changes something, wherever it is.
func damage(r *rand.Rand, b []byte) []byte {
	switch r.IntN(6) {
	case 0: // any bit
		b[r.IntN(len(b))] ^= 1 << r.IntN(8)
	case 1, 2: // a byte of the headers
		b[min(12+r.IntN(70), len(b)-1)] = pick(r, byte(r.IntN(256)), 0, 1, 0xff, byte(r.IntN(64)))
	case 3: // cut
		b = b[:max(14, r.IntN(len(b)+1))]
	case 4: // bytes behind the datagram
		b = append(b, make([]byte, 1+r.IntN(40))...)
	case 5: // a bit of the lengths and flags
		b[min(14+r.IntN(10), len(b)-1)] ^= 1 << r.IntN(8)
	}
	return b
}

// ends returns source and destination; the remote is often one of the policy's.
func ends(r *rand.Rand, d egress.Direction, v6 bool) (src, dst []byte) {
	local, remote := "203.0.113.11", pick(r, "203.0.113.1", "203.0.113.1", "203.0.113.1", "203.0.113.2", "198.51.100.7", "224.0.0.251",
		"255.255.255.255", "127.0.0.1", "0.0.0.0", "223.255.255.255", "203.0.113.11")
	if v6 {
		local, remote = "2001:db8:113::11", pick(r, "2001:db8:113::1", "2001:db8:113::1", "2001:db8:113::1", "2001:db8:51::7", "ff02::fb",
			"::1", "::", "::ffff:203.0.113.1", "fe80::1", "2001:db8:113::11")
	}
	src, dst = netip.MustParseAddr(local).AsSlice(), netip.MustParseAddr(remote).AsSlice()
	if d == egress.Ingress {
		src, dst = dst, src
	}
	return src, dst
}

// cut is which part of a datagram a frame has.
type cut struct {
	offset int
	more   bool
	id     uint32 // few, so that parts meet
}

func cuts(r *rand.Rand) cut {
	c := cut{id: uint32(r.IntN(6))}
	switch r.IntN(10) {
	case 0, 1:
		c.more = true
	case 2, 3:
		c.offset, c.more = 8*pick(r, 1, 2, 3, 4, 5, 6, 8, 8191, r.IntN(16)), rarely(r, 2)
	}
	return c
}

// body is what is behind the IP headers: a transport header and data, or in a later
// fragment data alone. The lengths are mostly right.
func body(r *rand.Rand, d egress.Direction, c cut) (proto byte, b []byte) {
	proto = pick[byte](r, egress.UDP, egress.UDP, egress.UDP, egress.TCP, egress.TCP)
	if rarely(r, 12) {
		proto = pick[byte](r, 0, 1, 2, 43, 44, 50, 51, 58, 58, 59, 60, 132, 135, 136)
	}
	if c.offset > 0 {
		n := 1 + r.IntN(40)
		if c.more && !rarely(r, 8) {
			n = 8 + n&^7
		}
		return proto, make([]byte, n)
	}
	port := func() uint16 {
		return pick[uint16](r, 51820, 51820, 51820, 51821, 51821, 443, 443, 444, 4500, 53, 67, 68, 0, 0x6ca)
	}
	remote, local := port(), port()
	if rarely(r, 30) {
		remote, local, proto = 67, 68, egress.UDP
	}
	sport, dport := local, remote
	if d == egress.Ingress {
		sport, dport = remote, local
	}
	b = binary.BigEndian.AppendUint16(b, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	n := r.IntN(48)
	switch proto {
	case egress.UDP:
		length := 8 + n
		if c.more { // the rest is in other parts
			n = n &^ 7
			length = 8 + n + pick(r, 8, 16, 24, 3, 40)
		}
		if rarely(r, 12) {
			length = r.IntN(80)
		}
		b = append(binary.BigEndian.AppendUint16(b, uint16(length)), 0, 0)
	case egress.TCP:
		words := pick(r, 5, 5, 5, 6, 8, 15, r.IntN(16))
		b = append(b, make([]byte, 8)...)
		b = append(b, byte(words)<<4, 0x10, 0, 0, 0, 0, 0, 0)
		if !rarely(r, 4) {
			b = append(b, make([]byte, max(0, words*4-20))...)
		}
	default:
		b[0] = pick[byte](r, 128, 133, 134, 135, 136, 137, byte(r.IntN(256)))
		b = append(b, make([]byte, 20)...)
	}
	b = append(b, make([]byte, n)...)
	if c.more && len(b)%8 != 0 && !rarely(r, 8) {
		b = append(b, make([]byte, 8-len(b)%8)...)
	}
	if rarely(r, 16) {
		b = b[:r.IntN(len(b)+1)]
	}
	return proto, b
}

func ipv4(r *rand.Rand, d egress.Direction, b []byte) []byte {
	c := cuts(r)
	proto, l4 := body(r, d, c)
	var list []byte
	if rarely(r, 6) {
		for range 1 + r.IntN(6) {
			list = append(list, option4(r)...)
		}
		list = append(list, make([]byte, (40-len(list)%4)%4)...)
		list = list[:min(len(list), 40)]
	}
	src, dst := ends(r, d, false)
	field := c.offset/8 | pick(r, 0, 0x4000)
	if c.more {
		field |= 0x2000
	}
	b = append(b, 0x40|byte(5+len(list)/4), 0)
	b = binary.BigEndian.AppendUint16(b, uint16(20+len(list)+len(l4)))
	b = binary.BigEndian.AppendUint16(b, uint16(c.id))
	b = binary.BigEndian.AppendUint16(b, uint16(field))
	b = append(append(append(b, 64, proto, 0, 0), src...), dst...)
	return append(append(b, list...), l4...)
}

// option4 is an option of RFC 791 or later, mostly well-formed.
func option4(r *rand.Rand) []byte {
	switch r.IntN(8) {
	case 0, 1, 2:
		return []byte{1}
	case 3:
		return []byte{0}
	case 4:
		return []byte{pick[byte](r, 131, 137), 7, 4, 0, 0, 0, 0}
	case 5:
		return []byte{148, 4, 0, 0}
	case 6:
		return []byte{byte(r.IntN(256)), byte(r.IntN(12)), 0, 0}
	}
	n := pick(r, 3, 7, 11, 4)
	return append([]byte{pick[byte](r, 7, 68, 130), byte(n), 5}, make([]byte, n-3)...)
}

func ipv6(r *rand.Rand, d egress.Direction, b []byte) []byte {
	c := cuts(r)
	proto, l4 := body(r, d, c)
	// Headers in the right order, one left out or another put in now and then.
	type header struct {
		number byte
		bytes  []byte
	}
	var chain []header
	if rarely(r, 4) {
		number := pick[byte](r, 0, 60)
		chain = append(chain, header{number, extension(r, number)})
		if rarely(r, 8) { // one more than is legal
			number := pick[byte](r, 60, 43)
			chain = append(chain, header{number, extension(r, number)})
		}
	}
	if c.offset > 0 || c.more || rarely(r, 12) {
		field := c.offset | pick(r, 0, 0, 0, 0, 0, 2, 4)
		if c.more {
			field |= 1
		}
		f := append([]byte{0, pick[byte](r, 0, 0, 0, 0, 0, 1)}, byte(field>>8), byte(field))
		chain = append(chain, header{44, binary.BigEndian.AppendUint32(f, c.id)})
	}
	if rarely(r, 16) && c.offset == 0 {
		chain = append(chain, header{60, extension(r, 60)})
	}
	if rarely(r, 10) {
		number := pick[byte](r, 0, 43, 44, 60)
		chain = append(chain, header{number, extension(r, number)})
	}
	if len(chain) > 1 && rarely(r, 10) {
		r.Shuffle(len(chain), func(i, j int) { chain[i], chain[j] = chain[j], chain[i] })
	}
	var ext []byte
	next := proto
	for i := len(chain) - 1; i >= 0; i-- {
		h := chain[i].bytes
		h[0], next = next, chain[i].number
		ext = append(append([]byte{}, h...), ext...)
	}
	src, dst := ends(r, d, true)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(ext)+len(l4)))
	b = append(append(append(b, next, 64), src...), dst...)
	return append(append(b, ext...), l4...)
}

// extension makes an extension header whose next header is yet to be set.
func extension(r *rand.Rand, number byte) []byte {
	if number == 44 {
		return []byte{0, 0, 0, byte(r.IntN(16)), 0, 0, 0, byte(r.IntN(6))}
	}
	if number == 43 {
		h := make([]byte, 8*(1+r.IntN(4)))
		h[1], h[2], h[3] = byte(len(h)/8-1), pick[byte](r, 0, 2, 2, 4, 4, 3), pick[byte](r, 0, 0, 0, 0, 1)
		return h
	}
	h := []byte{0, 0}
	for range r.IntN(7) {
		switch r.IntN(6) {
		case 0:
			h = append(h, 0)
		case 1, 2:
			n := r.IntN(6)
			h = append(append(h, 1, byte(n)), make([]byte, n)...)
		case 3:
			h = append(h, 5, 2, 0, 0) // router alert
		case 4:
			h = append(h, pick[byte](r, 0xc2, 0x1e, byte(r.IntN(256))), byte(r.IntN(5)), 0, 0)
		case 5: // long: some such headers are too long
			n := r.IntN(20)
			h = append(append(h, 0x1e, byte(n)), make([]byte, n)...)
		}
	}
	if pad := (8 - len(h)%8) % 8; pad == 1 {
		h = append(h, 0)
	} else if pad > 1 {
		h = append(append(h, 1, byte(pad-2)), make([]byte, pad-2)...)
	}
	h[1] = byte(len(h)/8 - 1)
	if rarely(r, 12) {
		h[1] = byte(r.IntN(40))
	}
	return h
}
