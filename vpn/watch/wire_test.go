package watch

import (
	"bytes"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"rempart/vpn/egress"
)

func sample() Orders {
	return Orders{Generation: 1<<32 - 1, Closed: true, Down: true, Devices: []Device{{Index: 1, Name: "wwan0"}, {1<<31 - 1, "a-name-of-15-by",
		egress.LinkFacts{Linkd: 9, MAC: [6]byte{2, 0, 0, 0, 0, 1}, Local6: netip.MustParseAddr("fe80::1"), Addr4: netip.MustParseAddr("203.0.113.11"),
			Router4: netip.MustParseAddr("203.0.113.254")},
		egress.LinkFacts{Linkd: 9, MAC: [6]byte{2, 0, 0, 0, 0, 1}, Local6: netip.MustParseAddr("fe80::1")}}},
		Guard: []byte{1, 2, 3}, Behind: []byte{4, 5}, Levels: []byte{6}, Table: egress.Policy{Classes: []egress.Class{
			{Gateway: "gateway", Addr: netip.MustParseAddr("203.0.113.1"), Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 7}}}}
}

func TestOrdersRoundTrip(t *testing.T) {
	full := Orders{Generation: 1, Severed: true, Severing: true, Guard: bytes.Repeat([]byte{9}, MaxGuard), Behind: bytes.Repeat([]byte{8}, MaxBehind)}
	for i := range MaxDevices {
		full.Devices = append(full.Devices, Device{Index: i + 1, Name: strings.Repeat("d", MaxName)})
	}
	for name, o := range map[string]Orders{"sample": sample(), "beat": {Beat: true}, "nothing": {}, "full": full} {
		b, err := MarshalOrders(o)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, err := ParseOrders(b); err != nil || !reflect.DeepEqual(got, o) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestOrdersRefuse(t *testing.T) {
	for name, o := range map[string]Orders{
		"no index": {Devices: []Device{{Name: "a"}}}, "no name": {Devices: []Device{{Index: 1}}}, "a long name": {Devices: []Device{{Index: 1, Name: strings.Repeat("d", MaxName+1)}}},
		"too many": {Devices: make([]Device, MaxDevices+1)}, "a long guard": {Guard: make([]byte, MaxGuard+1)}, "many levels": {Levels: make([]byte, egress.MaxLevelMarshal+1)}, "much behind": {Behind: make([]byte, MaxBehind+1)},
		"a bad table": {Table: egress.Policy{Classes: []egress.Class{{}}}},
	} {
		if b, err := MarshalOrders(o); err == nil {
			t.Errorf("%s: %x", name, b)
		}
	}
	good, err := MarshalOrders(sample())
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if o, err := ParseOrders(good[:n]); err == nil {
			t.Errorf("the first %d bytes: %+v", n, o)
		}
	}
	change := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	for name, b := range map[string][]byte{
		"another frame": change(0, 'X'), "an unknown flag": change(5, 16), "more devices": change(6, MaxDevices+1), "a beat with more": {frameBeat, 0},
		"a byte behind the end": append(bytes.Clone(good), 0), "an endless frame": make([]byte, MaxOrders+1), "index 0": change(10, 0),
	} {
		if o, err := ParseOrders(b); err == nil {
			t.Errorf("%s: %+v", name, o)
		}
	}
}

func TestReports(t *testing.T) {
	for k := Alive; k <= Silent; k++ {
		r := Report{k, 7, "why"}
		b, err := MarshalReport(r)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseReport(b); err != nil || got != r || strings.HasPrefix(k.String(), "kind") {
			t.Errorf("%v: %+v, %v", k, got, err)
		}
	}
	b, err := MarshalReport(Report{Kind: Difference, Text: strings.Repeat("é", MaxText)})
	if err != nil || len(b) > MaxReport {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if _, err := ParseReport(b); err != nil {
		t.Errorf("a text that was cut: %v", err)
	}
	for name, b := range map[string][]byte{"short": {1, 0, 0, 0}, "unknown": {9, 0, 0, 0, 0}, "zero": {0, 0, 0, 0, 0}, "no text": {1, 0, 0, 0, 0, 0xff},
		"long": append([]byte{1, 0, 0, 0, 0}, bytes.Repeat([]byte{'x'}, MaxText+1)...)} {
		if r, err := ParseReport(b); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if _, err := MarshalReport(Report{Kind: 9}); err == nil {
		t.Error("an unknown kind has a frame")
	}
}

func FuzzParseOrders(f *testing.F) {
	b, err := MarshalOrders(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{frameBeat})
	f.Fuzz(func(t *testing.T, in []byte) {
		o, err := ParseOrders(in)
		if err != nil {
			return
		}
		if again, err := MarshalOrders(o); err != nil || !bytes.Equal(again, in) {
			t.Fatalf("another form: %x, %v", again, err)
		}
	})
}
