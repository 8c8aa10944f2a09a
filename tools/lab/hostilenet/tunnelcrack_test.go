package hostilenet

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"rempart/board/netns"
	"rempart/board/scenario/attack"
	"rempart/board/scenario/watch"
	"rempart/internal/link"
	"rempart/internal/proof"
)

// localNet: the network says that it is the public network of the target (CVE-2023-36672, CVE-2023-35838). A phone that treats
// its own network as local sends there in the clear. This one has no local network: its address is alone.
func (n *network) localNet(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "a host that takes the leased network for local, in the same test")
	target := netip.MustParseAddr("198.51.100.7")
	local := netip.MustParsePrefix("198.51.100.0/24")
	hostile := netns.Provider{Range: "198.51.100.100,198.51.100.200,255.255.255.0,3600", Router: "198.51.100.254",
		RouterAddresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.254/24")}}
	if err := n.w.Provide(t.Context(), hostile); err != nil {
		t.Fatal(err)
	}
	tries := n.attempts(t, attack.Job{Kind: attack.UDP, Family: attack.IPv4, Target: target, Count: 1}, attack.Job{Kind: attack.TCP, Family: attack.IPv4, Target: target, Count: 1})
	n.observe(t, tries.markers, func() {
		n.restart(t, local.Contains)
		tries.run()
	}, func() watch.Rules {
		// What the handset leased is what the watcher takes for the handset's.
		rules := n.rules(t)
		addresses, _ := n.lease(t)
		for i := range rules.Links {
			for _, a := range addresses {
				if local.Contains(a.Addr()) {
					rules.Links[i].V4, rules.Links[i].Router4 = a.Addr(), netip.MustParseAddr("198.51.100.254")
				}
			}
		}
		return rules
	})
	_, routes := n.lease(t)
	for _, r := range routes {
		to, _, _ := strings.Cut(r, " ")
		if p := netip.MustParsePrefix(to); p.Contains(target) || !p.IsSingleIP() {
			t.Errorf("black has route %s", r)
		}
	}
	// The twin has the same lease and an on-link route, as every common client makes.
	payload := []byte("in the clear of LocalNet")
	v := victim(t, func() error {
		if err := link.AddAddr("air", netip.MustParsePrefix("198.51.100.100/24")); err != nil {
			return err
		}
		return link.AddNeighbour("air", target, []byte{2, 0, 0, 0, 0, 0x66})
	})
	if err := v.Do(func() error { return send(netip.AddrPortFrom(target, 9), payload) }); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(v.seen(), func(f []byte) bool { return bytes.Contains(f, payload) }) {
		t.Error("the twin, whose network is local, does not leak: the attack is none")
	}
}

// serverIP: the gateway's address is the target's (CVE-2023-36671, CVE-2023-36673). The product asks no DNS for its gateway, so
// nobody can move it there; what is left is that traffic to the gateway's own address must not go beside the tunnel. Only the
// tunnel's port of that address is admitted, and only for tunneld.
func (n *network) serverIP(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the tunnel itself, which reaches that address")
	gateway, ok := n.status(t).Machine("gateway")
	if !ok {
		t.Fatal("there is no gateway")
	}
	var jobs []attack.Job
	for _, port := range []uint16{53, 80, 443, 500, 4500, 51821, 51820} {
		jobs = append(jobs, attack.Job{Kind: attack.UDP, Family: attack.IPv4, Target: gateway.Radio.V4.Addr(), Port: port, Count: 1},
			attack.Job{Kind: attack.UDP, Family: attack.IPv6, Target: gateway.Radio.V6.Addr(), Port: port, Count: 1})
	}
	jobs = append(jobs, attack.Job{Kind: attack.TCP, Family: attack.IPv4, Target: gateway.Radio.V4.Addr(), Port: 443, Count: 1})
	tries := n.attempts(t, jobs...)
	s := n.observe(t, tries.markers, func() {
		tries.run()
		// A word through the tunnel, which goes to the same address.
		inner := attack.Job{Kind: attack.UDP, Family: attack.IPv4, Target: netip.MustParseAddr("10.77.0.1"), Count: 1}
		n.attempts(t, inner).run()
	}, func() watch.Rules { return n.rules(t) })
	if !slices.ContainsFunc(s.Classes, func(c watch.ClassCount) bool { return c.Class == "tunnel" && c.Direction == watch.Out }) {
		t.Error("nothing went through the tunnel: the capture may be deaf")
	}
}
