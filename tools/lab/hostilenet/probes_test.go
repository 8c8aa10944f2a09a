package hostilenet

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/scenario/watch"
	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/tools/lab/bringup"
)

// The one who probes: a host of the link, and one further away.
var (
	stranger    = net.HardwareAddr{2, 0, 0, 0, 0, 0x66}
	stranger4   = netip.MustParseAddr("203.0.113.66")
	stranger6   = netip.MustParseAddr("2001:db8:113::66")
	strangerLL  = netip.MustParseAddr("fe80::66")
	innerFour   = netip.MustParseAddr("10.77.0.11")
	innerSix    = netip.MustParseAddr("fd77::11")
	allNodesMAC = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
)

// target is who is probed: a radio's link address and its addresses, and the router's that it trusts.
type target struct {
	mac              net.HardwareAddr
	v4, v6           netip.Addr
	router4, router6 netip.Addr
	routerMAC        net.HardwareAddr
}

func (g target) ether(dst, src net.HardwareAddr, kind uint16, body []byte) []byte {
	f := append(append(make([]byte, 0, 14+len(body)), dst...), src...)
	return append(append(f, byte(kind>>8), byte(kind)), body...)
}

// ip makes a packet of either family, checksums right, from the stranger unless from says who.
func (g target) ip(from, to netip.Addr, proto byte, hops byte, payload []byte) []byte {
	if to.Is4() {
		b := []byte{0x45, 0, 0, 0, 0, 1, 0x40, 0, hops, proto, 0, 0}
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
		b = append(append(b, from.AsSlice()...), to.AsSlice()...)
		binary.BigEndian.PutUint16(b[10:], ^sum(b, 0))
		return append(b, payload...)
	}
	b := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(payload)))
	b = append(b, proto, hops)
	return append(append(append(b, from.AsSlice()...), to.AsSlice()...), payload...)
}

// sum is the ones' complement sum of the Internet checksum (RFC 1071).
func sum(b []byte, start uint32) uint16 {
	s := start
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// checked writes the checksum over the pseudo header and the payload at an offset of the payload.
func checked(from, to netip.Addr, proto byte, payload []byte, at int) []byte {
	s := uint32(sum(from.AsSlice(), 0)) + uint32(sum(to.AsSlice(), 0)) + uint32(proto) + uint32(len(payload))
	binary.BigEndian.PutUint16(payload[at:], ^sum(payload, s))
	return payload
}

func (g target) pair(six bool) (from, to netip.Addr, kind uint16) {
	if six {
		return stranger6, g.v6, 0x86dd
	}
	return stranger4, g.v4, 0x0800
}

// port is a datagram or a SYN to one port.
func (g target) port(six bool, proto byte, port uint16) []byte {
	from, to, kind := g.pair(six)
	var b []byte
	at := 6
	if proto == 17 {
		b = []byte{0x11, 0x5c, byte(port >> 8), byte(port), 0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}
	} else {
		b, at = []byte{0x11, 0x5c, byte(port >> 8), byte(port), 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0}, 16
	}
	return g.ether(g.mac, stranger, kind, g.ip(from, to, proto, 64, checked(from, to, proto, b, at)))
}

func (g target) protocol(six bool, proto byte) []byte {
	from, to, kind := g.pair(six)
	return g.ether(g.mac, stranger, kind, g.ip(from, to, proto, 64, make([]byte, 24)))
}

func (g target) icmp(six bool, kind byte) []byte {
	from, to, ethertype := g.pair(six)
	b := append([]byte{kind, 0, 0, 0}, make([]byte, 28)...)
	if !six {
		binary.BigEndian.PutUint16(b[2:], ^sum(b, 0))
		return g.ether(g.mac, stranger, ethertype, g.ip(from, to, 1, 64, b))
	}
	return g.ether(g.mac, stranger, ethertype, g.ip(from, to, 58, 255, checked(from, to, 58, b, 2)))
}

// arp asks who has an address.
func (g target) arp(dst, mac net.HardwareAddr, from, for4 netip.Addr) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, mac...)
	b = append(append(append(b, from.AsSlice()...), make([]byte, 6)...), for4.AsSlice()...)
	return g.ether(dst, mac, 0x0806, b)
}

// solicit asks who has an IPv6 address.
func (g target) solicit(mac net.HardwareAddr, from, for6 netip.Addr) []byte {
	a := for6.As16()
	group := netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]})
	b := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, a[:]...)
	b = append(append(b, 1, 1), mac...)
	dst := net.HardwareAddr{0x33, 0x33, 0xff, a[13], a[14], a[15]}
	return g.ether(dst, mac, 0x86dd, g.ip(from, group, 58, 255, checked(from, group, 58, b, 2)))
}

var everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// odd are the probes that are few: questions for inner addresses (MLLVD-CR-24-03), extension headers that want an answer,
// groups, fragments.
func (g target) odd() map[string][]byte {
	echo6 := func(to netip.Addr) []byte {
		return checked(stranger6, to, 58, append([]byte{128, 0, 0, 0, 0, 1, 0, 1}, make([]byte, 16)...), 2)
	}
	allNodes := netip.MustParseAddr("ff02::1")
	ext := func(header byte, body []byte) []byte {
		return g.ether(g.mac, stranger, 0x86dd, g.ip(stranger6, g.v6, header, 64, append(body, echo6(g.v6)...)))
	}
	return map[string][]byte{
		"ARP for the inner address":                g.arp(everybody, stranger, stranger4, innerFour),
		"ARP for the inner address, as the router": g.arp(everybody, g.routerMAC, g.router4, innerFour),
		"ARP for the inner address, to the radio":  g.arp(g.mac, stranger, stranger4, innerFour),
		"ARP for the address, from a stranger":     g.arp(everybody, stranger, stranger4, g.v4),
		"ND for the inner address":                 g.solicit(stranger, strangerLL, innerSix),
		"ND for the inner address, as the router":  g.solicit(g.routerMAC, g.router6, innerSix),
		"ND for the address, from a stranger":      g.solicit(stranger, strangerLL, g.v6),
		"hop-by-hop option that wants an answer":   ext(0, []byte{58, 0, 0x80, 4, 0, 0, 0, 0}),
		"destination option that wants an answer":  ext(60, []byte{58, 0, 0x80, 4, 0, 0, 0, 0}),
		"routing header of type 0":                 ext(43, []byte{58, 0, 0, 1, 0, 0, 0, 0}),
		"a fragment that is whole":                 ext(44, []byte{58, 0, 0, 0, 0, 0, 0, 1}),
		"echo to all nodes":                        g.ether(allNodesMAC, stranger, 0x86dd, g.ip(stranger6, allNodes, 58, 64, echo6(allNodes))),
		"echo to all hosts":                        g.ether(everybody, stranger, 0x0800, g.ip(stranger4, netip.MustParseAddr("255.255.255.255"), 1, 64, []byte{8, 0, 0xf7, 0xfd, 0, 1, 0, 1})),
		"a datagram for the inner address":         g.ether(g.mac, stranger, 0x0800, g.ip(stranger4, innerFour, 17, 64, checked(stranger4, innerFour, 17, []byte{0x11, 0x5c, 0, 53, 0, 8, 0, 0}, 6))),
		"a datagram for the inner address of IPv6": g.ether(g.mac, stranger, 0x86dd, g.ip(stranger6, innerSix, 17, 64, checked(stranger6, innerSix, 17, []byte{0x11, 0x5c, 0, 53, 0, 8, 0, 0}, 6))),
		"a query for groups (MLD)":                 g.ether(allNodesMAC, stranger, 0x86dd, g.ip(strangerLL, allNodes, 0, 1, append([]byte{58, 0, 5, 2, 0, 0, 1, 0}, checked(strangerLL, allNodes, 58, append([]byte{130, 0, 0, 0}, make([]byte, 24)...), 2)...))),
		"a query for groups (IGMP)":                g.ether(net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}, stranger, 0x0800, g.ip(stranger4, netip.MustParseAddr("224.0.0.1"), 2, 1, []byte{0x11, 1, 0xee, 0xfe, 0, 0, 0, 0})),
		"a VLAN tag":                               append(g.ether(g.mac, stranger, 0x8100, []byte{0, 5, 8, 0}), g.icmp(false, 8)[14:]...),
		"an unknown EtherType":                     g.ether(g.mac, stranger, 0x88b5, make([]byte, 46)),
		"a DHCP reply that nobody asked for":       g.ether(everybody, stranger, 0x0800, g.ip(stranger4, netip.MustParseAddr("255.255.255.255"), 17, 64, checked(stranger4, netip.MustParseAddr("255.255.255.255"), 17, append([]byte{0, 67, 0, 68, 1, 8, 0, 0}, make([]byte, 256)...), 6))),
		"a redirect":                               g.icmp(false, 5),
	}
}

// all sends every probe: each port of both protocols and families, each IP protocol, each type of ICMP, and the odd ones.
func (g target) all(put func([]byte)) {
	for _, six := range []bool{false, true} {
		for _, proto := range []byte{17, 6} {
			for port := range 1 << 16 {
				put(g.port(six, proto, uint16(port)))
			}
		}
		for i := range 256 {
			put(g.protocol(six, byte(i)))
			put(g.icmp(six, byte(i)))
		}
	}
	for _, f := range g.odd() {
		put(f)
	}
}

// sender returns a socket that sends whole frames through a device of the calling thread's namespace.
func sender(device string) (int, error) {
	index, err := link.Index(device)
	if err != nil {
		return 0, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
		return 0, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// probes: a stranger on the link tries every port, every protocol and the ways to ask for an inner address. The answer is
// silence: no RST, no ICMP, no ARP and no ND. Red does not notice.
func (n *network) probes(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "a host with the same addresses and no gate, in the same test")
	m := n.handset(t)
	g := target{v4: m.Radio.V4.Addr(), router4: m.Radio.Router4, router6: m.Radio.Router6}
	g.mac, _ = net.ParseMAC(m.Radio.MAC) // a pure table: well formed
	g.routerMAC, _ = net.ParseMAC(m.Radio.RouterMAC)
	n.waitUp(t, netip.Addr.Is4)
	addresses, _ := n.lease(t)
	for _, a := range addresses {
		if a.Addr().Is6() && !a.Addr().IsLinkLocalUnicast() {
			g.v6 = a.Addr()
		}
	}
	if !g.v6.IsValid() {
		t.Fatal("the handset leased no IPv6 address")
	}
	ingress := func() (all uint64) {
		s, err := bringup.StatusOf(t.Context(), n.w, "a")
		if err != nil || s.Gate == nil || s.Tunnel.State != "up" {
			t.Fatalf("the tunnel is %s: %v", s.Tunnel.State, err)
		}
		for _, d := range s.Gate.Devices {
			for _, n := range d.Ingress {
				all += n
			}
		}
		return all
	}
	before := ingress()
	sent := 0
	start := time.Now()
	in(t, n.status(t).Internet, func() error {
		out, err := sender(m.Radio.Port)
		if err != nil {
			return err
		}
		defer unix.Close(out)
		ear, err := sniffer(m.Radio.Port)
		if err != nil {
			return err
		}
		defer unix.Close(ear)
		var bad error
		put := func(f []byte) {
			sent++
			if _, err := unix.Write(out, f); err != nil {
				bad = err
			}
		}
		g.all(put)
		if bad != nil {
			return bad
		}
		rules := n.rules(t)
		for _, f := range arrived(ear, 300*time.Millisecond) {
			// What it says meanwhile to its gateway and its router is no answer to a stranger; those say it in classes.
			if v := rules.Classify(f); v.Direction != watch.Out {
				t.Errorf("the handset answered: %s: %x", v.Why, f[:min(len(f), 64)])
			}
		}
		// The ear is not deaf: the router gets an answer, in time.
		put(g.arp(g.mac, g.routerMAC, g.router4, g.v4))
		answered := false
		for _, f := range arrived(ear, 300*time.Millisecond) {
			answered = answered || rules.Classify(f).Class == "arp"
		}
		if !answered {
			t.Error("the router's own question was not answered: the test is deaf")
		}
		return nil
	})
	after := ingress()
	t.Logf("%d probes in %v", sent, time.Since(start))
	if after-before < uint64(sent) {
		t.Errorf("%d of %d probes reached the gate", after-before, sent)
	}
	n.probesTwin(t, g)
}

// probesTwin asks a host with the same addresses, an inner one among them, and no gate: it answers to each kind of probe.
func (n *network) probesTwin(t *testing.T, g target) {
	t.Helper()
	g.mac = net.HardwareAddr{2, 0, 0, 0, 0, 0x77} // the victim's
	v := victim(t, func() error {
		var all error
		for _, a := range []netip.Addr{g.v4, g.v6, innerFour, innerSix} {
			all = errors.Join(all, link.AddAddr("air", netip.PrefixFrom(a, a.BitLen())))
		}
		for _, a := range []netip.Addr{stranger4, stranger6, strangerLL, g.router4, g.router6} {
			all = errors.Join(all, link.AddRoute(link.Route{To: netip.PrefixFrom(a, a.BitLen()), Device: "air"}), link.AddNeighbour("air", a, stranger))
		}
		return errors.Join(all, link.Sysctl("net/ipv4/icmp_ratelimit", "0"), link.Sysctl("net/ipv6/icmp/ratelimit", "0"),
			link.Sysctl("net/ipv4/icmp_echo_ignore_broadcasts", "0"))
	})
	probes := map[string][]byte{"a closed UDP port": g.port(false, 17, 9), "a closed UDP port of IPv6": g.port(true, 17, 9), "a closed TCP port": g.port(false, 6, 9),
		"a closed TCP port of IPv6": g.port(true, 6, 9), "a protocol": g.protocol(false, 200), "a protocol of IPv6": g.protocol(true, 200), "echo": g.icmp(false, 8), "echo of IPv6": g.icmp(true, 128)}
	odd := g.odd()
	for _, name := range []string{"ARP for the inner address", "ND for the inner address", "ARP for the address, from a stranger", "destination option that wants an answer",
		"a fragment that is whole", "echo to all nodes", "a datagram for the inner address", "a datagram for the inner address of IPv6"} {
		probes[name] = odd[name]
	}
	for name, f := range probes {
		if len(f) == 0 {
			t.Fatalf("there is no probe %q", name)
		}
		// A device sends nothing in the first moments of its life.
		answers := 0
		for tries := 0; answers == 0 && tries < 20; tries++ {
			v.send(t, f)
			for _, a := range v.seen() {
				if len(a) > 20 && (a[12] != 0x86 || a[20] != 0) { // reports of groups are no answers
					answers++
				}
			}
		}
		if answers == 0 {
			t.Errorf("the twin does not answer to %s: the probe is none", name)
		}
	}
}
