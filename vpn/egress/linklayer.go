package egress

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// The link-layer minimum is limited by token buckets, one per kind and direction, on each device: what could carry a
// covert message through times and repetitions carries a few bits a second.
const (
	LinkInterval = 250 * time.Millisecond // four a second …
	LinkBurst    = 8                      // … after eight at once
	DHCPInterval = time.Second            // outgoing DHCP: one a second …
	DHCPBurst    = 4                      // … after four at once
	DHCPExpected = 10 * time.Second       // how long after a request a reply is taken
)

// LinkFacts are what init knows of a black device's link. The zero value admits nothing of the link-layer minimum: next
// hops are then permanent neighbours.
type LinkFacts struct {
	// Linkd is the id of the only cgroup that may send DHCP and router solicitations; 0: no one may.
	Linkd uint64
	// MAC is the device's own link address.
	MAC [6]byte
	// Addr4 and Router4 are there together or not at all, as no lease is; without them there is no ARP.
	Addr4, Router4 netip.Addr
	// Local6 is the device's link-local address; the zero Addr: no IPv6 control traffic.
	Local6 netip.Addr
	// Addr6 and Router6, a global address and the router's link-local one, are there together or not at all; without
	// them there is no ND but solicitation and advertisement of routers.
	Addr6, Router6 netip.Addr
}

// LinkFactsLen is the length in bytes of the facts, in a frame to egressd and in the gate's map alike.
const LinkFactsLen = 72

// Set tells whether f admits anything.
func (f LinkFacts) Set() bool { return f.MAC != [6]byte{} }

// Check says what is wrong with f.
func (f LinkFacts) Check() error {
	if f == (LinkFacts{}) {
		return nil
	}
	var errs []error
	refuse := func(bad bool, text string) {
		if bad {
			errs = append(errs, errors.New(text))
		}
	}
	refuse(!f.Set() || f.MAC[0]&1 != 0, "no unicast link address")
	refuse(f.Addr4.IsValid() != f.Router4.IsValid(), "an IPv4 address without a router, or a router without one")
	refuse(f.Addr4.IsValid() && (!f.Addr4.Is4() || !host(f.Addr4)), "no IPv4 host address")
	refuse(f.Router4.IsValid() && (!f.Router4.Is4() || !host(f.Router4) || f.Router4 == f.Addr4), "no IPv4 router address")
	refuse(f.Local6.IsValid() && !linkLocal(f.Local6), "no link-local address")
	refuse(f.Addr6.IsValid() != f.Router6.IsValid(), "an IPv6 address without a router, or a router without one")
	refuse(f.Addr6.IsValid() && (!f.Local6.IsValid() || !f.Addr6.Is6() || f.Addr6.Is4In6() || f.Addr6.Zone() != "" || !host(f.Addr6) || linkLocal(f.Addr6)), "no global IPv6 address beside a link-local one")
	refuse(f.Router6.IsValid() && (!linkLocal(f.Router6) || f.Router6 == f.Local6), "no link-local router address")
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("link facts of %x: %w", f.MAC, err)
	}
	return nil
}

func linkLocal(a netip.Addr) bool { return a.Is6() && a.Zone() == "" && a.IsLinkLocalUnicast() }

// Bytes is the form of f in the gate's map: struct link_facts of internal/bpf/c/linklayer.h.
func (f LinkFacts) Bytes() (b [LinkFactsLen]byte) {
	binary.LittleEndian.PutUint64(b[:], f.Linkd)
	copy(b[8:], f.MAC[:])
	at := 14
	for _, a := range []struct {
		addr   netip.Addr
		length int
	}{{f.Addr4, 4}, {f.Router4, 4}, {f.Addr6, 16}, {f.Local6, 16}, {f.Router6, 16}} {
		copy(b[at:at+a.length], a.addr.AsSlice())
		at += a.length
	}
	return b
}

// ParseLinkFacts reads what [LinkFacts.Bytes] wrote, and nothing else.
func ParseLinkFacts(b [LinkFactsLen]byte) (LinkFacts, error) {
	f := LinkFacts{Linkd: binary.LittleEndian.Uint64(b[:]), MAC: [6]byte(b[8:])}
	at := 14
	for _, a := range []struct {
		to     *netip.Addr
		length int
	}{{&f.Addr4, 4}, {&f.Router4, 4}, {&f.Addr6, 16}, {&f.Local6, 16}, {&f.Router6, 16}} {
		field := b[at : at+a.length]
		if !zero(field) {
			*a.to, _ = netip.AddrFromSlice(field)
		}
		at += a.length
	}
	if f.Bytes() != b {
		return LinkFacts{}, errors.New("cannot parse link facts: bytes that mean nothing")
	}
	if err := f.Check(); err != nil {
		return LinkFacts{}, fmt.Errorf("cannot parse link facts: %w", err)
	}
	return f, nil
}

// Kinds of the link-layer minimum, as in linklayer.h.
const (
	linkARP = iota
	linkND
	linkDHCP
	linkKinds
)

// LinkState is what the gate remembers of a device's link: the buckets, and which DHCP reply it expects.
type LinkState struct {
	arrival   [2 * linkKinds]uint64 // ns; when the bucket would be full again, were it not for the burst (GCRA)
	dhcpUntil uint64                // ns
	xid       [4]byte
}

// LinkWords is the number of words of a link's state in the gate's map: the buckets, until when a reply is expected, and the
// number of the request.
const LinkWords = 2*linkKinds + 2

// LinkStateOf takes the state over from the gate's map, so that program and model can start from one memory.
func LinkStateOf(w [LinkWords]uint64) (s LinkState) {
	copy(s.arrival[:], w[:])
	s.dhcpUntil = w[2*linkKinds]
	binary.LittleEndian.PutUint32(s.xid[:], uint32(w[2*linkKinds+1]))
	return s
}

// take takes a token, or not.
func (s *LinkState) take(kind int, dir Direction, now uint64) bool {
	interval, burst := uint64(LinkInterval), uint64(LinkBurst)
	if kind == linkDHCP && dir == Egress {
		interval, burst = uint64(DHCPInterval), DHCPBurst
	}
	word := &s.arrival[int(dir)*linkKinds+kind]
	arrival := max(*word, now)
	if arrival-now > interval*(burst-1) {
		return false
	}
	*word = arrival + interval
	return true
}

// Link is the link of a device for the model: its facts, what the gate remembers, and the time.
type Link struct {
	Facts LinkFacts
	State LinkState
	Now   uint64 // ns, monotonic
}

// decide is link_decide of linklayer.h.
func (l *Link) decide(kind int, dir Direction, frame []byte, meta Meta) Reason {
	refused := [linkKinds]Reason{ARP, ND, DHCP}[kind]
	if l == nil || !l.Facts.Set() {
		return refused
	}
	f := &l.Facts
	src := [6]byte(frame[6:])
	if dir == Egress && src != f.MAC || dir == Ingress && (src[0]&1 != 0 || src == f.MAC) {
		return refused
	}
	if dir == Egress {
		switch {
		case meta.Mark != 0:
			return Mark
		case kind == linkDHCP || kind == linkND && frame[ethLen+ipv6Len] == routerSolicitation:
			if f.Linkd == 0 || meta.Cgroup != f.Linkd {
				return Cgroup
			}
		}
	}
	var ok bool
	switch kind {
	case linkARP:
		ok = f.arp(dir, frame)
	case linkND:
		ok = f.nd(dir, frame)
	case linkDHCP:
		ok = dir == Egress && f.dhcpOut(frame) || dir == Ingress && l.dhcpIn(frame)
	}
	if !ok {
		return refused
	}
	if !l.State.take(kind, dir, l.Now) {
		return LinkRate
	}
	if kind == linkDHCP && dir == Egress {
		l.State.xid, l.State.dhcpUntil = [4]byte(frame[dhcpAt+4:]), l.Now+uint64(DHCPExpected)
	}
	return Admitted
}

func zero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

var broadcastMAC = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// arp admits a question for the router and an answer to it, in the 28 bytes that Ethernet and IPv4 have (RFC 826). What
// comes may be padded with zeros to Ethernet's minimum.
func (f *LinkFacts) arp(dir Direction, frame []byte) bool {
	if !f.Addr4.IsValid() {
		return false
	}
	body := frame[ethLen:]
	if len(body) != 28 && (dir == Egress || len(body) != 46 || !zero(body[28:])) {
		return false
	}
	if !bytes.Equal(body[:7], []byte{0, 1, 8, 0, 6, 4, 0}) || body[7] != 1 && body[7] != 2 {
		return false
	}
	request := body[7] == 1
	dst, src := [6]byte(frame), [6]byte(frame[6:])
	sha, tha := [6]byte(body[8:]), [6]byte(body[18:])
	spa, tpa := netip.AddrFrom4([4]byte(body[14:])), netip.AddrFrom4([4]byte(body[24:]))
	unicast := dst[0]&1 == 0
	switch {
	case dir == Egress && (spa != f.Addr4 || tpa != f.Router4 || sha != f.MAC), dir == Ingress && (spa != f.Router4 || tpa != f.Addr4 || sha != src):
		return false
	case dir == Egress && request:
		return tha == [6]byte{} && (unicast || dst == broadcastMAC)
	case dir == Egress:
		return tha == dst && unicast
	case request:
		return (tha == [6]byte{} || tha == f.MAC) && (dst == f.MAC || dst == broadcastMAC)
	}
	return tha == f.MAC && dst == f.MAC
}

// ICMPv6 types of RFC 4861. A redirect (137) is no part of the minimum.
const (
	icmpv6                = 58
	routerSolicitation    = 133
	routerAdvertisement   = 134
	neighbourSolicitation = 135
	neighbourAdvert       = 136
)

// nd admits a router solicitation with the link address, router advertisements, and the solicitations and advertisements of
// neighbours that this kernel and the router exchange about each other.
func (f *LinkFacts) nd(dir Direction, frame []byte) bool {
	ip := frame[ethLen:]
	message := ip[ipv6Len:]
	if !f.Local6.IsValid() || len(message) < 8 || int(binary.BigEndian.Uint16(ip[4:])) != len(message) || ip[7] != 255 || message[1] != 0 {
		return false
	}
	if dir == Egress && binary.BigEndian.Uint32(ip) != 6<<28 { // no traffic class, no flow label
		return false
	}
	mac := [6]byte(frame)
	src, dst := netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
	flags := binary.BigEndian.Uint32(message[4:])
	switch message[0] {
	case routerSolicitation:
		return dir == Egress && len(message) == 16 && flags == 0 && message[8] == 1 && message[9] == 1 && [6]byte(message[10:]) == f.MAC && src == f.Local6 && dst == allRouters && mac == [6]byte{0x33, 0x33, 0, 0, 0, 2}
	case routerAdvertisement:
		if dir == Egress || f.Linkd == 0 || len(message) < 16 || len(message)%8 != 0 || !linkLocal(src) || f.Router6.IsValid() && src != f.Router6 {
			return false
		}
		return dst == allNodes && mac == [6]byte{0x33, 0x33, 0, 0, 0, 1} || dst == f.Local6 && mac == f.MAC
	}
	if !f.Router6.IsValid() || len(message) != 24 && len(message) != 32 {
		return false
	}
	target, option := netip.AddrFrom16([16]byte(message[8:])), message[24:]
	solicitation := message[0] == neighbourSolicitation
	if len(option) > 0 && (option[1] != 1 || option[0] != 2 && !solicitation || option[0] != 1 && solicitation) {
		return false
	}
	if dir == Egress {
		if len(option) > 0 && [6]byte(option[2:]) != f.MAC || !f.own6(src) {
			return false
		}
		if solicitation {
			return len(option) > 0 && flags == 0 && target == f.Router6 && (toGroup(mac, dst, target) || dst == f.Router6 && mac[0]&1 == 0)
		}
		want := uint32(0x40000000) // solicited
		if len(option) > 0 {
			want = 0x60000000 // and override
		}
		return flags == want && src == target && dst == f.Router6 && mac[0]&1 == 0
	}
	if src != f.Router6 {
		return false
	}
	if solicitation {
		return flags == 0 && f.own6(target) && (toGroup(mac, dst, target) || dst == target && mac == f.MAC)
	}
	return flags&^0xa0000000 == 0x40000000 && target == f.Router6 && f.own6(dst) && mac == f.MAC
}

var (
	allNodes   = netip.MustParseAddr("ff02::1")
	allRouters = netip.MustParseAddr("ff02::2")
)

func (f *LinkFacts) own6(a netip.Addr) bool {
	return a == f.Local6 || f.Addr6.IsValid() && a == f.Addr6
}

// toGroup tells whether a frame goes to the solicited-node group of an address (RFC 4291 section 2.7.1), on both layers.
func toGroup(mac [6]byte, dst, a netip.Addr) bool {
	b := a.As16()
	group := [16]byte{0xff, 2, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]}
	return dst == netip.AddrFrom16(group) && mac == [6]byte{0x33, 0x33, 0xff, b[13], b[14], b[15]}
}
