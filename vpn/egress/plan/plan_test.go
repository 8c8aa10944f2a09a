package plan

import (
	"net/netip"
	"reflect"
	"testing"

	"rempart/boot/manifest"
	"rempart/internal/proof"
	"rempart/vpn/egress"
)

const cgroup = 4711

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func policy(role string) *manifest.Policy {
	return &manifest.Policy{Role: role, Gateways: []manifest.Gateway{{
		Name: "gateway", Addresses: []netip.Addr{addr("203.0.113.1"), addr("2001:db8:113::1")},
		Services: []manifest.Service{
			{Protocol: "udp", Port: 51820, Purpose: manifest.PurposeTunnel},
			{Protocol: "tcp", Port: 7371, Purpose: manifest.PurposeAttestation},
		}}}}
}

func second(p *manifest.Policy) *manifest.Policy {
	p.Gateways = append(p.Gateways, manifest.Gateway{Name: "spare", Addresses: []netip.Addr{addr("203.0.113.2")},
		Services: []manifest.Service{{Protocol: "udp", Port: 4500, Purpose: manifest.PurposeIKE}}})
	return p
}

func TestHandsetMayReachTheGatewaysServicesAndNothingElse(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "")
	table, err := Compile(second(policy(manifest.RoleHandset)), cgroup)
	if err != nil {
		t.Fatal(err)
	}
	want := []egress.Class{
		{Gateway: "gateway", Addr: addr("203.0.113.1"), Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: cgroup},
		{Gateway: "gateway", Addr: addr("2001:db8:113::1"), Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: cgroup},
		{Gateway: "gateway", Addr: addr("203.0.113.1"), Proto: egress.TCP, Port: 7371, Purpose: egress.Attestation, Cgroup: cgroup},
		{Gateway: "gateway", Addr: addr("2001:db8:113::1"), Proto: egress.TCP, Port: 7371, Purpose: egress.Attestation, Cgroup: cgroup},
		{Gateway: "spare", Addr: addr("203.0.113.2"), Proto: egress.UDP, Port: 4500, Purpose: egress.IKE, Cgroup: cgroup},
	}
	if !reflect.DeepEqual(table.Classes, want) {
		t.Errorf("classes are\n%v\nwant\n%v", table.Classes, want)
	}
	if only := table.For("spare"); len(only.Classes) != 1 {
		t.Errorf("the classes of spare are %v", only.Classes)
	}
	if !table.For("gateway").Within(table) {
		t.Error("the classes of one gateway are not within the table")
	}
}

func TestGatewayAnswersAnyRemoteOnItsOwnPorts(t *testing.T) {
	table, err := Compile(policy(manifest.RoleGateway), cgroup)
	if err != nil {
		t.Fatal(err)
	}
	if len(table.Classes) != 2 {
		t.Fatalf("classes are %v, want one per service", table.Classes)
	}
	for _, c := range table.Classes {
		if !c.Responder() || c.Cgroup != cgroup {
			t.Errorf("%v is not a responder's class of tunneld", c)
		}
	}
}

func TestCompileRefusesWhatIsNotExact(t *testing.T) {
	change := func(role string, f func(*manifest.Gateway)) *manifest.Policy {
		p := policy(role)
		f(&p.Gateways[0])
		return p
	}
	hs := manifest.RoleHandset
	cases := map[string]*manifest.Policy{
		"no policy":                  nil,
		"no role":                    policy(""),
		"two gateways in one":        second(policy(manifest.RoleGateway)),
		"no gateway in role gateway": {Role: manifest.RoleGateway},
		"no address":                 change(hs, func(g *manifest.Gateway) { g.Addresses = nil }),
		"an empty address":           change(hs, func(g *manifest.Gateway) { g.Addresses[0] = netip.Addr{} }),
		"a multicast address":        change(hs, func(g *manifest.Gateway) { g.Addresses[0] = addr("224.0.0.1") }),
		"an unknown protocol":        change(hs, func(g *manifest.Gateway) { g.Services[0].Protocol = "sctp" }),
		"an unknown purpose":         change(hs, func(g *manifest.Gateway) { g.Services[0].Purpose = "web" }),
		"port 0":                     change(hs, func(g *manifest.Gateway) { g.Services[0].Port = 0 }),
		"one class twice":            change(hs, func(g *manifest.Gateway) { g.Addresses[1] = g.Addresses[0] }),
		"no name":                    change(hs, func(g *manifest.Gateway) { g.Name = "" }),
	}
	for name, p := range cases {
		table, err := Compile(p, cgroup)
		if err == nil {
			t.Errorf("%s: compiled to %v", name, table.Classes)
		}
		if len(table.Classes) != 0 {
			t.Errorf("%s: an error and classes %v", name, table.Classes)
		}
	}
	if table, err := Compile(policy(hs), 0); err == nil {
		t.Errorf("cgroup 0 compiled to %v", table.Classes)
	}
}
