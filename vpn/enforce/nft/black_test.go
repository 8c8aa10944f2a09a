package nft

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/vpn/egress"
)

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// The class passes from sockets that tunneld's uid opened; anyone else, anywhere else, anything else is dropped.
func TestReleasedAdmitsTheClassFromItsOwnerAlone(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "each attempt before any table is there")
	w := newWorld(t)
	attempts := []struct {
		what     string
		uid      int
		from, to netip.AddrPort
		size     int
		pass     bool
	}{
		{"the class, IPv4", tunneld, at(handset4, 51820), at(gateway4, 51820), 8, true},
		{"the class, IPv6", tunneld, at(handset6, 51820), at(gateway6, 51820), 8, true},
		{"any source port", tunneld, at(handset4, 0), at(gateway4, 51820), 8, true},
		{"a datagram in two fragments, IPv4", tunneld, at(handset4, 51820), at(gateway4, 51820), 2000, true},
		{"a datagram in two fragments, IPv6", tunneld, at(handset6, 51820), at(gateway6, 51820), 2000, true},
		{"another user, IPv4", somebody, at(handset4, 51820), at(gateway4, 51820), 8, false},
		{"another user, IPv6", somebody, at(handset6, 51820), at(gateway6, 51820), 8, false},
		{"another user's fragments", somebody, at(handset4, 51820), at(gateway4, 51820), 2000, false},
		{"root", 0, at(handset4, 51820), at(gateway4, 51820), 8, false},
		{"a foreign source, IPv6", tunneld, at(foreign6, 51820), at(gateway6, 51820), 8, false},
		{"a foreign source's fragments, IPv6", tunneld, at(foreign6, 51820), at(gateway6, 51820), 2000, false},
		{"another port", tunneld, at(handset4, 51820), at(gateway4, 51821), 8, false},
		{"another host, IPv4", tunneld, at(handset4, 51820), at(netip.MustParseAddr("198.51.100.7"), 51820), 8, false},
		{"another host, IPv6", tunneld, at(handset6, 51820), at(netip.MustParseAddr("2001:db8:51::7"), 51820), 8, false},
	}
	for _, a := range attempts {
		if !w.udp(a.uid, a.from, a.to, a.size) {
			t.Errorf("twin: %s does not cross without a table", a.what)
		}
	}
	w.put(Closed("bl0"))
	for _, a := range attempts {
		if w.udp(a.uid, a.from, a.to, a.size) {
			t.Errorf("closed: %s crosses", a.what)
		}
	}
	w.put(Released("bl0", tunnel, tunneld, own...))
	for _, a := range attempts {
		if w.udp(a.uid, a.from, a.to, a.size) != a.pass {
			t.Errorf("released: %s: want to cross %v", a.what, a.pass)
		}
	}
	if err := w.differences(Released("bl0", tunnel, tunneld, own...)); err != nil {
		t.Error(err)
	}
}

// A packet socket meets the table with qdisc bypass and without, and its owner is asked for all the same. With bypass nothing
// passes at all: the kernel asks the hook before it knows where the Ethernet header is.
func TestPacketSocketsMeetTheTable(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "each frame before any table is there")
	w := newWorld(t)
	for _, released := range []string{"no table", "closed", "released"} {
		switch released {
		case "closed":
			w.put(Closed("bl0"))
		case "released":
			w.put(Released("bl0", tunnel, tunneld, own...))
		}
		for _, c := range []struct {
			what      string
			uid       int
			etherType uint16
			protocol  uint16 // as the sender claims it
			to        netip.AddrPort
			fragment  uint16
			pass      bool // when released
		}{
			{"another host", tunneld, unix.ETH_P_IP, unix.ETH_P_IP, at(netip.MustParseAddr("198.51.100.7"), 51820), 0, false},
			{"the class from a foreign source", tunneld, unix.ETH_P_IP, unix.ETH_P_IP, at(gateway4, 51820), 0, false},
			{"the class by another user", somebody, unix.ETH_P_IP, unix.ETH_P_IP, at(gateway4, 51820), 0, false},
			{"the class", tunneld, unix.ETH_P_IP, unix.ETH_P_IP, at(gateway4, 51820), 0, true},
			{"a later fragment to another host", tunneld, unix.ETH_P_IP, unix.ETH_P_IP, at(netip.MustParseAddr("198.51.100.7"), 51820), 100, false},
			{"a later fragment to the gateway by another user", somebody, unix.ETH_P_IP, unix.ETH_P_IP, at(gateway4, 51820), 100, false},
			{"another EtherType", tunneld, 0x88b5, 0x88b5, at(gateway4, 51820), 0, false},
			{"another EtherType that is called IPv4", tunneld, 0x88b5, unix.ETH_P_IP, at(gateway4, 51820), 0, false},
			{"IPv4 that is called something else", tunneld, unix.ETH_P_IP, 0x88b5, at(gateway4, 51820), 0, false},
			{"a VLAN tag", tunneld, unix.ETH_P_8021Q, unix.ETH_P_8021Q, at(gateway4, 51820), 0, false},
		} {
			for _, bypass := range []bool{false, true} {
				mark := w.marker()
				from := handset4
				if strings.Contains(c.what, "foreign") {
					from = foreign4
				}
				w.frame(c.uid, bypass, c.protocol, ipv4(c.etherType, at(from, 51820), c.to, c.fragment, mark))
				want := released == "no table" || released == "released" && c.pass && !bypass
				if w.heard(mark) != want {
					t.Errorf("%s, bypass %v, %s: want to cross %v", c.what, bypass, released, want)
				}
			}
		}
	}
	drops := map[string]uint64{}
	w.in(w.black, func() (err error) { drops, err = Drops(); return err })
	if drops["rempart-bl0 egress"] < 19 {
		t.Errorf("counted %v, want the 19 frames that were dropped, and what the kernel says by itself", drops)
	}
}

// A gateway answers from its own port, to any host and to no group of hosts.
func TestAnsweringClass(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "each attempt before any table is there")
	w := newWorld(t)
	group := netip.MustParseAddr("224.0.0.251")
	for _, released := range []bool{false, true} {
		if released {
			w.put(Released("bl0", answering, tunneld, own...))
		}
		for _, c := range []struct {
			what     string
			uid      int
			from, to netip.AddrPort
			pass     bool
		}{
			{"an answer, IPv4", tunneld, at(handset4, 51820), at(netip.MustParseAddr("198.51.100.7"), 4000), true},
			{"an answer, IPv6", tunneld, at(handset6, 51820), at(netip.MustParseAddr("2001:db8:51::7"), 4000), true},
			{"an answer from a foreign source", tunneld, at(foreign6, 51820), at(gateway6, 4000), false},
			{"another user", somebody, at(handset4, 51820), at(gateway4, 4000), false},
			{"another port", tunneld, at(handset4, 51821), at(gateway4, 4000), false},
			{"a group", tunneld, at(handset4, 51820), at(group, 4000), false},
			{"everyone", tunneld, at(handset4, 51820), at(netip.MustParseAddr("255.255.255.254"), 4000), false},
		} {
			if w.udp(c.uid, c.from, c.to, 8) != (c.pass || !released) {
				t.Errorf("%s: released %v", c.what, released)
			}
		}
	}
	if err := w.differences(Released("bl0", answering, tunneld, own...)); err != nil {
		t.Error(err)
	}
}

// A device without an address of its own lets nothing through; one with an address of one family, that one.
func TestAClassIsOfTheDevicesOwnAddresses(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the same with both addresses, in TestReleasedAdmitsTheClassFromItsOwnerAlone")
	w := newWorld(t)
	for _, policy := range []egress.Policy{tunnel, answering} {
		for _, own := range [][]netip.Addr{nil, {handset4}, {handset6}, {foreign4, foreign6}} {
			table := Released("bl0", policy, tunneld, own...)
			w.put(table)
			if err := w.differences(table); err != nil {
				t.Error(err)
			}
			for from, to := range map[netip.Addr]netip.Addr{handset4: gateway4, handset6: gateway6, foreign6: gateway6} {
				if w.udp(tunneld, at(from, 51820), at(to, 51820), 8) != slices.Contains(own, from) {
					t.Errorf("from %v with addresses %v: want to cross %v", from, own, slices.Contains(own, from))
				}
			}
		}
	}
	w.put(Released("bl0", tunnel, tunneld, own...))
	if err := w.differences(Released("bl0", tunnel, tunneld, handset4, foreign6)); err == nil {
		t.Error("other addresses are no difference")
	}
}

// The largest policy is one batch: each set of it one message of less than 64 KiB.
func TestTheLargestPolicyGoesIn(t *testing.T) {
	w := newWorld(t)
	var p egress.Policy
	for i := range egress.MaxClasses {
		p.Classes = append(p.Classes, egress.Class{Gateway: "g", Addr: gateway6, Proto: egress.UDP, Port: uint16(1000 + i), Purpose: egress.Tunnel, Cgroup: 1})
	}
	table := Released("bl0", p, tunneld, own...)
	w.put(table)
	if err := w.differences(table); err != nil {
		t.Error(err)
	}
	if last := at(gateway6, uint16(999+egress.MaxClasses)); !w.udp(tunneld, at(handset6, 51820), last, 8) || w.udp(tunneld, at(handset6, 51820), at(gateway6, last.Port()+1), 8) {
		t.Error("the last class does not pass, or one more does")
	}
}

// Inbound the remote is asked for: what a stranger sends is not even heard.
func TestInboundMeetsTheTable(t *testing.T) {
	proof.SFR(t, "FDP_VPN_EXT.1", "the same before any table is there")
	w := newWorld(t)
	var inside *net.UDPConn
	w.in(w.black, func() (err error) { inside, err = net.ListenUDP("udp", &net.UDPAddr{Port: 4000}); return err })
	defer inside.Close()
	// Black hears what is sent to it, whatever device has the address.
	w.in(w.black, func() error {
		return errors.Join(link.AddAddr("lo", netip.PrefixFrom(foreign4, 32)), link.AddAddr("lo", netip.PrefixFrom(foreign6, 128)))
	})
	arrives := func(from, to netip.AddrPort, size int, patience time.Duration) bool {
		mark := w.marker()
		w.in(w.air, func() error {
			c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(from))
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.WriteToUDPAddrPort(append(mark, make([]byte, size)...), to)
			return err
		})
		if err := inside.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		n, _, err := inside.ReadFromUDP(b)
		return err == nil && n == len(mark)+size
	}
	for _, table := range []string{"none", "closed", "released", "answering"} {
		switch table {
		case "closed":
			w.put(Closed("bl0"))
		case "released":
			w.put(Released("bl0", tunnel, tunneld, own...))
		case "answering":
			p := egress.Policy{Classes: answering.Classes}
			p.Classes[0].Port = 4000
			w.put(Released("bl0", p, tunneld, own...))
		}
		for _, c := range []struct {
			what     string
			from, to netip.AddrPort
			size     int
			pass     string
		}{
			{"the gateway's port, IPv4", at(gateway4, 51820), at(handset4, 4000), 8, "none released answering"},
			{"the gateway's port, IPv6", at(gateway6, 51820), at(handset6, 4000), 8, "none released answering"},
			{"fragments of the gateway's, IPv4", at(gateway4, 51820), at(handset4, 4000), 2000, "none released answering"},
			{"fragments of the gateway's, IPv6", at(gateway6, 51820), at(handset6, 4000), 2000, "none released answering"},
			{"the gateway's port, to an address that is not of the device", at(gateway4, 51820), at(foreign4, 4000), 8, "none"},
			{"fragments of the gateway's, to an address that is not of the device", at(gateway6, 51820), at(foreign6, 4000), 2000, "none"},
			{"another port of the gateway's", at(gateway4, 53), at(handset4, 4000), 8, "none answering"},
		} {
			want := slices.Contains(strings.Fields(c.pass), table)
			patience := 30 * time.Millisecond
			if want {
				patience = time.Second // on a busy machine
			}
			if arrives(c.from, c.to, c.size, patience) != want {
				t.Errorf("%s, table %s: want to arrive %v", c.what, table, want)
			}
		}
	}
}
