package egress

import (
	"encoding/binary"
	"net/netip"
)

// Shown is what a frame says of itself, as a drop record shows it: of a frame that is
// dropped, what was read before the fault. The zero Addr: no IP header was read.
type Shown struct {
	Proto            uint8
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
}

// Show reads a frame as the gate does, for what a drop record shows of it.
func Show(dir Direction, frame []byte, tagged bool) Shown {
	d, _ := read(dir, frame, tagged)
	return d.Shown
}

// part is which part of a datagram a frame holds.
type part uint8

const (
	whole part = iota
	first      // offset 0, more to come
	later      // any other: it has no ports
)

// datagram is what the gate learns of a frame.
type datagram struct {
	Shown
	part    part
	l4      []byte // the transport header and all behind it; of a later fragment its data
	bare    bool   // neither option nor extension header
	unlawed Reason // of a frame that is well-formed but not for this direction
	// Of a fragment:
	id     uint32
	offset int  // in the datagram
	size   int  // of the part of the datagram that is in the frame
	more   bool // it is not the last
	limit  int  // the longest datagram that may be put together
	end    int  // the end that a first fragment tells, else limit
}

// Header lengths in bytes: the fixed part of each.
const (
	ethLen       = 14
	tagLen       = 4
	ipv4Len      = 20
	ipv6Len      = 40
	extensionLen = 8
	udpLen       = 8
	tcpLen       = 20
)

// Bounds on headers of variable length, those of the gate's program. RFC 8504 section
// 5.3 lets a host have such bounds, for IPv6.
const (
	maxOptions        = 4  // padding counted
	maxExtensionBytes = 40 // of the header of options
)

// maxDatagram is the longest payload that fragments may be put together to.
const maxDatagram = 65535

// read reads a frame. A tagged one is read on, for the record, and refused in any case.
func read(dir Direction, frame []byte, tagged bool) (d datagram, r Reason) {
	if len(frame) < ethLen {
		return d, Short
	}
	tags := 0
	if tagged {
		tags = 1
	}
	ethertype, packet := binary.BigEndian.Uint16(frame[12:]), frame[ethLen:]
	for range 2 {
		if ethertype != 0x8100 && ethertype != 0x88a8 {
			break
		}
		if tags++; tags > 2 || len(packet) < tagLen {
			return d, VLAN
		}
		ethertype, packet = binary.BigEndian.Uint16(packet[2:]), packet[tagLen:]
	}
	switch ethertype {
	case 0x0800:
		r = d.ipv4(dir, packet)
	case 0x86dd:
		r = d.ipv6(dir, packet)
	case 0x0806:
		r = ARP
	default:
		r = EtherType
	}
	if r == Admitted && d.part != later {
		r = d.transport(dir)
	}
	switch {
	case tags > 0:
		return d, VLAN
	case r == Admitted:
		return d, d.unlawed
	}
	return d, r
}

// lengthFits holds a packet's length against the frame: what we send is exact, what we
// receive may carry Ethernet padding.
func lengthFits(dir Direction, length int, packet []byte) bool {
	return length <= len(packet) && (dir == Ingress || length == len(packet))
}

func (d *datagram) ipv4(dir Direction, packet []byte) Reason {
	if len(packet) < ipv4Len {
		return Short
	}
	if packet[0]>>4 != 4 {
		return IPHeader
	}
	d.Proto = packet[9]
	d.Src, d.Dst = netip.AddrFrom4([4]byte(packet[12:])), netip.AddrFrom4([4]byte(packet[16:]))
	header, total := int(packet[0]&15)*4, int(binary.BigEndian.Uint16(packet[2:]))
	if header < ipv4Len || total < header || !lengthFits(dir, total, packet) {
		return IPHeader
	}
	d.l4 = packet[header:total]
	if len(d.l4) == 0 {
		return L4Length
	}
	d.bare = header == ipv4Len
	if !d.bare {
		if !ipv4Options(packet[ipv4Len:header]) {
			return IPOptions
		}
		if dir == Egress {
			d.unlawed = IPOptions
		}
	}
	const reserved, moreFragments, offsetMask = 0x8000, 0x2000, 0x1fff
	field := int(binary.BigEndian.Uint16(packet[6:]))
	if field&reserved != 0 {
		return Fragment
	}
	d.id = uint32(binary.BigEndian.Uint16(packet[4:]))
	d.limit = maxDatagram - header
	return d.cut(field&offsetMask*8, field&moreFragments != 0)
}

// ipv4Options walks a list of options (RFC 791 section 3.1), which may end early.
func ipv4Options(list []byte) bool {
	const endOfList, noOperation, looseRoute, strictRoute = 0, 1, 131, 137
	for range maxOptions {
		if len(list) == 0 {
			return true
		}
		n := 1
		switch list[0] {
		case endOfList:
			return true
		case looseRoute, strictRoute:
			return false
		case noOperation:
		default:
			if len(list) < 2 {
				return false
			}
			if n = int(list[1]); n < 2 || n > len(list) {
				return false
			}
		}
		list = list[n:]
	}
	return len(list) == 0
}

// cut notes which part of its datagram d.l4 is.
func (d *datagram) cut(offset int, more bool) Reason {
	d.offset, d.more, d.size = offset, more, len(d.l4)
	switch {
	case offset == 0 && !more:
		return Admitted
	case more && d.size%8 != 0, offset+d.size > d.limit:
		return Fragment
	case offset == 0:
		d.part = first
	default:
		d.part = later
	}
	return Admitted
}

// Next header numbers (IANA).
const (
	hopByHop    = 0
	routing     = 43
	fragment    = 44
	destination = 60
)

func (d *datagram) ipv6(dir Direction, packet []byte) Reason {
	if len(packet) < ipv6Len {
		return Short
	}
	if packet[0]>>4 != 6 {
		return IPHeader
	}
	d.Proto = packet[6]
	d.Src, d.Dst = netip.AddrFrom16([16]byte(packet[8:])), netip.AddrFrom16([16]byte(packet[24:]))
	length := ipv6Len + int(binary.BigEndian.Uint16(packet[4:]))
	if !lengthFits(dir, length, packet) {
		return IPHeader
	}
	d.l4 = packet[ipv6Len:length]
	if len(d.l4) == 0 {
		return L4Length
	}
	d.bare, d.limit = true, maxDatagram
	if d.Proto == hopByHop || d.Proto == destination {
		if r := d.extension(dir); r != Admitted {
			return r
		}
	}
	if d.Proto == fragment {
		if r := d.fragment(dir); r != Admitted || d.part == later {
			return r
		}
	}
	switch d.Proto {
	case hopByHop, destination, routing, fragment: // another one, or one out of order
		return Extension
	}
	return Admitted
}

// extension takes the header of options off the front of d.l4. Something must follow it.
func (d *datagram) extension(dir Direction) Reason {
	h := d.l4
	if len(h) <= extensionLen {
		return Extension
	}
	n := extensionLen + 8*int(h[1])
	if n >= len(h) || n > maxExtensionBytes || !ipv6Options(h[2:n]) {
		return Extension
	}
	if dir == Egress {
		d.unlawed = Extension
	}
	d.Proto, d.l4, d.bare = h[0], h[n:], false
	d.limit -= n
	return Admitted
}

// fragment takes the fragment header off the front of d.l4. Something must follow it.
func (d *datagram) fragment(dir Direction) Reason {
	const reserved, moreFragments = 6, 1
	h := d.l4
	if len(h) <= extensionLen {
		return Extension
	}
	field := int(binary.BigEndian.Uint16(h[2:]))
	// Reserved fields are ignored when it comes (RFC 8200 section 4.5). An atomic fragment is
	// a whole datagram (RFC 6946); our kernel makes none.
	if dir == Egress && (h[1] != 0 || field&reserved != 0 || field == 0) {
		return Fragment
	}
	d.id = binary.BigEndian.Uint32(h[4:])
	d.l4, d.bare = h[extensionLen:], false
	if r := d.cut(field&^7, field&moreFragments != 0); r != Admitted {
		return r
	}
	d.Proto = h[0]
	return Admitted
}

// ipv6Options walks the options of a hop-by-hop or destination options header (RFC 8200
// section 4.2).
func ipv6Options(list []byte) bool {
	const pad1, jumbo = 0, 0xc2
	for range maxOptions {
		if len(list) == 0 {
			return true
		}
		n := 1
		if list[0] != pad1 {
			if list[0] == jumbo || len(list) < 2 {
				return false
			}
			if n = 2 + int(list[1]); n > len(list) {
				return false
			}
		}
		list = list[n:]
	}
	return len(list) == 0
}

// transport reads the ports and holds the header's own length against the datagram's. A
// first fragment has the whole header (RFC 1858, RFC 7112).
func (d *datagram) transport(dir Direction) Reason {
	unfit := L4Length
	if d.part == first {
		unfit = Fragment
	}
	if d.Proto != UDP && d.Proto != TCP {
		return Protocol
	}
	if len(d.l4) < udpLen {
		return unfit
	}
	d.SrcPort, d.DstPort = binary.BigEndian.Uint16(d.l4), binary.BigEndian.Uint16(d.l4[2:])
	d.end = d.limit
	if d.Proto == TCP {
		if len(d.l4) < tcpLen {
			return unfit
		}
		if offset := int(d.l4[12]>>4) * 4; offset < tcpLen || offset > len(d.l4) {
			return unfit
		}
		return Admitted
	}
	length := int(binary.BigEndian.Uint16(d.l4[4:]))
	switch {
	case length < udpLen:
		return unfit
	case d.part == first && dir == Ingress:
	case d.part == first:
		if d.end = length; length <= len(d.l4) || length > d.limit {
			return Fragment
		}
	case length > len(d.l4), dir == Egress && length != len(d.l4):
		return L4Length
	}
	return Admitted
}

// neighbour tells whether d may be one of the four messages of RFC 4861 that the
// link-layer minimum knows: ICMPv6 right behind the IPv6 header.
func (d *datagram) neighbour() bool {
	return d.bare && d.Src.Is6() && d.Proto == icmpv6 && d.l4[0] >= routerSolicitation && d.l4[0] <= neighbourAdvert
}

// dhcp tells a DHCP message by its ports.
func (d *datagram) dhcp(dir Direction) bool {
	client, server := d.SrcPort, d.DstPort
	if dir == Ingress {
		client, server = d.DstPort, d.SrcPort
	}
	return d.bare && d.part == whole && d.Src.Is4() && d.Proto == UDP && client == 68 && server == 67
}
