package xfrm

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"rempart/vpn/egress"
)

// Direction is which way a policy is asked for, as the kernel numbers them.
type Direction uint8

// The directions.
const (
	In Direction = iota
	Out
	Forward
)

func (d Direction) String() string {
	switch d {
	case In:
		return "in"
	case Out:
		return "out"
	case Forward:
		return "fwd"
	}
	return fmt.Sprintf("socket or unknown direction %d", uint8(d))
}

// Policy allows what its selector matches, as it is: it asks for no transformation.
type Policy struct {
	Direction   Direction
	Source      netip.Prefix // of the same family as Destination
	Destination netip.Prefix
	Protocol    uint8 // 0 is any; the ports then count for nothing
	SourcePort  uint16
	Port        uint16 // of the destination; 0 is any
}

func (p Policy) String() string {
	return fmt.Sprintf("%v %v:%d to %v:%d protocol %d", p.Direction, p.Source, p.SourcePort, p.Destination, p.Port, p.Protocol)
}

// everywhere are all addresses of a family.
func everywhere(v6 bool) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// Classes are the policies of a black namespace that allow the classes of a gate policy.
func Classes(policy egress.Policy) []Policy {
	var all []Policy
	for _, c := range policy.Classes {
		if c.Responder() {
			for _, v6 := range []bool{false, true} {
				any := everywhere(v6)
				all = append(all, Policy{Direction: Out, Source: any, Destination: any, Protocol: c.Proto, SourcePort: c.Port},
					Policy{Direction: In, Source: any, Destination: any, Protocol: c.Proto, Port: c.Port})
			}
			continue
		}
		remote, any := netip.PrefixFrom(c.Addr, c.Addr.BitLen()), everywhere(c.Addr.Is6())
		all = append(all, Policy{Direction: Out, Source: any, Destination: remote, Protocol: c.Proto, Port: c.Port},
			Policy{Direction: In, Source: remote, Destination: any, Protocol: c.Proto, SourcePort: c.Port})
	}
	return all
}

// ND messages by their ICMPv6 type, which a selector takes for the source port.
const (
	routerSolicitation    = 133
	routerAdvertisement   = 134
	neighbourSolicitation = 135
	neighbourAdvert       = 136
)

var (
	allRouters     = netip.MustParsePrefix("ff02::2/128")
	linkLocals     = netip.MustParsePrefix("fe80::/64")
	solicitedNodes = netip.MustParsePrefix("ff02::1:ff00:0/104")
)

// Link are the policies of the link-layer minimum of a black device that leases its
// addresses. ARP and packet sockets do not come this way.
func Link(f egress.LinkFacts) []Policy {
	if !f.Set() {
		return nil
	}
	any4, any6 := everywhere(false), everywhere(true)
	all := []Policy{
		{Direction: Out, Source: any4, Destination: any4, Protocol: unix.IPPROTO_UDP, SourcePort: 68, Port: 67},
		{Direction: In, Source: any4, Destination: any4, Protocol: unix.IPPROTO_UDP, SourcePort: 67, Port: 68},
	}
	if !f.Local6.IsValid() {
		return all
	}
	nd := func(d Direction, from, to netip.Prefix, kind uint16) {
		all = append(all, Policy{Direction: d, Source: from, Destination: to, Protocol: unix.IPPROTO_ICMPV6, SourcePort: kind})
	}
	nd(Out, netip.PrefixFrom(f.Local6, 128), allRouters, routerSolicitation)
	nd(In, linkLocals, any6, routerAdvertisement)
	if !f.Router6.IsValid() {
		return all
	}
	router := netip.PrefixFrom(f.Router6, 128)
	for _, own := range []netip.Addr{f.Local6, f.Addr6} {
		from := netip.PrefixFrom(own, 128)
		nd(Out, from, router, neighbourSolicitation)
		nd(Out, from, solicitedNodes, neighbourSolicitation)
		nd(Out, from, router, neighbourAdvert)
	}
	nd(In, router, any6, neighbourSolicitation)
	nd(In, router, any6, neighbourAdvert)
	return all
}

// Networks are the policies of red: what stays inside one of the networks, and, on a
// machine that forwards, what passes from one handset of a network to another.
func Networks(networks []netip.Prefix, forward bool) []Policy {
	var all []Policy
	for _, n := range networks {
		any := everywhere(n.Addr().Is6())
		all = append(all, Policy{Direction: Out, Source: any, Destination: n.Masked()}, Policy{Direction: In, Source: n.Masked(), Destination: any})
		if forward {
			all = append(all, Policy{Direction: Forward, Source: n.Masked(), Destination: n.Masked()})
		}
	}
	return all
}

// Sizes and places in struct xfrm_selector and struct xfrm_userpolicy_info (linux/xfrm.h).
const (
	selectorSize = 56
	infoSize     = 168
	atPriority   = 152
	atIndex      = 156
	atDirection  = 160
	atAction     = 161
)

// selector encodes struct xfrm_selector.
func (p Policy) selector() []byte {
	b := make([]byte, selectorSize)
	copy(b[0:16], p.Destination.Addr().AsSlice())
	copy(b[16:32], p.Source.Addr().AsSlice())
	for i, port := range []uint16{p.Port, p.SourcePort} {
		if port != 0 {
			binary.BigEndian.PutUint16(b[32+4*i:], port)
			binary.BigEndian.PutUint16(b[34+4*i:], 0xffff)
		}
	}
	family := uint16(unix.AF_INET)
	if p.Destination.Addr().Is6() {
		family = unix.AF_INET6
	}
	binary.NativeEndian.PutUint16(b[40:], family)
	b[42], b[43], b[44] = uint8(p.Destination.Bits()), uint8(p.Source.Bits()), p.Protocol
	return b
}

// info encodes struct xfrm_userpolicy_info: no lifetime, priority 0, action allow.
func (p Policy) info() []byte {
	b := append(p.selector(), make([]byte, infoSize-selectorSize)...)
	for i := range 4 {
		binary.NativeEndian.PutUint64(b[selectorSize+8*i:], ^uint64(0))
	}
	b[atDirection] = uint8(p.Direction)
	return b
}

// identity is what of a listed policy must be as wanted: everything but what it counted,
// when it was made, and its index.
func identity(info, attributes []byte) string {
	b := slices.Clone(info)
	clear(b[120:atPriority]) // struct xfrm_lifetime_cur
	clear(b[atIndex:atDirection])
	return hex.EncodeToString(b) + " " + hex.EncodeToString(attributes)
}

// describe says what a listed policy is, for a person.
func describe(info []byte, attributes []byte) string {
	address := func(b []byte, bits uint8) string {
		if binary.NativeEndian.Uint16(info[40:]) == unix.AF_INET6 {
			return netip.PrefixFrom(netip.AddrFrom16([16]byte(b[:16])), int(bits)).String()
		}
		return netip.PrefixFrom(netip.AddrFrom4([4]byte(b[:4])), int(bits)).String()
	}
	action := "allow"
	if info[atAction] != 0 {
		action = "block"
	}
	return fmt.Sprintf("%s %v %s:%d to %s:%d protocol %d, priority %d, %d bytes of attributes", action, Direction(info[atDirection]),
		address(info[16:], info[43]), binary.BigEndian.Uint16(info[36:]), address(info, info[42]), binary.BigEndian.Uint16(info[32:]), info[44],
		binary.NativeEndian.Uint32(info[atPriority:]), len(attributes))
}
