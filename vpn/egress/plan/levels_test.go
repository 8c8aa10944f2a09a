package plan

import (
	"net/netip"
	"strings"
	"testing"

	"rempart/boot/manifest"
	"rempart/internal/proof"
	"rempart/vpn/egress"
	"rempart/vpn/levels"
)

// leveled is a policy with two networks and apps of every kind.
func leveled(role string) *manifest.Policy {
	p := policy(role)
	p.Levels = []string{"public", "restricted", "secret"}
	p.Networks = []manifest.Network{
		{Name: "wg0", Accredited: "restricted", Inner: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/64")}},
		{Name: "wg1", Accredited: "secret", Inner: []netip.Prefix{netip.MustParsePrefix("10.78.0.0/16")}}}
	for _, reads := range p.Levels {
		for _, writes := range p.Levels {
			p.Apps = append(p.Apps, manifest.App{Name: reads + "-" + writes, Reads: reads, Writes: writes})
		}
	}
	return p
}

func places(p *manifest.Policy) Places {
	at := Places{Red: 71, Black: 72, Devices: map[string]int{"wg0": 2}, Cgroups: map[string]uint64{"tunneld": 5, "linkd": 6}}
	for i, a := range p.Apps {
		at.Cgroups[a.Name] = uint64(100 + i)
	}
	return at
}

// TestLevelsAreTheRule: each right in the table is the rule's answer, and black is no app's.
func TestLevelsAreTheRule(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the rights that are there")
	p := leveled(manifest.RoleHandset)
	table, err := Levels(p, places(p))
	if err != nil {
		t.Fatal(err)
	}
	rule, rights := levels.New(p), 0
	for i, a := range p.Apps {
		row := table.Rows[i]
		if row.Name != a.Name || row.Netns != 71 || row.Cgroup != uint64(100+i) || row.Raw {
			t.Errorf("row %d is %+v", i, row)
		}
		for n, network := range p.Networks {
			send, receive := row.Send>>n&1 == 1, row.Receive>>n&1 == 1
			if send != rule.Send(a.Name, network.Name).Allowed || receive != rule.Receive(a.Name, network.Name).Allowed {
				t.Errorf("%s and %s: sends %v, receives %v", a.Name, network.Name, send, receive)
			}
			if send || receive {
				rights++
			}
		}
		if row.Send>>len(p.Networks) != 0 || row.Receive>>len(p.Networks) != 0 {
			t.Errorf("%s has rights in black: %b, %b", a.Name, row.Send, row.Receive)
		}
	}
	if rights == 0 {
		t.Error("no app has a right")
	}
	addr := netip.MustParseAddr
	for _, c := range []struct {
		name string
		got  egress.LevelReason
		want egress.LevelReason
	}{
		{"tunneld to its gateway", table.DecideCall(5, 72, addr("203.0.113.1")), egress.LevelAllowed},
		{"tunneld to its gateway, IPv6", table.DecideCall(5, 72, addr("2001:db8:113::1")), egress.LevelAllowed},
		{"tunneld to another", table.DecideCall(5, 72, addr("203.0.113.2")), egress.LevelSend},
		{"tunneld to another, IPv6", table.DecideCall(5, 72, addr("2001:db8::1")), egress.LevelNetworkNo},
		{"tunneld into red", table.DecideCall(5, 71, addr("10.77.0.1")), egress.LevelNamespace},
		{"linkd asks for a lease", table.DecideCall(6, 72, addr("255.255.255.255")), egress.LevelAllowed},
		{"linkd asks for a router", table.DecideCall(6, 72, addr("ff02::2")), egress.LevelAllowed},
		{"linkd to a host", table.DecideCall(6, 72, addr("198.51.100.7")), egress.LevelSend},
		{"linkd to the gateway", table.DecideCall(6, 72, addr("203.0.113.1")), egress.LevelSend},
		{"linkd hears a server", table.DecidePacket(egress.Ingress, 6, 9, addr("192.0.2.1"), 0), egress.LevelAllowed},
		{"linkd hears a router", table.DecidePacket(egress.Ingress, 6, 9, addr("fe80::1"), 0), egress.LevelAllowed},
		{"linkd hears a stranger", table.DecidePacket(egress.Ingress, 6, 9, addr("2001:db8::1"), 0), egress.LevelNetworkNo},
		{"a network that is not there yet", table.DecidePacket(egress.Egress, 100, 3, addr("10.78.0.1"), 0), egress.LevelDevice},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", c.name, c.got, c.want)
		}
	}
}

func TestLevelsOfAGateway(t *testing.T) {
	p := leveled(manifest.RoleGateway)
	table, err := Levels(p, places(p))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"198.51.100.7", "2001:db8::9"} {
		if got := table.DecideCall(5, 72, netip.MustParseAddr(a)); got != egress.LevelAllowed {
			t.Errorf("a gateway's tunneld to %s: %v", a, got)
		}
	}
	if got := table.DecideCall(6, 72, netip.MustParseAddr("255.255.255.255")); got != egress.LevelProcess {
		t.Errorf("linkd on a gateway: %v", got)
	}
}

func TestLevelsRefuseWhatTheyCannotMean(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*manifest.Policy, *Places)
		says  string
	}{
		"an app without a cgroup":  {func(p *manifest.Policy, at *Places) { delete(at.Cgroups, p.Apps[0].Name) }, "no cgroup"},
		"an app called tunneld":    {func(p *manifest.Policy, at *Places) { p.Apps[0].Name = "tunneld" }, "the same to the hooks"},
		"two networks of a prefix": {func(p *manifest.Policy, _ *Places) { p.Networks[1].Inner = p.Networks[0].Inner[:1] }, `in network "wg0" and in "wg1"`},
		"no namespace":             {func(_ *manifest.Policy, at *Places) { at.Red = 0 }, "no network namespace"},
		"an empty address":         {func(p *manifest.Policy, _ *Places) { p.Gateways[0].Addresses = []netip.Addr{{}} }, "empty address"},
	} {
		p := leveled(manifest.RoleHandset)
		at := places(p)
		c.spoil(p, &at)
		if table, err := Levels(p, at); err == nil || !strings.Contains(err.Error(), c.says) || table.Rows != nil {
			t.Errorf("%s: %+v, %v", name, table, err)
		}
	}
	if _, err := Levels(nil, Places{}); err == nil {
		t.Error("no policy became a table")
	}
	if _, _, err := Rights(nil); err == nil {
		t.Error("no policy has rights")
	}
}

// TestRightsAreThoseOfTheTable: what `rempart level` works out is what the handset has.
func TestRightsAreThoseOfTheTable(t *testing.T) {
	for _, role := range []string{manifest.RoleHandset, manifest.RoleGateway} {
		p := leveled(role)
		table, err := Levels(p, places(p))
		if err != nil {
			t.Fatal(err)
		}
		open, closed, err := Rights(p)
		if err != nil || open != table.Rights() || closed != table.Closed().Rights() || open == closed {
			t.Errorf("%s: %x, %x, %v", role, open[:4], closed[:4], err)
		}
	}
}
