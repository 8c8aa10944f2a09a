package watch

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

// Link is a handset that leases its addresses: what it and its router may say to each other so that it has one. Handsets with
// fixed addresses and next hops have none, and then ARP, ND and DHCP are outside all classes.
type Link struct {
	// MAC and Router are the link addresses of the handset's radio and of the router.
	MAC, Router [6]byte
	// V4 is the address that the handset leases, and Router4 the router that comes with it.
	V4, Router4 netip.Addr
	// Prefix6 is the prefix that the router advertises from Router6, its link-local address.
	Prefix6 netip.Prefix
	Router6 netip.Addr
}

// control judges a frame of one of the three protocols of the link-layer minimum. It is written from the RFCs, not from the
// gate: a frame that the gate's authors thought of as harmless and that is none of these is outside.
func (r Rules) control(frame []byte) (Finding, bool) {
	for _, l := range r.Links {
		direction, other := Out, l.Router
		switch [6]byte(frame[6:]) {
		case l.MAC:
		case l.Router:
			direction, other = In, l.MAC
		default:
			continue
		}
		to := [6]byte(frame)
		group := to[0]&1 == 1
		if !group && to != other {
			continue
		}
		name := l.kind(frame, direction, group)
		if name != "" {
			return Finding{Class: name, Direction: direction}, true
		}
	}
	return Finding{}, false
}

func (l Link) kind(frame []byte, direction Direction, group bool) string {
	body := frame[14:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0806:
		if l.arp(body, direction, group) {
			return "arp"
		}
	case 0x86DD:
		if len(body) < 48 || body[0]>>4 != 6 || int(binary.BigEndian.Uint16(body[4:]))+40 != len(body) {
			return ""
		}
		switch {
		case body[6] == 58 && body[7] == 255 && l.neighbour(body, direction):
			return "nd"
		case body[6] == 0 && direction == In && len(body) >= 56 && body[40] == 58 && body[48] == 143:
			return "mld" // the router's own kernel reports its groups (RFC 3810)
		}
	case 0x0800:
		if len(body) < 28 || body[0] != 0x45 || body[9] != 17 || int(binary.BigEndian.Uint16(body[2:])) != len(body) || binary.BigEndian.Uint16(body[6:])&0x3FFF != 0 {
			return ""
		}
		src, dst := netip.AddrFrom4([4]byte(body[12:16])), netip.AddrFrom4([4]byte(body[16:20]))
		if l.dhcp(src, dst, body[20:], direction) {
			return "dhcp"
		}
	}
	return ""
}

// arp knows a question for the router's address or the handset's, and its answer (RFC 826).
func (l Link) arp(b []byte, direction Direction, group bool) bool {
	if len(b) < 28 || !padding(b[28:], 28) || !bytes.HasPrefix(b, []byte{0, 1, 8, 0, 6, 4, 0}) {
		return false
	}
	from, to, mac := l.V4, l.Router4, l.MAC
	if direction == In {
		from, to, mac = to, from, l.Router
	}
	if [6]byte(b[8:14]) != mac || netip.AddrFrom4([4]byte(b[14:18])) != from || netip.AddrFrom4([4]byte(b[24:28])) != to {
		return false
	}
	// A question says nothing where its answer will stand; an answer goes to who asked.
	return b[7] == 1 && [6]byte(b[18:24]) == [6]byte{} || b[7] == 2 && !group
}

// neighbour knows the four messages of RFC 4861 that a host and its router need. Redirects are none of them.
func (l Link) neighbour(ip []byte, direction Direction) bool {
	src, dst := netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
	m := ip[40:]
	own := func(a netip.Addr) bool { return l.Prefix6.Contains(a) || a.IsLinkLocalUnicast() && a != l.Router6 }
	if m[1] != 0 {
		return false
	}
	if direction == In {
		switch m[0] {
		case 134:
			return src == l.Router6 && len(m) >= 16
		case 135, 136:
			return src == l.Router6 && (len(m) == 24 || len(m) == 32)
		}
		return false
	}
	clean := binary.BigEndian.Uint32(ip) == 0x60000000 // no traffic class and no flow label to hide bits in
	option := func(kind byte) bool { return m[len(m)-8] == kind && m[len(m)-7] == 1 && [6]byte(m[len(m)-6:]) == l.MAC }
	still := binary.BigEndian.Uint32(m[4:]) == 0
	switch m[0] {
	case 133:
		return clean && src.IsLinkLocalUnicast() && dst == netip.IPv6LinkLocalAllRouters() && len(m) == 16 && still && option(1)
	case 135:
		return clean && own(src) && len(m) == 32 && still && option(1) && netip.AddrFrom16([16]byte(m[8:24])) == l.Router6
	case 136:
		return clean && own(src) && dst == l.Router6 && netip.AddrFrom16([16]byte(m[8:24])) == src &&
			(len(m) == 24 && m[4] == 0x40 || len(m) == 32 && m[4] == 0x60 && option(2)) && m[5]|m[6]|m[7] == 0
	}
	return false
}

// dhcp knows the messages of a client that follows RFC 7844: one size, and options that tell who one is to no one.
func (l Link) dhcp(src, dst netip.Addr, udp []byte, direction Direction) bool {
	ports := binary.BigEndian.Uint32(udp)
	if int(binary.BigEndian.Uint16(udp[4:])) != len(udp) || len(udp) < 8+241 {
		return false
	}
	b := udp[8:]
	if [4]byte(b[236:240]) != [4]byte{99, 130, 83, 99} || [6]byte(b[28:34]) != l.MAC {
		return false
	}
	if direction == In {
		return ports == 67<<16|68 && b[0] == 2
	}
	unset := src == netip.IPv4Unspecified() || src == l.V4
	if ports != 68<<16|67 || !unset || dst != netip.AddrFrom4([4]byte{255, 255, 255, 255}) || b[0] != 1 || len(b) != 300 {
		return false
	}
	// Hardware type and length, no hops; no seconds; broadcast; no addresses of others, no names, no file.
	if [4]byte(b[:4]) != [4]byte{1, 1, 6, 0} || [4]byte(b[8:12]) != [4]byte{0, 0, 0x80, 0} || len(bytes.Trim(b[16:28], "\x00")) > 0 || len(bytes.Trim(b[34:236], "\x00")) > 0 {
		return false
	}
	for b = b[240:]; len(b) > 0 && b[0] != 255; {
		allowed := map[byte]int{53: 1, 61: 7, 50: 4, 54: 4, 55: 6}
		if len(b) < 2 || allowed[b[0]] != int(b[1]) || b[1] == 0 || len(b) < 2+int(b[1]) {
			return false
		}
		if value := b[2 : 2+int(b[1])]; b[0] == 61 && (value[0] != 1 || [6]byte(value[1:]) != l.MAC) {
			return false
		}
		b = b[2+int(b[1]):]
	}
	return len(b) > 0 && len(bytes.Trim(b[1:], "\x00")) == 0
}
