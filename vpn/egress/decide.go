package egress

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Direction is the way of a frame as the handset sees it.
type Direction uint8

// Directions; the values are the gate program's.
const (
	Egress Direction = iota
	Ingress
)

func (d Direction) String() string {
	switch d {
	case Egress:
		return "egress"
	case Ingress:
		return "ingress"
	}
	return fmt.Sprintf("direction(%d)", uint8(d))
}

// Verdict is what happens to a frame.
type Verdict bool

// Verdicts.
const (
	Drop Verdict = false
	Pass Verdict = true
)

// Reason says why. The values are the gate program's counter indices.
type Reason uint8

// Reasons. Only Admitted goes with Pass.
const (
	Admitted      Reason = iota
	Short                // the frame ends before a header does
	VLAN                 // IEEE 802.1Q or 802.1ad tag, in the frame or offloaded
	ARP                  // RFC 826 beyond the link-layer minimum
	EtherType            // neither IPv4 nor IPv6
	IPHeader             // version or length fields disagree with the frame
	IPOptions            // RFC 791 options
	Fragment             // any part of a datagram, or the reserved flag
	Protocol             // neither UDP nor TCP; in IPv6 also extension headers, MLD
	L4Length             // UDP length or TCP data offset disagree with the datagram
	RemoteRefused        // a remote that a responder's class does not talk to
	NoClass              // no class has this remote, protocol and port
	Mark                 // the sender set a mark (SO_MARK)
	Cgroup               // a socket of another cgroup than the class's, or none
	ND                   // RFC 4861 beyond the link-layer minimum
	DHCP                 // RFC 2131 beyond the link-layer minimum
	LinkRate             // more of the link-layer minimum than its rate
	Reasons              // number of reasons
)

// CounterSlots is the number of counters per direction in the gate's counter map;
// the counter of reason r in direction d is number int(d)*CounterSlots + int(r).
const CounterSlots = 32

var reasonNames = [Reasons]string{"admitted", "short", "vlan", "arp", "ethertype", "ip-header", "ip-options", "fragment",
	"protocol", "l4-length", "remote", "no-class", "mark", "cgroup", "nd", "dhcp", "link-rate"}

func (r Reason) String() string {
	if r < Reasons {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// Meta is what the kernel knows of a frame beside its bytes.
type Meta struct {
	// Cgroup is the id of the cgroup of the sending socket; 0 if there is none.
	Cgroup uint64
	// Mark is the socket mark.
	Mark uint32
	// VLAN says that a tag was taken off the bytes (offloaded).
	VLAN bool
	// Link is the device's link, whose state the decision changes; nil: no facts are set.
	Link *Link
}

// Ethernet, IPv4 (without options), IPv6 header lengths in bytes.
const (
	ethLen  = 14
	ipv4Len = 20
	ipv6Len = 40
)

// Decide tells what the gate does with a frame, given from its Ethernet header on,
// under policy p. It is the reference that internal/bpf/c/gate.c is compared
// with: plain where that is fast.
func Decide(p Policy, dir Direction, frame []byte, meta Meta) (Verdict, Reason) {
	r := decide(p, dir, frame, meta)
	return Verdict(r == Admitted), r
}

func decide(p Policy, dir Direction, frame []byte, meta Meta) Reason {
	if len(frame) < ethLen {
		return Short
	}
	d, reason := parseFrame(frame, dir, meta.VLAN)
	if reason != Admitted {
		return reason
	}
	switch {
	case d.proto == arpFrame:
		return meta.Link.decide(linkARP, dir, frame, meta)
	case d.proto == icmpv6:
		return meta.Link.decide(linkND, dir, frame, meta)
	}
	remote, remotePort, localPort := d.dst, d.dport, d.sport
	if dir == Ingress {
		remote, remotePort, localPort = d.src, d.sport, d.dport
	}
	class, ok := find(p, remote, d.proto, remotePort)
	if !ok {
		if class, ok = find(p, netip.Addr{}, d.proto, localPort); !ok {
			if d.dhcp(dir) {
				return meta.Link.decide(linkDHCP, dir, frame, meta)
			}
			return NoClass
		}
		if !host(remote) {
			return RemoteRefused
		}
	}
	switch {
	case dir == Ingress:
		return Admitted
	case meta.Mark != 0:
		return Mark
	case meta.Cgroup != class.Cgroup:
		return Cgroup
	}
	return Admitted
}

func find(p Policy, remote netip.Addr, proto uint8, port uint16) (Class, bool) {
	for _, c := range p.Classes {
		if c.Addr == remote && c.Proto == proto && c.Port == port {
			return c, true
		}
	}
	return Class{}, false
}

// datagram is what a class looks at.
type datagram struct {
	src, dst     netip.Addr
	proto        uint8
	sport, dport uint16
}

// arpFrame stands for the protocol of a frame that is no datagram: IP's number 0 is a hop-by-hop header, which no datagram
// has that got this far.
const arpFrame = 0

// dhcp tells a DHCP message by its ports.
func (d datagram) dhcp(dir Direction) bool {
	client, server := d.sport, d.dport
	if dir == Ingress {
		client, server = d.dport, d.sport
	}
	return d.proto == UDP && d.src.Is4() && client == 68 && server == 67
}

func parseFrame(frame []byte, dir Direction, tagged bool) (d datagram, r Reason) {
	ethertype := binary.BigEndian.Uint16(frame[12:])
	switch {
	case tagged, ethertype == 0x8100, ethertype == 0x88a8:
		return d, VLAN
	case ethertype == 0x0806:
		d.proto = arpFrame
		return d, Admitted
	case ethertype != 0x0800 && ethertype != 0x86dd:
		return d, EtherType
	}
	ip := frame[ethLen:]
	var header, total int
	if ethertype == 0x0800 {
		if len(ip) < ipv4Len {
			return d, Short
		}
		if ip[0]>>4 != 4 || ip[0]&15 < 5 {
			return d, IPHeader
		}
		if ip[0]&15 > 5 {
			return d, IPOptions
		}
		header, total = ipv4Len, int(binary.BigEndian.Uint16(ip[2:]))
	} else {
		if len(ip) < ipv6Len {
			return d, Short
		}
		if ip[0]>>4 != 6 {
			return d, IPHeader
		}
		header, total = ipv6Len, ipv6Len+int(binary.BigEndian.Uint16(ip[4:]))
	}
	// What we send is exact; what we receive may carry Ethernet padding.
	if total < header || total > len(ip) || dir == Egress && total != len(ip) {
		return d, IPHeader
	}
	if ethertype == 0x0800 {
		const dontFragment = 0x4000
		if binary.BigEndian.Uint16(ip[6:])&^dontFragment != 0 {
			return d, Fragment
		}
		d.proto = ip[9]
		d.src, d.dst = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
	} else {
		d.proto = ip[6]
		d.src, d.dst = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
	}
	l4 := ip[header:total]
	if ethertype == 0x86dd && d.proto == icmpv6 && len(l4) > 0 && l4[0] >= routerSolicitation && l4[0] <= neighbourAdvert {
		return d, Admitted
	}
	if d.proto != UDP && d.proto != TCP {
		return d, Protocol
	}
	if !l4Fits(l4, d.proto, dir) {
		return d, L4Length
	}
	d.sport, d.dport = binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
	return d, Admitted
}

// l4Fits holds a transport header's own length against the datagram's.
func l4Fits(l4 []byte, proto uint8, dir Direction) bool {
	if len(l4) < 8 {
		return false
	}
	if proto == UDP {
		length := int(binary.BigEndian.Uint16(l4[4:]))
		return length >= 8 && length <= len(l4) && (dir == Ingress || length == len(l4))
	}
	if len(l4) < 20 {
		return false
	}
	offset := int(l4[12]>>4) * 4
	return offset >= 20 && offset <= len(l4)
}
