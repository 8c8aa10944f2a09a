package backstop

import (
	"bytes"
	"net/netip"
	"reflect"
	"testing"

	"rempart/vpn/egress"
	"rempart/vpn/enforce/nft"
)

func sampleStanding() Standing {
	return Standing{Owners: map[Place]uint32{Black: 1, Red: 1<<32 - 1}, Layers: []Layer{NFT, XFRM}, Wanted: Wanted{
		Devices: []string{"wwan0", "usb1"}, Own: map[string][]netip.Addr{"wwan0": {netip.MustParseAddr("203.0.113.12"), netip.MustParseAddr("2001:db8:113::12")}}, UID: 903, Tunnel: "wg0",
		Admitted: egress.Policy{Classes: []egress.Class{{Gateway: "g", Addr: netip.MustParseAddr("203.0.113.1"), Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 7}}},
		Links: map[string]nft.Link{"usb1": {UID: 907, Facts: egress.LinkFacts{Linkd: 9, MAC: [6]byte{2, 0, 0, 0, 0, 1}, Local6: netip.MustParseAddr("fe80::1"),
			Addr4: netip.MustParseAddr("203.0.113.11"), Router4: netip.MustParseAddr("203.0.113.254")}}},
		Networks: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/64")},
		Input:    []nft.Port{{Protocol: 17, Number: 7}}, Forward: []nft.Port{{Protocol: 6, Number: 8}, {Protocol: 17, Number: 9}},
	}}
}

func TestStandingRoundTrip(t *testing.T) {
	for name, s := range map[string]Standing{"sample": sampleStanding(), "nothing": {Owners: map[Place]uint32{}}} {
		b, err := s.Marshal()
		if err != nil || len(b) > MaxStanding {
			t.Fatalf("%s: %d bytes, %v", name, len(b), err)
		}
		got, err := ParseStanding(b)
		if err != nil || !reflect.DeepEqual(got, s) {
			t.Errorf("%s: parsed %+v, %v; want %+v", name, got, err, s)
		}
		for n := range b {
			if got, err := ParseStanding(b[:n]); err == nil {
				t.Errorf("%s: the first %d bytes are %+v", name, n, got)
			}
		}
		if got, err := ParseStanding(append(bytes.Clone(b), 0)); err == nil {
			t.Errorf("%s: with a byte behind: %+v", name, got)
		}
	}
	stray := sampleStanding()
	stray.Wanted.Devices = nil
	noDevice := sampleStanding()
	noDevice.Wanted.Own = map[string][]netip.Addr{"usb2": {netip.MustParseAddr("203.0.113.12")}}
	manyOwn := sampleStanding()
	manyOwn.Wanted.Own = map[string][]netip.Addr{"wwan0": make([]netip.Addr, maxOwn+1)}
	many := sampleStanding()
	many.Wanted.Input = make([]nft.Port, maxPorts+1)
	for name, s := range map[string]Standing{"a link without a device": stray, "too many ports": many, "an address without a device": noDevice, "too many addresses": manyOwn} {
		if _, err := s.Marshal(); err == nil {
			t.Errorf("%s has a byte form", name)
		}
	}
}

func FuzzParseStanding(f *testing.F) {
	b, err := sampleStanding().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		s, err := ParseStanding(in)
		if err != nil {
			return
		}
		if again, err := s.Marshal(); err != nil || !bytes.Equal(again, in) {
			t.Fatalf("another form: %v", err)
		}
	})
}
