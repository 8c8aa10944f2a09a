package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/boot/manifest"
	"rempart/boot/report"
	"rempart/internal/journal"
	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/internal/wish"
	"rempart/vpn/egress"
	"rempart/vpn/lease"
)

var gateways = egress.Policy{Classes: []egress.Class{
	{Gateway: "g", Addr: netip.MustParseAddr("198.51.100.1"), Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 1},
	{Gateway: "g", Addr: netip.MustParseAddr("198.51.100.1"), Proto: egress.TCP, Port: 443, Purpose: egress.Attestation, Cgroup: 1},
	{Gateway: "g", Addr: netip.MustParseAddr("2001:db8:51::1"), Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 1},
}}

func leasingPhone() *phone {
	p := newPhone(mono(), journal.New(io.Discard, "init"), nil, nil)
	p.policy = &manifest.Policy{Role: manifest.RoleHandset, Networks: []manifest.Network{
		{Name: "wg0", Inner: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/64")}}}}
	p.table = gateways
	p.dynamic["wwan0"] = &dynamic{index: 2, mac: [6]byte{2, 0, 0, 0, 0, 11}, local6: netip.MustParseAddr("fe80::b")}
	p.dynamic["wlan0"] = &dynamic{index: 3, mac: [6]byte{2, 0, 0, 0, 0, 12}, local6: netip.MustParseAddr("fe80::c"),
		leases: [2]leased{{address: netip.MustParseAddr("192.0.2.12"), router: netip.MustParseAddr("192.0.2.1")}}}
	p.linkdCgroup = 7
	return p
}

func lease4(address, router string) wish.Lease {
	return wish.Lease{Device: "wwan0", Address: netip.MustParseAddr(address), Router: netip.MustParseAddr(router), For: time.Hour}
}

func lease6(address, router string) wish.Lease {
	l := lease4(address, router)
	l.Six = true
	return l
}

// TestMayLease: what a network may say a radio is, and what not (TunnelCrack ServerIP and LocalNet among it).
func TestMayLease(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the wishes that are granted")
	for name, l := range map[string]wish.Lease{
		"an address": lease4("203.0.113.77", "203.0.113.254"), "a public one": lease4("198.51.100.77", "198.51.100.254"),
		"of IPv6": lease6("2001:db8:113::77", "fe80::fe"), "nothing": {Device: "wwan0"}, "nothing of IPv6": {Device: "wwan0", Six: true},
	} {
		if err := leasingPhone().mayLease(l); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := lease4("203.0.113.77", "203.0.113.254")
	other.Device = "wg0"
	for name, c := range map[string]struct {
		l     wish.Lease
		cause string
	}{
		"a device that leases nothing": {other, "no radio"},
		"in the tunnel's network":      {lease4("10.77.0.11", "203.0.113.254"), "inside network wg0"},
		"a router in it":               {lease4("203.0.113.77", "10.77.0.1"), "inside network wg0"},
		"IPv6 in it":                   {lease6("fd77::11", "fe80::fe"), "inside network wg0"},
		"the gateway's address":        {lease4("198.51.100.1", "203.0.113.254"), "address of gateway g"},
		"the gateway as router":        {lease4("203.0.113.77", "198.51.100.1"), "address of gateway g"},
		"IPv6 of the gateway":          {lease6("2001:db8:51::1", "fe80::fe"), "address of gateway g"},
		"itself as router":             {lease4("203.0.113.77", "203.0.113.77"), "no address with a router"},
		"link-local":                   {lease4("169.254.1.1", "203.0.113.254"), "no address with a router"},
		"reserved":                     {lease4("240.0.0.1", "203.0.113.254"), "no IPv4 host"},
		"this network":                 {lease4("0.1.2.3", "203.0.113.254"), "no IPv4 host"},
		"a global IPv6 router":         {lease6("2001:db8:113::77", "2001:db8:113::fe"), "no address with a router"},
		"a link-local IPv6 address":    {lease6("fe80::77", "fe80::fe"), "no address with a router"},
		"its own link-local as router": {lease6("2001:db8:113::77", "fe80::b"), "no link-local router"},
		"another radio's":              {lease4("192.0.2.12", "192.0.2.1"), "address of wlan0"},
	} {
		if err := leasingPhone().mayLease(c.l); err == nil || !strings.Contains(err.Error(), c.cause) {
			t.Errorf("%s: %v, want %q", name, err, c.cause)
		}
	}
}

// setOn lists the addresses and routes of a device, of one family.
func setOn(t *testing.T, black *link.NS, device string, six bool) (all []string) {
	t.Helper()
	if err := black.Do(func() error {
		addresses, err := link.Addresses(device)
		if err != nil {
			return err
		}
		for _, a := range addresses {
			if a.Addr().Is6() == six && !a.Addr().IsLinkLocalUnicast() {
				all = append(all, "address "+a.String())
			}
		}
		routes, err := link.Routes(device)
		for _, r := range routes {
			// The kernel gave the device a link-local address: the sysctls of a handset are not set here.
			if r.To.Addr().Is6() == six && !r.To.Addr().IsLinkLocalUnicast() {
				all = append(all, fmt.Sprint(r.To, " via ", r.Via))
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// TestLeaseIsSetAndTakenBack: the routes in black are one to the router and one to each gateway through it, whatever was leased
// before, and none is left after.
func TestLeaseIsSetAndTakenBack(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the address without any route")
	proof.NeedRoot(t)
	p := leasingPhone()
	p.gate, p.pulse = willing(t), willing(t)
	p.report.Devices = []report.Device{{Name: "wwan0", Index: 2}}
	p.behind(t)
	if err := p.blackDo(func() error {
		if err := link.AddVeth(link.Port{Name: "wwan0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 11}}, link.Port{Name: "air"}); err != nil {
			return err
		}
		return link.SetUp("wwan0")
	}); err != nil {
		t.Fatal(err)
	}
	expect := func(what string, six bool, want ...string) {
		t.Helper()
		if got := setOn(t, p.black, "wwan0", six); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	grant := func(l wish.Lease) {
		t.Helper()
		if err := p.grantLease(t.Context(), l); err != nil {
			t.Error(err)
		}
	}
	grant(lease4("203.0.113.77", "203.0.113.254"))
	expect("leased", false, "198.51.100.1/32 via 203.0.113.254", "203.0.113.254/32 via invalid IP", "address 203.0.113.77/32")
	if got := p.facts("wwan0"); got.Addr4.String() != "203.0.113.77" || got.Router4.String() != "203.0.113.254" || got.Linkd != 7 {
		t.Errorf("facts %+v", got)
	}
	grant(lease4("203.0.113.77", "203.0.113.254")) // renewed
	// LocalNet: the lease's network is the target's; there is no route to it.
	grant(lease4("198.51.100.77", "198.51.100.254"))
	expect("moved", false, "198.51.100.1/32 via 198.51.100.254", "198.51.100.254/32 via invalid IP", "address 198.51.100.77/32")
	grant(lease6("2001:db8:113::77", "fe80::fe"))
	expect("IPv6", true, "2001:db8:113::77/128 via invalid IP", "2001:db8:51::1/128 via fe80::fe", "address 2001:db8:113::77/128")
	if got := p.report.Devices[0].Addresses; !slices.Equal(got, []string{"198.51.100.77/32", "2001:db8:113::77/128"}) {
		t.Errorf("reported as %v", got)
	}
	grant(wish.Lease{Device: "wwan0", Six: true})
	expect("IPv6 taken back", true)
	// A lease ends without linkd's word too.
	p.dynamic["wwan0"].leases[0].until = mono() - 1
	p.expireLeases(t.Context())
	expect("over", false)
	if got := p.facts("wwan0"); got.Addr4.IsValid() || got.Router4.IsValid() {
		t.Errorf("facts %+v", got)
	}
	if len(p.report.Devices[0].Addresses) != 0 {
		t.Errorf("reported as %v", p.report.Devices[0].Addresses)
	}
	// A linkd that starts anew finds nothing of the old one.
	grant(lease4("203.0.113.77", "203.0.113.254"))
	grant(lease6("2001:db8:113::77", "fe80::fe"))
	p.forgetLeases(t.Context())
	expect("forgotten", false)
	expect("forgotten", true)
	// An egressd whose answer is not known may have taken the facts or not: the gate is severed, the next egressd is told.
	if err := p.gate.Close(); err != nil {
		t.Fatal(err)
	}
	if p.grantLease(t.Context(), lease4("203.0.113.77", "203.0.113.254")); !p.severed || !p.report.Closed || p.facts("wwan0").Addr4.String() != "203.0.113.77" {
		t.Errorf("severed %t, closed %t, facts %+v", p.severed, p.report.Closed, p.facts("wwan0"))
	}
}

// TestGateThatIsNotToldHasNoAddress: an address is set only behind a gate that knows it.
func TestGateThatIsNotToldHasNoAddress(t *testing.T) {
	proof.NeedRoot(t)
	p := leasingPhone()
	p.gate, p.pulse = willing(t), willing(t)
	if err := p.gate.Close(); err != nil {
		t.Fatal(err)
	}
	p.behind(t)
	if err := p.grantLease(t.Context(), lease4("203.0.113.77", "203.0.113.254")); err == nil {
		t.Error("granted without a gate")
	}
	if p.facts("wwan0").Addr4.IsValid() {
		t.Error("kept as a fact")
	}
}

// TestLinkdSockets: bound to the device and the port, of linkd's uid, deaf to all but advertisements.
func TestLinkdSockets(t *testing.T) {
	proof.NeedRoot(t)
	black, err := link.Create("")
	if err != nil {
		t.Fatal(err)
	}
	defer black.Close()
	if err := black.Do(func() error {
		if err := link.AddVeth(link.Port{Name: "wwan0"}, link.Port{Name: "air"}); err != nil {
			return err
		}
		dhcp, err := link.OpenDHCP("wwan0", uidLinkd)
		if err != nil {
			return err
		}
		defer dhcp.Close()
		nd, err := link.OpenND("wwan0", uidLinkd)
		if err != nil {
			return err
		}
		defer nd.Close()
		if _, err := link.OpenDHCP("wwan0", uidLinkd); err == nil {
			t.Error("two sockets on port 68")
		}
		if _, err := link.OpenND("none", uidLinkd); err == nil {
			t.Error("a socket on a device that is not there")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestKernelSendsWhatTheGateCompares: the frames that this kernel makes of linkd's messages fit the gate's templates.
func TestKernelSendsWhatTheGateCompares(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "vpn/enforce, TestLinkAdmitsTheMinimum")
	proof.NeedRoot(t)
	facts := egress.LinkFacts{Linkd: 7, MAC: [6]byte{2, 0, 0, 0, 0, 11}, Local6: netip.MustParseAddr("fe80::b")}
	black, err := link.Create("")
	if err != nil {
		t.Fatal(err)
	}
	defer black.Close()
	if err := black.Do(func() error {
		if err := errors.Join(
			link.Sysctl("net/ipv6/conf/default/addr_gen_mode", "1"),
			link.AddVeth(link.Port{Name: "wwan0", MAC: net.HardwareAddr(facts.MAC[:])}, link.Port{Name: "air"}),
			link.SetTXChecksum("wwan0", false), link.SetUp("wwan0"), link.SetUp("air"), link.AddAddr("wwan0", netip.PrefixFrom(facts.Local6, 128)),
		); err != nil {
			return err
		}
		index, err := link.Index("air")
		if err != nil {
			return err
		}
		const all = 0x0300 // ETH_P_ALL in network order
		air, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, all)
		if err != nil {
			return err
		}
		defer unix.Close(air)
		if err := errors.Join(unix.Bind(air, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}), unix.SetsockoptTimeval(air, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2})); err != nil {
			return err
		}
		dhcp, err := link.OpenDHCP("wwan0", uidLinkd)
		if err != nil {
			return err
		}
		defer dhcp.Close()
		nd, err := link.OpenND("wwan0", uidLinkd)
		if err != nil {
			return err
		}
		defer nd.Close()
		judge := func(what string, ethertype uint16) {
			t.Helper()
			for b := make([]byte, 2048); ; {
				n, _, err := unix.Recvfrom(air, b, 0)
				if err != nil {
					t.Errorf("%s: %v", what, err)
					return
				}
				// Reports of groups (behind a hop-by-hop header) are the kernel's; the gate drops them.
				if binary.BigEndian.Uint16(b[12:]) != ethertype || ethertype == 0x86dd && b[20] == 0 {
					continue
				}
				if _, r := egress.Decide(egress.DenyAll(), egress.Egress, b[:n], egress.Meta{Cgroup: 7, Link: &egress.Link{Facts: facts, Now: uint64(time.Hour)}}); r != egress.Admitted {
					t.Errorf("%s: %v: %x", what, r, b[:n])
				}
				return
			}
		}
		send := func(m egress.DHCPMessage) error {
			b := facts.DHCP(m, [4]byte{1, 2, 3, 4}, netip.MustParseAddr("203.0.113.77"), netip.MustParseAddr("203.0.113.254"))
			return unix.Sendto(int(dhcp.Fd()), b, 0, &unix.SockaddrInet4{Port: 67, Addr: [4]byte{255, 255, 255, 255}})
		}
		for _, m := range []egress.DHCPMessage{egress.DHCPDiscover, egress.DHCPSelect} {
			if err := send(m); err != nil {
				return err
			}
			judge(fmt.Sprint("message ", m), 0x0800)
		}
		if err := unix.Sendto(int(nd.Fd()), lease.Solicitation(facts.MAC), 0, &unix.SockaddrInet6{Addr: netip.MustParseAddr("ff02::2").As16()}); err != nil {
			return err
		}
		judge("solicitation", 0x86dd)
		facts.Addr4, facts.Router4 = netip.MustParseAddr("203.0.113.77"), netip.MustParseAddr("203.0.113.254")
		if err := link.AddAddr("wwan0", netip.PrefixFrom(facts.Addr4, 32)); err != nil {
			return err
		}
		if err := send(egress.DHCPRenew); err != nil {
			return err
		}
		judge("renewal", 0x0800)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
