package attack_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"rempart/board/scenario/attack"
	"rempart/board/scenario/watch"
	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/vpn/egress"
	"rempart/vpn/enforce/nft"
	"rempart/vpn/enforce/xfrm"
)

// released is a gateway that nobody here sends to as its owner.
var released = egress.Policy{Classes: []egress.Class{
	{Gateway: "g", Addr: netip.MustParseAddr("203.0.113.1"), Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 1},
	{Gateway: "g", Addr: netip.MustParseAddr("2001:db8:113::1"), Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 1},
}}

// TestEachLayerAlone shows what each layer behind the gate stops when nothing else does, from root with all capabilities in
// black, and what it does not: DESIGN.md §1's table, row for row.
func TestEachLayerAlone(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "TestEveryKindReachesAStrangerWhereNothingStopsIt")
	frames := []attack.Kind{attack.Packet, attack.PacketBypass, attack.PacketDgram, attack.SockPacket, attack.PacketRing, attack.Passed,
		attack.Impostor, attack.VLAN, attack.EtherType, attack.ARP, attack.Options, attack.Fragment, attack.Constant}
	routed := []attack.Kind{attack.UDP, attack.TCP, attack.ICMP, attack.DNS, attack.BindToDevice, attack.Multicast, attack.Raw, attack.Mark,
		attack.DoT, attack.NTP, attack.LLMNR, attack.Broadcast, attack.Membership, attack.BindToIndex, attack.PktInfo, attack.Connected,
		attack.ReusePort, attack.Large, attack.GSO, attack.URing, attack.UDPLite, attack.MPTCP, attack.RawProtocol}
	const owner = 903
	for name, layer := range map[string]struct {
		lay   func(t *testing.T) error
		leaks []attack.Kind
	}{
		"nft": {func(t *testing.T) error {
			o, err := nft.Open()
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = o.Close() })
			return o.Put(nft.Released("wwan0", released, owner, netip.MustParseAddr("203.0.113.11"), netip.MustParseAddr("2001:db8:113::11")))
		}, []attack.Kind{attack.XDP}},
		"xfrm": {func(*testing.T) error { return xfrm.Put(xfrm.Classes(released)) }, append(slices.Clone(frames), attack.XDP)},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWire(t)
			watcher, err := watch.New(watch.Rules{})
			if err != nil {
				t.Fatal(err)
			}
			stop := w.listen(t, "air", watcher)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			ns, err := link.Open("/run/netns/" + w.handset)
			if err != nil {
				t.Fatal(err)
			}
			defer ns.Close()
			if err := ns.Do(func() error { return layer.lay(t) }); err != nil {
				t.Fatal(err)
			}
			sent := map[string]attack.Job{}
			for _, k := range append(append(slices.Clone(frames), routed...), attack.XDP) {
				for _, f := range []attack.Family{attack.IPv4, attack.IPv6} {
					j := job(k, f)
					if k != attack.Constant {
						j.For = 0
					}
					if k == attack.Passed {
						j.FD = w.packetSocket(t)
					}
					if err := watcher.Mark(watch.Marker(j.Marker), attack.Traces(k, f, j.Marker)...); err != nil {
						t.Fatal(err)
					}
					w.attack(t, ctx, j)
					sent[fmt.Sprintf("%s IPv%d", k, f)] = j
				}
			}
			// What leaks is waited for; by then what was sent before the last of it has been seen too.
			last := job(attack.XDP, attack.IPv4)
			last.For = 0
			if err := watcher.Mark(watch.Marker(last.Marker)); err != nil {
				t.Fatal(err)
			}
			w.attack(t, ctx, last)
			if err := seen(ctx, watcher, watch.Marker(last.Marker)); err != nil {
				t.Fatalf("AF_XDP does not leak: %v", err)
			}
			stop()
			for what, j := range sent {
				n, _ := watcher.Seen(watch.Marker(j.Marker))
				if leaked, want := n > 0, slices.Contains(layer.leaks, j.Kind); leaked != want {
					t.Errorf("%s: %d frames outside, want a leak: %v", what, n, want)
				}
			}
		})
	}
}
