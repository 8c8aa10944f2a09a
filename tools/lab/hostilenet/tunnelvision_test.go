package hostilenet

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/netns"
	"rempart/board/scenario/attack"
	"rempart/board/scenario/watch"
	"rempart/internal/link"
	"rempart/internal/proof"
)

// The routes that a hostile network pushes: more specific than any default, and one to a host (CVE-2024-3661).
const pushed = "0.0.0.0/1,203.0.113.66,128.0.0.0/1,203.0.113.66,198.51.100.7/32,203.0.113.66"

// tunnelVision: a DHCP server that pushes routes (options 121, 249, 33), and a router that advertises them (RFC 4191) and
// everything else that it can. The routes of black stay what they were, the tunnel comes up, and no clear packet leaves.
func (n *network) tunnelVision(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "a host that believes option 121, in the same test")
	_, before := n.lease(t)
	hostile := netns.Provider{
		Options: []string{"--dhcp-option-force=121," + pushed, "--dhcp-option-force=249," + pushed, "--dhcp-option-force=33,198.51.100.7,203.0.113.66",
			"--dhcp-option-force=6,203.0.113.66", "--dhcp-option-force=26,576", "--dhcp-option-force=114,http://203.0.113.66/", "--dhcp-option-force=252,http://203.0.113.66/wpad",
			"--dhcp-option-force=15,example.net", "--dhcp-option-force=3,203.0.113.254,203.0.113.66"},
		Advertise: []string{"route ::/1 { AdvRoutePreference high; AdvRouteLifetime 3600; };", "route 8000::/1 { AdvRoutePreference high; AdvRouteLifetime 3600; };",
			"RDNSS 2001:db8:113::66 { };", "AdvLinkMTU 1280;"},
	}
	if err := n.w.Provide(t.Context(), hostile); err != nil {
		t.Fatal(err)
	}
	host4, host6 := netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:51::7")
	tries := n.attempts(t, attack.Job{Kind: attack.UDP, Family: attack.IPv4, Target: host4, Count: 1}, attack.Job{Kind: attack.UDP, Family: attack.IPv6, Target: host6, Count: 1},
		attack.Job{Kind: attack.TCP, Family: attack.IPv4, Target: host4, Count: 1})
	var ear int
	in(t, n.status(t).Internet, func() (err error) { ear, err = hear("br0", false); return err })
	defer unix.Close(ear)
	n.observe(t, tries.markers, func() {
		n.restart(t, func(a netip.Addr) bool { return a.Is4() })
		tries.run()
	}, func() watch.Rules { return n.rules(t) })
	if _, after := n.lease(t); !slices.Equal(before, after) || len(after) == 0 {
		t.Errorf("routes in black are %q, were %q", after, before)
	}
	raw := slices.Concat(arrived(ear, 50*time.Millisecond)...)
	// The attack was on the air: the first pushed route stands behind option 121, and the advertised one in a route option.
	for what, b := range map[string][]byte{"option 121": {121, 21, 1, 0, 203, 0, 113, 66, 1, 128, 203, 0, 113, 66}, "route information": {24, 3, 1, 8}} {
		if !bytes.Contains(raw, b) {
			t.Errorf("no %s was seen in %d bytes: the network was not hostile", what, len(raw))
		}
	}
	// The twin: all of its traffic goes into a tunnel by a default route, and it believes what it is told.
	payload := []byte("in the clear of TunnelVision")
	v := victim(t, func() error {
		if err := link.AddVeth(link.Port{Name: "tun"}, link.Port{Name: "end"}); err != nil {
			return err
		}
		for _, d := range []string{"tun", "end"} {
			if err := link.SetUp(d); err != nil {
				return err
			}
		}
		err := link.AddAddr("air", netip.MustParsePrefix("203.0.113.77/24"))
		if err == nil {
			err = link.AddRoute(link.Route{To: netip.MustParsePrefix("0.0.0.0/0"), Device: "tun"})
		}
		if err == nil {
			err = link.AddNeighbour("air", netip.MustParseAddr("203.0.113.66"), []byte{2, 0, 0, 0, 0, 0x66})
		}
		return err
	})
	leaks := func() bool {
		if err := v.Do(func() error { return send(netip.AddrPortFrom(host4, 9), payload) }); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(v.seen(), func(f []byte) bool { return bytes.Contains(f, payload) })
	}
	if leaks() {
		t.Error("the twin leaks without the attack")
	}
	if err := v.Do(func() error {
		return link.AddRoute(link.Route{To: netip.MustParsePrefix("128.0.0.0/1"), Device: "air", Via: netip.MustParseAddr("203.0.113.66")})
	}); err != nil {
		t.Fatal(err)
	}
	if !leaks() {
		t.Error("the twin, which believes the pushed routes, does not leak: the attack is none")
	}
}
