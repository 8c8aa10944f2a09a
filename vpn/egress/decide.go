package egress

import (
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
	IPOptions            // RFC 791 options: source routes, malformed; outgoing: any
	Fragment             // a part of a datagram that does not fit the rest, or says too little
	Protocol             // neither UDP nor TCP
	L4Length             // UDP length or TCP data offset disagree with the datagram
	RemoteRefused        // a remote that a responder's class does not talk to
	NoClass              // no class has this remote, protocol and port
	Mark                 // the sender set a mark (SO_MARK)
	Cgroup               // a socket of another cgroup than the class's, or none
	ND                   // RFC 4861 beyond the link-layer minimum
	DHCP                 // RFC 2131 beyond the link-layer minimum
	LinkRate             // more of the link-layer minimum than its rate
	Extension            // RFC 8200 extension headers: order, repetition, routing, malformed; outgoing: any but fragment
	NoFirst              // a later fragment of no datagram that was admitted just now
	Closed               // nothing is admitted in this state: the frame was not judged
	Reasons              // number of reasons
)

// CounterSlots is the number of counters per direction in the gate's counter map;
// the counter of reason r in direction d is number int(d)*CounterSlots + int(r).
const CounterSlots = 32

var reasonNames = [Reasons]string{"admitted", "short", "vlan", "arp", "ethertype", "ip-header", "ip-options", "fragment",
	"protocol", "l4-length", "remote", "no-class", "mark", "cgroup", "nd", "dhcp", "link-rate",
	"extension", "no-first", "closed"}

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
	// Fragments is the gate's memory of datagrams in parts, which the decision changes;
	// nil: it remembers none.
	Fragments *Fragments
	// Link is the device's link, whose state the decision changes; nil: no facts are set.
	Link *Link
}

// Decide tells what the gate does with a frame, given from its Ethernet header on,
// under policy p. It is the reference that internal/bpf/c/gate.c is compared
// with: plain where that is fast.
func Decide(p Policy, dir Direction, frame []byte, meta Meta) (Verdict, Reason) {
	r := decide(p, dir, frame, meta)
	return Verdict(r == Admitted), r
}

// ClosedBy tells whether nothing at all is admitted under policy p on a device with these
// link facts: the gate there is the closed one, which judges no frame.
func ClosedBy(p Policy, f LinkFacts) bool { return len(p.Classes) == 0 && f == LinkFacts{} }

func decide(p Policy, dir Direction, frame []byte, meta Meta) Reason {
	if meta.Link == nil && ClosedBy(p, LinkFacts{}) || meta.Link != nil && ClosedBy(p, meta.Link.Facts) {
		return Closed
	}
	d, reason := read(dir, frame, meta.VLAN)
	if reason == Admitted {
		reason = d.judge(p, dir, meta)
	}
	switch {
	case reason == ARP:
		return meta.Link.decide(linkARP, dir, frame, meta)
	case reason == Protocol && d.neighbour():
		return meta.Link.decide(linkND, dir, frame, meta)
	case reason == NoClass && d.dhcp(dir):
		return meta.Link.decide(linkDHCP, dir, frame, meta)
	}
	return reason
}

// judge holds a datagram that is well-formed against the policy.
func (d *datagram) judge(p Policy, dir Direction, meta Meta) Reason {
	if d.part == later {
		f, reason := meta.Fragments.find(d, dir)
		if reason != Admitted {
			return reason
		}
		return sender(dir, meta, f.cgroup)
	}
	remote, remotePort, localPort := d.Dst, d.DstPort, d.SrcPort
	if dir == Ingress {
		remote, remotePort, localPort = d.Src, d.SrcPort, d.DstPort
	}
	class, ok := find(p, remote, d.Proto, remotePort)
	if !ok {
		if class, ok = find(p, netip.Addr{}, d.Proto, localPort); !ok {
			return NoClass
		}
		if !host(remote) {
			return RemoteRefused
		}
	}
	reason := sender(dir, meta, class.Cgroup)
	if reason == Admitted && d.part == first {
		meta.Fragments.add(d, dir, class.Cgroup)
	}
	return reason
}

// sender: only the class's own process sends. Meta's cgroup is 0 where a frame has no
// socket, and no class has cgroup 0.
func sender(dir Direction, meta Meta, cgroup uint64) Reason {
	switch {
	case dir == Ingress:
		return Admitted
	case meta.Mark != 0:
		return Mark
	case meta.Cgroup != cgroup:
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
