package nft

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/vpn/egress"
)

const linkd = 907

var leased = Link{UID: linkd, Facts: egress.LinkFacts{
	Linkd: 7, MAC: [6]byte(macBlack), Addr4: handset4, Router4: gateway4,
	Local6: netip.MustParseAddr("fe80::b"), Addr6: handset6, Router6: netip.MustParseAddr("fe80::1"),
}}

// arp is an ARP request.
func arp(from, to netip.Addr, sender net.HardwareAddr, padding []byte) []byte {
	b := slices.Concat([]byte{255, 255, 255, 255, 255, 255}, sender, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, sender, from.AsSlice(), make([]byte, 6), to.AsSlice())
	return append(b, padding...)
}

// icmp6 is an ICMPv6 message that speaks of target.
func icmp6(kind uint8, from, to, target netip.Addr, hops uint8, rest []byte) []byte {
	b := slices.Concat(macAir, macBlack, []byte{0x86, 0xdd, 0x60, 0, 0, 0})
	b = binary.BigEndian.AppendUint16(b, uint16(8+16+len(rest)))
	b = append(b, unix.IPPROTO_ICMPV6, hops)
	return slices.Concat(b, from.AsSlice(), to.AsSlice(), []byte{kind, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice(), rest)
}

// What device and router say of each other passes, released or not; of all else nothing.
func TestLinkLayerMinimum(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "each frame before any table is there")
	w := newWorld(t)
	f := leased.Facts
	group := netip.MustParseAddr("ff02::1:ff00:1")
	stranger := netip.MustParseAddr("fe80::99")
	frames := []struct {
		what     string
		uid      int
		protocol uint16
		frame    func(mark []byte) []byte
		pass     bool
	}{
		{"ARP for the router", 0, unix.ETH_P_ARP, func(m []byte) []byte { return arp(f.Addr4, f.Router4, macBlack, m) }, true},
		{"ARP for a neighbour", 0, unix.ETH_P_ARP, func(m []byte) []byte { return arp(f.Addr4, netip.MustParseAddr("203.0.113.2"), macBlack, m) }, false},
		{"ARP that tells an inner address", 0, unix.ETH_P_ARP, func(m []byte) []byte { return arp(netip.MustParseAddr("10.77.0.2"), f.Router4, macBlack, m) }, false},
		{"ARP from another link address", 0, unix.ETH_P_ARP, func(m []byte) []byte { return arp(f.Addr4, f.Router4, macAir, m) }, false},
		{"router solicitation of linkd", linkd, unix.ETH_P_IPV6, func(m []byte) []byte { return icmp6(133, f.Local6, allRouters, netip.IPv6Unspecified(), 255, m) }, true},
		{"router solicitation of somebody", somebody, unix.ETH_P_IPV6, func(m []byte) []byte { return icmp6(133, f.Local6, allRouters, netip.IPv6Unspecified(), 255, m) }, false},
		{"solicitation for the router", 0, unix.ETH_P_IPV6, func(m []byte) []byte { return icmp6(135, f.Addr6, group, f.Router6, 255, m) }, true},
		{"solicitation for a stranger", 0, unix.ETH_P_IPV6, func(m []byte) []byte { return icmp6(135, f.Addr6, group, stranger, 255, m) }, false},
		{"solicitation that was passed on", 0, unix.ETH_P_IPV6, func(m []byte) []byte { return icmp6(135, f.Addr6, group, f.Router6, 254, m) }, false},
		{"advertisement to the router", 0, unix.ETH_P_IPV6, func(m []byte) []byte { return icmp6(136, f.Local6, f.Router6, f.Local6, 255, m) }, true},
		{"advertisement to a stranger", 0, unix.ETH_P_IPV6, func(m []byte) []byte { return icmp6(136, f.Local6, stranger, f.Local6, 255, m) }, false},
		{"echo request to the router", 0, unix.ETH_P_IPV6, func(m []byte) []byte { return icmp6(128, f.Local6, f.Router6, f.Local6, 255, m) }, false},
		{"redirect", 0, unix.ETH_P_IPV6, func(m []byte) []byte { return icmp6(137, f.Local6, f.Router6, f.Local6, 255, m) }, false},
	}
	for _, tables := range [][]Table{nil, {Closed("bl0")}, {Closed("bl0").WithLink(leased)}, {Released("bl0", tunnel, tunneld, own...).WithLink(leased)}} {
		w.put(tables...)
		for _, c := range frames {
			mark := w.marker()
			w.frame(c.uid, false, c.protocol, c.frame(mark))
			want := tables == nil || c.pass && len(tables[0].chains[0].rules) > 0
			if w.heard(mark) != want {
				t.Errorf("%s, tables %d: want to cross %v", c.what, len(tables), want)
			}
		}
		if tables != nil {
			if err := w.differences(tables...); err != nil {
				t.Error(err)
			}
		}
	}
}

// DHCP is linkd's alone. Its socket is the one that init opens for it: who opened it counts, not who owns it now.
func TestDHCPIsOfWhoOpenedTheSocket(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the same socket opened as root")
	w := newWorld(t)
	w.put(Closed("bl0").WithLink(leased))
	for _, uid := range []int{linkd, 0, somebody} {
		mark := w.marker()
		w.in(w.black, func() error {
			s, err := link.OpenDHCP("bl0", uid)
			if err != nil {
				return err
			}
			defer s.Close()
			_ = unix.Sendto(int(s.Fd()), mark, 0, &unix.SockaddrInet4{Port: 67, Addr: [4]byte{255, 255, 255, 255}}) // the ear decides
			return nil
		})
		if w.heard(mark) != (uid == linkd) {
			t.Errorf("a request by %d: want to cross %v", uid, uid == linkd)
		}
	}
	if !w.udp(linkd, at(handset4, 68), at(gateway4, 67), 8) || w.udp(linkd, at(handset4, 68), at(gateway4, 68), 8) || w.udp(tunneld, at(handset4, 68), at(gateway4, 67), 8) {
		t.Error("port 67 of a server is not linkd's, or not linkd's alone")
	}
}

// A link without facts, or with some only, lets through no more than they say.
func TestLinkFactsBoundTheMinimum(t *testing.T) {
	none := Closed("bl0").WithLink(Link{})
	if len(none.chains[0].rules) != 0 || len(none.chains[1].rules) != 0 {
		t.Error("a link without facts lets something through")
	}
	count := func(change func(*egress.LinkFacts)) (out, in int) {
		l := leased
		change(&l.Facts)
		t := Closed("bl0").WithLink(l)
		return len(t.chains[0].rules), len(t.chains[1].rules)
	}
	for what, c := range map[string]struct {
		change  func(*egress.LinkFacts)
		out, in int
	}{
		"all":            {func(*egress.LinkFacts) {}, 7, 7},
		"IPv4 alone":     {func(f *egress.LinkFacts) { f.Local6, f.Addr6, f.Router6 = netip.Addr{}, netip.Addr{}, netip.Addr{} }, 2, 2},
		"no lease yet":   {func(f *egress.LinkFacts) { *f = egress.LinkFacts{MAC: f.MAC, Local6: f.Local6} }, 2, 2},
		"a link address": {func(f *egress.LinkFacts) { *f = egress.LinkFacts{MAC: f.MAC} }, 1, 1},
	} {
		if out, in := count(c.change); out != c.out || in != c.in {
			t.Errorf("%s: %d rules out and %d in, want %d and %d", what, out, in, c.out, c.in)
		}
	}
}
