package watch

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"rempart/internal/proof"
)

func leasing() Rules {
	return Rules{
		Handsets: []netip.Addr{netip.MustParseAddr("203.0.113.11")},
		Classes:  []Class{{Name: "tunnel", Gateway: netip.MustParseAddr("203.0.113.1"), Protocol: 17, Port: 51820, WireGuard: true}},
		Links: []Link{{MAC: [6]byte{2, 0, 0, 0, 0, 11}, Router: [6]byte{2, 0, 0, 0, 0, 0xfe}, V4: netip.MustParseAddr("203.0.113.11"), Router4: netip.MustParseAddr("203.0.113.254"),
			Prefix6: netip.MustParsePrefix("2001:db8:113::/64"), Router6: netip.MustParseAddr("fe80::fe")}},
	}
}

func ether(dst, src [6]byte, kind uint16, body ...[]byte) []byte {
	f := append(append(dst[:], src[:]...), byte(kind>>8), byte(kind))
	return append(f, slices.Concat(body...)...)
}

func ipv6Of(src, dst string, hops byte, message ...byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(message)))
	b = append(b, 58, hops)
	b = append(append(b, netip.MustParseAddr(src).AsSlice()...), netip.MustParseAddr(dst).AsSlice()...)
	return append(b, message...)
}

func clientMessage(options ...byte) []byte {
	b := make([]byte, 300)
	copy(b, []byte{1, 1, 6, 0, 9, 9, 9, 9, 0, 0, 0x80, 0})
	copy(b[28:], []byte{2, 0, 0, 0, 0, 11})
	copy(b[236:], append([]byte{99, 130, 83, 99}, options...))
	head := []byte{0x45, 0, 1, 0x48, 0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 68, 0, 67, 1, 0x34, 0, 0}
	return append(head, b...)
}

// TestLinkLayerClasses: what a handset and its router need is in a class each way; one bit beside it is outside.
func TestLinkLayerClasses(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the frames outside in the same table")
	own, router, all := [6]byte{2, 0, 0, 0, 0, 11}, [6]byte{2, 0, 0, 0, 0, 0xfe}, [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	arp := func(op byte, sha [6]byte, spa [4]byte, tha [6]byte, tpa [4]byte) []byte {
		return slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, op}, sha[:], spa[:], tha[:], tpa[:])
	}
	v4, gw := [4]byte{203, 0, 113, 11}, [4]byte{203, 0, 113, 254}
	global, local := "2001:db8:113::77", "fe80::b"
	target := func(a string) []byte { return netip.MustParseAddr(a).AsSlice() }
	message := func(kind byte, flags byte, rest ...[]byte) []byte {
		return append([]byte{kind, 0, 0, 0, flags, 0, 0, 0}, slices.Concat(rest...)...)
	}
	ownOption := append([]byte{1, 1}, own[:]...)
	ownTarget := append([]byte{2, 1}, own[:]...)
	solicited := [6]byte{0x33, 0x33, 0xff, 0, 0, 0xfe}
	ask := []byte{53, 1, 1, 61, 7, 1, 2, 0, 0, 0, 0, 11, 55, 6, 1, 3, 51, 54, 58, 59, 255}
	for _, c := range []struct {
		name, class string
		frame       []byte
	}{
		{"a question for the router", "arp", ether(all, own, 0x0806, arp(1, own, v4, [6]byte{}, gw))},
		{"an answer to the router", "arp", ether(router, own, 0x0806, arp(2, own, v4, router, gw))},
		{"a padded answer of the router", "arp", ether(own, router, 0x0806, arp(2, router, gw, own, v4), make([]byte, 18))},
		{"a padding that says something", "", ether(own, router, 0x0806, arp(2, router, gw, own, v4), []byte("something to say!!"))},
		{"a question for another host", "", ether(all, own, 0x0806, arp(1, own, v4, [6]byte{}, [4]byte{203, 0, 113, 1}))},
		{"a question for an inner address", "", ether(all, own, 0x0806, arp(1, own, v4, [6]byte{}, [4]byte{10, 77, 0, 1}))},
		{"an answer with an inner address", "", ether(router, own, 0x0806, arp(2, own, [4]byte{10, 77, 0, 11}, router, gw))},
		{"a probe for an address", "", ether(all, own, 0x0806, arp(1, own, [4]byte{}, [6]byte{}, v4))},
		{"an answer to all", "", ether(all, own, 0x0806, arp(2, own, v4, router, gw))},
		{"another host's question", "", ether(all, [6]byte{2, 9}, 0x0806, arp(1, [6]byte{2, 9}, v4, [6]byte{}, gw))},
		{"a router solicitation", "nd", ether([6]byte{0x33, 0x33, 0, 0, 0, 2}, own, 0x86dd, ipv6Of(local, "ff02::2", 255, message(133, 0, ownOption)...))},
		{"a solicitation with more", "", ether([6]byte{0x33, 0x33, 0, 0, 0, 2}, own, 0x86dd, ipv6Of(local, "ff02::2", 255, message(133, 0, ownOption, ownOption)...))},
		{"a solicitation from afar", "", ether([6]byte{0x33, 0x33, 0, 0, 0, 2}, own, 0x86dd, ipv6Of(local, "ff02::2", 64, message(133, 0, ownOption)...))},
		{"a router advertisement", "nd", ether([6]byte{0x33, 0x33, 0, 0, 0, 1}, router, 0x86dd, ipv6Of("fe80::fe", "ff02::1", 255, message(134, 0, make([]byte, 8))...))},
		{"the handset as a router", "", ether([6]byte{0x33, 0x33, 0, 0, 0, 1}, own, 0x86dd, ipv6Of(local, "ff02::1", 255, message(134, 0, make([]byte, 8))...))},
		{"a neighbour solicitation", "nd", ether(solicited, own, 0x86dd, ipv6Of(global, "ff02::1:ff00:fe", 255, message(135, 0, target("fe80::fe"), ownOption)...))},
		{"a solicitation for a host", "", ether(solicited, own, 0x86dd, ipv6Of(global, "ff02::1:ff00:7", 255, message(135, 0, target("2001:db8:113::7"), ownOption)...))},
		{"from an inner address", "", ether(solicited, own, 0x86dd, ipv6Of("fd77::11", "ff02::1:ff00:fe", 255, message(135, 0, target("fe80::fe"), ownOption)...))},
		{"a neighbour advertisement", "nd", ether(router, own, 0x86dd, ipv6Of(global, "fe80::fe", 255, message(136, 0x60, target(global), ownTarget)...))},
		{"a short one", "nd", ether(router, own, 0x86dd, ipv6Of(local, "fe80::fe", 255, message(136, 0x40, target(local))...))},
		{"of an inner address", "", ether(router, own, 0x86dd, ipv6Of("fd77::11", "fe80::fe", 255, message(136, 0x60, target("fd77::11"), ownTarget)...))},
		{"of someone else's", "", ether(router, own, 0x86dd, ipv6Of(global, "fe80::fe", 255, message(136, 0x60, target("fd77::11"), ownTarget)...))},
		{"an echo", "", ether(router, own, 0x86dd, ipv6Of(global, "fe80::fe", 255, message(128, 0)...))},
		{"a redirect", "", ether(own, router, 0x86dd, ipv6Of("fe80::fe", global, 255, message(137, 0, make([]byte, 32))...))},
		{"the router's groups", "mld", ether([6]byte{0x33, 0x33, 0, 0, 0, 0x16}, router, 0x86dd, mld())},
		{"the handset's groups", "", ether([6]byte{0x33, 0x33, 0, 0, 0, 0x16}, own, 0x86dd, mld())},
		{"a DHCP request", "dhcp", ether(all, own, 0x0800, clientMessage(ask...))},
		{"with a host name", "", ether(all, own, 0x0800, clientMessage(append([]byte{12, 3, 'f', 'o', 'o'}, ask...)...))},
		{"with a vendor class", "", ether(all, own, 0x0800, clientMessage(append([]byte{60, 3, 'f', 'o', 'o'}, ask...)...))},
		{"with bytes behind the end", "", ether(all, own, 0x0800, clientMessage(append(ask, 'x')...))},
		{"with another identifier", "", ether(all, own, 0x0800, clientMessage(53, 1, 1, 61, 7, 0, 'p', 'h', 'o', 'n', 'e', '1', 255))},
		{"without an end", "", ether(all, own, 0x0800, clientMessage(53, 1, 1))},
		{"the tunnel from a leased address", "tunnel", ether(router, own, 0x86dd, tunnelled(t))},
	} {
		rules := leasing()
		rules.Classes = append(rules.Classes, Class{Name: "tunnel", Gateway: netip.MustParseAddr("2001:db8:113::1"), Protocol: 17, Port: 51820, WireGuard: true})
		f := rules.Classify(c.frame)
		if f.Class != c.class {
			t.Errorf("%s: class %q (%s), want %q", c.name, f.Class, f.Why, c.class)
		}
		rules.Links = nil
		if f := rules.Classify(c.frame); f.Admitted() {
			t.Errorf("%s: class %q with no link", c.name, f.Class)
		}
	}
}

// mld is a report of one group, behind a hop-by-hop header.
func mld() []byte {
	b := ipv6Of("fe80::fe", "ff02::16", 1, append([]byte{58, 0, 5, 2, 0, 0, 1, 0, 143}, make([]byte, 27)...)...)
	b[6] = 0
	return b
}

func tunnelled(t *testing.T) []byte {
	t.Helper()
	wireguard := make([]byte, 148)
	wireguard[0] = 1
	b := ipv6Of("2001:db8:113:0:1:2:3:4", "2001:db8:113::1", 64, append([]byte{0xc0, 0, 0xca, 0x6c, 0, 156, 0, 0}, wireguard...)...)
	b[6] = 17
	return b
}
