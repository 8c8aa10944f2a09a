package netns

import (
	"slices"
	"strings"
	"testing"
)

// TestLeasingMachine: what the board and init are told of a machine that leases its addresses.
func TestLeasingMachine(t *testing.T) {
	k := &keeper{spec: keeperSpec{World: "w", State: "/s"}}
	m := newMachine(k, Spec{Name: "a", Role: "handset", Number: 11, Image: "/i", DHCP: true})
	if got := m.radio.argument(); got != "radio=wwan0,dhcp,02:52:45:4d:00:0b" {
		t.Errorf("init is told %q", got)
	}
	if m.radio.V4.String() != "203.0.113.11/24" || m.radio.V6.String() != "2001:db8:113::/64" || m.radio.Router6 != routerLocal6.Addr() {
		t.Errorf("the radio is %+v", m.radio)
	}
	if err := (Spec{Name: "gateway", Role: "gateway", Number: 1, Image: "/i", DHCP: true}).check(); err == nil {
		t.Error("a gateway leases its addresses")
	}
	if err := (Spec{Name: groupProvider, Role: "handset", Number: 11, Image: "/i"}).check(); err == nil {
		t.Error("a machine has the name of the provider's control group")
	}
	// The services are told of the machines that lease, and of what a hostile network adds.
	p := provider{k: k}
	k.machines = []*machine{m, newMachine(k, Spec{Name: "b", Role: "handset", Number: 12, Image: "/i"})}
	args := strings.Join(p.dnsmasq("/d"), " ")
	if !strings.Contains(args, "--dhcp-host=02:52:45:4d:00:0b,203.0.113.11") || strings.Contains(args, "203.0.113.12") || !strings.Contains(args, "--dhcp-option=3,203.0.113.254") {
		t.Errorf("dnsmasq is started with %s", args)
	}
	p.what = Provider{Options: []string{"--dhcp-option-force=121,0.0.0.0/1,203.0.113.66"}, Range: "198.51.100.100,198.51.100.200,255.255.255.0,3600", Router: "198.51.100.254",
		Advertise: []string{"route ::/1 { };"}}
	all := p.dnsmasq("/d")
	if !slices.Contains(all, p.what.Options[0]) || !slices.Contains(all, "--dhcp-range="+p.what.Range) || !slices.Contains(all, "--dhcp-option=3,198.51.100.254") {
		t.Errorf("a hostile dnsmasq is started with %v", all)
	}
	if conf := p.advertisement(); !strings.Contains(conf, "prefix 2001:db8:113::/64 {") || !strings.Contains(conf, "\troute ::/1 { };\n") {
		t.Errorf("radvd reads:\n%s", conf)
	}
}
