package main

import (
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"rempart/boot/manifest"
	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/vpn/egress"
	"rempart/vpn/enforce"
)

// standing is a phone whose radio is up behind a floor and a closed backstop, as after a sever.
func standing(t *testing.T) *phone {
	t.Helper()
	p := withRadio(t)
	if err := p.backstop.AddDevice("wwan0"); err != nil {
		t.Fatal(err)
	}
	if err := p.blackDo(func() error { return enforce.AttachFloor(p.report.Devices[0].Index) }); err != nil {
		t.Fatal(err)
	}
	if err := p.blackDo(func() error { return link.SetUp("wwan0") }); err != nil {
		t.Fatal(err)
	}
	p.severed = true
	return p
}

// Whoever changes what stands behind the gate loses the radios, in whichever namespace it is.
func TestAChangedBackstopTakesTheRadiosDown(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "a phone that nobody changed, first")
	proof.Need(t, "ip", "nft")
	for name, c := range map[string]struct {
		where   func(*phone) *link.NS
		command string
	}{
		"the IPsec default in black":    {func(p *phone) *link.NS { return p.black }, "ip xfrm policy setdefault out accept"},
		"the IPsec default in init's":   {func(p *phone) *link.NS { return p.own }, "ip xfrm policy setdefault in accept"},
		"an IPsec policy in red":        {func(p *phone) *link.NS { return p.red }, "ip xfrm policy add dir out src 0.0.0.0/0 dst 0.0.0.0/0"},
		"somebody else's table in red":  {func(p *phone) *link.NS { return p.red }, "nft add table ip nat"},
		"somebody else's table in void": {func(p *phone) *link.NS { return p.void }, "nft add table inet x"},
	} {
		p := standing(t)
		p.inspect()
		if !p.radioIsUp(t) || p.lost != "" {
			t.Fatalf("%s: the radio of a sound phone went down: %s", name, p.lost)
		}
		err := c.where(p).Do(func() error { return exec.Command("sh", "-c", c.command).Run() })
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		p.inspect()
		if p.radioIsUp(t) || p.lost == "" {
			t.Errorf("%s: the radio is up", name)
		}
		wrong := 0
		for _, l := range p.report.Backstop {
			if !l.InForce {
				wrong++
			}
		}
		if wrong != 1 {
			t.Errorf("%s: the report says %+v", name, p.report.Backstop)
		}
	}
}

// A phone is released behind the gate too, and closed there without asking anybody.
func TestReleaseAndCloseOfTheBackstop(t *testing.T) {
	p := standing(t)
	p.severed = false
	p.table = egress.Policy{Classes: []egress.Class{{Gateway: "g", Addr: netip.MustParseAddr("203.0.113.1"), Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 1}}}
	if err := p.backstop.Release(p.table, uidTunneld); err != nil {
		t.Fatal(err)
	}
	if err := p.readBackstop(); err != nil || !strings.Contains(p.report.Backstop[0].State, "admits 1 classes") {
		t.Fatalf("%v, %+v", err, p.report.Backstop)
	}
	p.gate = nil // there is no egressd at all
	p.close("voiced died")
	if err := p.readBackstop(); err != nil || !strings.Contains(p.report.Backstop[0].State, "drops all") {
		t.Errorf("%v, %+v", err, p.report.Backstop)
	}
}

// Black has routes to the gateways of the signed policy and to nobody else; a gateway answers everyone.
func TestBlackHasRoutesToItsGatewaysAlone(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "role gateway, whose black has a default route")
	proof.Need(t, "ip")
	for role, want := range map[string]bool{manifest.RoleHandset: false, manifest.RoleGateway: true} {
		p := standing(t)
		p.policy = &manifest.Policy{Role: role, Gateways: []manifest.Gateway{{Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:113::1")}}}}
		r := radio{name: "wwan0", v4: netip.MustParsePrefix("198.51.100.9/24"), v6: netip.MustParsePrefix("2001:db8:51::9/64"),
			via4: netip.MustParseAddr("198.51.100.1"), via6: netip.MustParseAddr("2001:db8:51::1"), viaMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
		if err := p.blackDo(func() error { return raiseFixed(r, p.remotes()) }); err != nil {
			t.Fatal(err)
		}
		for to, reached := range map[string]bool{"203.0.113.1": true, "2001:db8:113::1": true, "203.0.113.2": want, "8.8.8.8": want, "2001:db8:113::2": want, "198.51.100.2": want} {
			err := p.blackDo(func() error { return exec.Command("ip", "route", "get", to).Run() })
			if (err == nil) != reached {
				t.Errorf("%s: a route to %s: %v, want %v", role, to, err == nil, reached)
			}
		}
	}
}
