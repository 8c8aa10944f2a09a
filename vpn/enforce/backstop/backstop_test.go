package backstop

import (
	"errors"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/vpn/egress"
	"rempart/vpn/enforce/nft"
	"rempart/vpn/enforce/xfrm"
)

var (
	tunnel = egress.Policy{Classes: []egress.Class{{Gateway: "g", Addr: netip.MustParseAddr("203.0.113.1"), Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 1}}}
	inner  = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/64")}
	sound  = []nft.Port{{Protocol: unix.IPPROTO_UDP, Number: 5004}}
)

const uid = 903

var own = netip.MustParseAddr("203.0.113.11")

// handset is four namespaces, the radio in black, closed.
func handset(t *testing.T) *Backstop {
	t.Helper()
	proof.NeedRoot(t)
	spaces := map[string]Space{}
	for name, place := range map[string]Place{"black": Black, "red": Red, "void": Other, "init": Other} {
		ns, err := link.Create("")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ns.Close() })
		spaces[name] = Space{place, ns}
	}
	b, err := Lay(spaces)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.close(); err != nil {
			t.Error(err)
		}
	})
	b.in(t, "black", func() error { return link.AddVeth(link.Port{Name: "wwan0"}, link.Port{Name: "far0"}) })
	if err := b.AddDevice("wwan0", own); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *Backstop) in(t *testing.T, space string, fn func() error) {
	t.Helper()
	if err := b.spaces[space].NS.Do(fn); err != nil {
		t.Fatal(err)
	}
}

func (b *Backstop) whole(t *testing.T, when string) {
	t.Helper()
	for _, l := range []Layer{NFT, XFRM} {
		if err := b.ReadBack(l); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
}

// Through a phone's life both layers are what they should be, and say so.
func TestLife(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "TestReadBackNoticesInEveryNamespace")
	b := handset(t)
	says := func(when, nftState, xfrmState string) {
		t.Helper()
		b.whole(t, when)
		if s := b.State(NFT); !strings.Contains(s, nftState) {
			t.Errorf("%s: nft %q, want %q", when, s, nftState)
		}
		if s := b.State(XFRM); !strings.Contains(s, xfrmState) {
			t.Errorf("%s: xfrm %q, want %q", when, s, xfrmState)
		}
	}
	says("laid", "drops all on wwan0", "in 4 namespaces, in black drops all")
	if err := b.Tunnel("wg0", inner, sound, nil); err != nil {
		t.Fatal(err)
	}
	b.whole(t, "red open")
	for range 3 {
		if err := b.Release(tunnel, uid); err != nil {
			t.Fatal(err)
		}
		says("released", "admits 1 classes on wwan0", "admits 1 classes")
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		says("closed", "drops all", "drops all")
	}
	if err := b.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if drops, err := b.Drops(); err != nil || len(drops) != 4 {
		t.Errorf("drops %v, %v", drops, err)
	}
}

// A device that comes while the phone runs has its table before it can be up, released like the others; one that goes takes it along.
func TestDevicesComeAndGo(t *testing.T) {
	b := handset(t)
	if err := b.Release(tunnel, uid); err != nil {
		t.Fatal(err)
	}
	b.in(t, "black", func() error { return link.AddVeth(link.Port{Name: "usb0"}, link.Port{Name: "far1"}) })
	for range 2 {
		if err := b.AddDevice("usb0", netip.MustParseAddr("203.0.113.12")); err != nil {
			t.Fatal(err)
		}
	}
	b.whole(t, "with usb0")
	if w := b.Wanted(); !slices.Equal(w.Devices, []string{"wwan0", "usb0"}) {
		t.Errorf("devices %v", w.Devices)
	}
	b.in(t, "black", func() error { return link.Remove("usb0") })
	for range 2 {
		if err := b.RemoveDevice("usb0"); err != nil {
			t.Fatal(err)
		}
	}
	b.whole(t, "usb0 has gone")
	if err := b.AddDevice("no-device"); err == nil && b.ReadBack(NFT) == nil && b.Missing(NFT) == nil {
		t.Log("this kernel keeps a table for a device that is still to come")
	}
}

// The classes are of a device's own addresses: those that it was added with, or those that it leases, and no more once the lease
// is over.
func TestOwnAddressesFollowTheLease(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "vpn/enforce/nft TestAClassIsOfTheDevicesOwnAddresses")
	b := handset(t)
	b.in(t, "black", func() error { return link.AddVeth(link.Port{Name: "wlan0"}, link.Port{Name: "far1"}) })
	if err := errors.Join(b.AddDevice("wlan0"), b.Release(tunnel, uid)); err != nil {
		t.Fatal(err)
	}
	leased := egress.LinkFacts{MAC: [6]byte{2, 0, 0, 0, 0, 1}, Local6: netip.MustParseAddr("fe80::1"),
		Addr4: netip.MustParseAddr("198.51.100.7"), Router4: netip.MustParseAddr("198.51.100.1")}
	over := egress.LinkFacts{MAC: leased.MAC, Local6: leased.Local6}
	if got := b.Wanted().own("wwan0"); !slices.Equal(got, []netip.Addr{own}) {
		t.Errorf("wwan0 has %v", got)
	}
	for _, facts := range []egress.LinkFacts{over, leased, over} {
		if err := b.SetLink("wlan0", facts, 907); err != nil {
			t.Fatal(err)
		}
		b.whole(t, "facts of a lease")
		var want []netip.Addr
		if facts.Addr4.IsValid() {
			want = []netip.Addr{facts.Addr4}
		}
		if got := b.Wanted().own("wlan0"); !slices.Equal(got, want) {
			t.Errorf("wlan0 has %v, want %v", got, want)
		}
	}
	if err := b.RemoveDevice("wlan0"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Standing().Marshal(); err != nil {
		t.Errorf("with a device that is gone: %v", err)
	}
}

// A change by anybody, in any of the namespaces, is a difference of its layer, and names the namespace.
func TestReadBackNoticesInEveryNamespace(t *testing.T) {
	proof.SFR(t, "FPT_TST_EXT.1", "the read-back before the change")
	proof.Need(t, "nft", "ip")
	for _, space := range []string{"black", "red", "void", "init"} {
		for layer, command := range map[Layer]string{NFT: "nft add table ip x", XFRM: "ip xfrm policy setdefault out accept"} {
			b := handset(t)
			b.whole(t, space)
			b.in(t, space, func() error { return exec.Command("sh", "-c", command).Run() })
			for _, l := range []Layer{NFT, XFRM} {
				err := b.ReadBack(l)
				if (err != nil) != (l == layer) || err != nil && !strings.HasPrefix(err.Error(), space+":") {
					t.Errorf("%s changed in %s: %s says %v", layer, space, l, err)
				}
			}
		}
	}
}

// Another process needs the wanted value, the place and the owner's port, nothing of this one's.
func TestReadBackByAnother(t *testing.T) {
	b := handset(t)
	if err := errors.Join(b.Release(tunnel, uid), b.Tunnel("wg0", inner, sound, sound)); err != nil {
		t.Fatal(err)
	}
	w := Wanted{Devices: []string{"wwan0"}, Own: map[string][]netip.Addr{"wwan0": {own}}, Admitted: tunnel, UID: uid, Tunnel: "wg0", Networks: inner, Input: sound, Forward: sound}
	for name, s := range b.spaces {
		b.in(t, name, func() error { return ReadBack(s.Place, w, b.Owner(name), b.There()...) })
	}
	for what, spoil := range map[string]func(*Wanted){
		"devices": func(w *Wanted) { w.Devices = nil },
		"own addresses": func(w *Wanted) {
			w.Own = map[string][]netip.Addr{"wwan0": {netip.MustParseAddr("203.0.113.12")}}
		},
		"classes":  func(w *Wanted) { w.Admitted = egress.DenyAll() },
		"user":     func(w *Wanted) { w.UID = 0 },
		"tunnel":   func(w *Wanted) { w.Tunnel = "wg1" },
		"networks": func(w *Wanted) { w.Networks = inner[:1] },
		"input":    func(w *Wanted) { w.Input = nil },
		"forward":  func(w *Wanted) { w.Forward = nil },
	} {
		other := w
		spoil(&other)
		var all error
		for name, s := range b.spaces {
			all = errors.Join(all, s.NS.Do(func() error { return ReadBack(s.Place, other, b.Owner(name), NFT, XFRM) }))
		}
		if all == nil {
			t.Errorf("other %s are not a difference", what)
		}
	}
	if err := ReadBack(Other, w, 0, "brick"); err == nil {
		t.Error("an unknown layer is in force")
	}
}

// A layer that the kernel does not have leaves the other one, and is named.
func TestAMissingLayerLeavesTheOther(t *testing.T) {
	b := handset(t)
	for layer, missing := range map[Layer]error{NFT: nft.ErrMissing, XFRM: xfrm.ErrMissing} {
		b.missing = map[Layer]error{}
		if err := b.do("red", func(string) error { return missing }); err != nil {
			t.Fatal(err)
		}
		if !errors.Is(b.Missing(layer), missing) || len(b.There()) != 1 || b.ReadBack(layer) != nil || b.State(layer) != missing.Error() {
			t.Errorf("%s: missing %v, there %v, %q", layer, b.Missing(layer), b.There(), b.State(layer))
		}
		if err := errors.Join(b.Release(tunnel, uid), b.Close()); err != nil {
			t.Errorf("without %s: %v", layer, err)
		}
	}
	b.missing = map[Layer]error{}
	if err := b.do("red", func(string) error { return unix.EIO }); !errors.Is(err, unix.EIO) {
		t.Errorf("another failure is %v", err)
	}
}

// A release that fails half-way closes what it had opened.
func TestAFailedReleaseIsClosed(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "a release that does not fail, in TestLife")
	b := handset(t)
	bad := tunnel
	bad.Classes = append(slices.Clone(bad.Classes), egress.Class{Gateway: "g", Addr: netip.MustParseAddr("fe80::1%eth0"), Proto: 17, Port: 1, Purpose: egress.Tunnel, Cgroup: 1})
	b.wanted.Devices = append(b.wanted.Devices, strings.Repeat("x", 40)) // longer than a device's name may be
	if err := b.Release(bad, uid); err == nil {
		t.Fatal("it did not fail")
	}
	b.wanted.Devices = []string{"wwan0"}
	b.whole(t, "after the failure")
}
