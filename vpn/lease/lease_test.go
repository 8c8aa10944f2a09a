package lease

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

var mac = [6]byte{2, 0, 0, 0, 0, 11}

type option struct {
	code  byte
	value string
}

// replyOf makes a reply of a kind server: 203.0.113.77 from .1 with router .254 for an hour.
func replyOf(kind Kind, xid [4]byte, more ...option) []byte {
	b := make([]byte, 240)
	copy(b, []byte{2, 1, 6, 0})
	copy(b[4:], xid[:])
	copy(b[16:], []byte{203, 0, 113, 77})
	copy(b[28:], mac[:])
	copy(b[236:], []byte{99, 130, 83, 99})
	all := []option{{53, string(rune(kind))}, {54, "\xcb\x00\x71\x01"}, {3, "\xcb\x00\x71\xfe"}, {51, "\x00\x00\x0e\x10"}}
	for _, m := range more {
		if i := slices.IndexFunc(all, func(o option) bool { return o.code == m.code }); i >= 0 && m.code != 0 {
			all[i] = m
		} else {
			all = append(all, m)
		}
	}
	for _, o := range all {
		b = append(append(b, o.code, byte(len(o.value))), o.value...)
	}
	return append(b, 255)
}

func TestReply(t *testing.T) {
	r, err := ParseReply(replyOf(Offer, [4]byte{1, 2, 3, 4}), mac)
	want := Reply{Kind: Offer, XID: [4]byte{1, 2, 3, 4}, Address: netip.MustParseAddr("203.0.113.77"), Router: netip.MustParseAddr("203.0.113.254"),
		Server: netip.MustParseAddr("203.0.113.1"), Lease: time.Hour}
	if err != nil || r != want {
		t.Errorf("%+v, %v", r, err)
	}
	// What an attacker or an eager network adds changes nothing (TunnelVision is 121 and 249).
	for _, o := range []option{{121, "\x01\x80\xcb\x00\x71\x42\x01\x00\xcb\x00\x71\x42"}, {249, "\x00\xcb\x00\x71\x42"}, {33, "\xc6\x33\x64\x07\xcb\x00\x71\x42"},
		{6, "\x08\x08\x08\x08"}, {26, "\x00\x44"}, {114, "http://x/"}, {252, "http://x/wpad"}, {1, "\x80\x00\x00\x00"}, {12, "name"}, {15, "example"},
		{119, "\x07example\x00"}, {52, "\x03"}, {43, strings.Repeat("\xff", 255)}} {
		if got, err := ParseReply(replyOf(Offer, want.XID, o), mac); err != nil || got != want {
			t.Errorf("option %d: %+v, %v", o.code, got, err)
		}
	}
	// Of several routers the first counts.
	if got, err := ParseReply(replyOf(Offer, want.XID, option{3, "\xcb\x00\x71\xfe\xcb\x00\x71\x42"}), mac); err != nil || got != want {
		t.Errorf("two routers: %+v, %v", got, err)
	}
	for name, c := range map[string]struct {
		t1   string
		want time.Duration
	}{"sane": {"\x00\x00\x03\x84", 15 * time.Minute}, "after the end": {"\x00\x01\x00\x00", 0}, "at once": {"\x00\x00\x00\x00", 0}, "cut": {"\x00\x00", 0}} {
		if got, err := ParseReply(replyOf(ACK, want.XID, option{58, c.t1}), mac); err != nil || got.Renew != c.want {
			t.Errorf("T1 %s: %v, %v", name, got.Renew, err)
		}
	}
	if got, err := ParseReply(replyOf(ACK, want.XID, option{51, "\xff\xff\xff\xff"}), mac); err != nil || got.Lease != Longest {
		t.Errorf("for ever: %v, %v", got.Lease, err)
	}
	if got, err := ParseReply(replyOf(NAK, want.XID, option{3, ""}), mac); err != nil || got.Kind != NAK {
		t.Errorf("NAK: %+v, %v", got, err)
	}
}

func TestReplyRefuses(t *testing.T) {
	xid := [4]byte{1, 2, 3, 4}
	for name, b := range map[string][]byte{
		"nothing":            nil,
		"no options":         replyOf(Offer, xid)[:240],
		"options cut":        replyOf(Offer, xid)[:250],
		"no end":             replyOf(Offer, xid)[:len(replyOf(Offer, xid))-1],
		"too long":           append(replyOf(Offer, xid), make([]byte, maxReply)...),
		"a request":          append([]byte{1}, replyOf(Offer, xid)[1:]...),
		"no type":            replyOf(Offer, xid, option{53, ""}),
		"a discover":         replyOf(1, xid),
		"no router":          replyOf(Offer, xid, option{3, ""}),
		"half a router":      replyOf(Offer, xid, option{3, "\xcb\x00"}),
		"a router in a loop": replyOf(Offer, xid, option{3, "\x7f\x00\x00\x01"}),
		"a router of all":    replyOf(Offer, xid, option{3, "\xff\xff\xff\xff"}),
		"the router is us":   replyOf(Offer, xid, option{3, "\xcb\x00\x71\x4d"}),
		"no server":          replyOf(Offer, xid, option{54, ""}),
		"two servers":        replyOf(Offer, xid, option{54, "\xcb\x00\x71\x01\xcb\x00\x71\x02"}),
		"no time":            replyOf(Offer, xid, option{51, ""}),
		"a moment":           replyOf(Offer, xid, option{51, "\x00\x00\x00\x3b"}),
	} {
		if r, err := ParseReply(b, mac); err == nil || r != (Reply{}) {
			t.Errorf("%s: %+v", name, r)
		}
	}
	for name, address := range map[string][4]byte{"none": {}, "loopback": {127, 0, 0, 1}, "a group": {224, 0, 0, 1}, "link-local": {169, 254, 1, 1}, "reserved": {240, 0, 0, 1}} {
		b := replyOf(Offer, xid)
		copy(b[16:], address[:])
		if r, err := ParseReply(b, mac); err == nil {
			t.Errorf("address %s: %+v", name, r)
		}
	}
	other := replyOf(Offer, xid)
	other[28] = 4
	if _, err := ParseReply(other, mac); err == nil {
		t.Error("another device's reply was read")
	}
	twice := replyOf(Offer, xid)
	twice = append(twice[:len(twice)-1], 3, 4, 203, 0, 113, 66, 255)
	if _, err := ParseReply(twice, mac); err == nil {
		t.Error("two router options were read")
	}
}

func FuzzReply(f *testing.F) {
	f.Add(replyOf(Offer, [4]byte{1, 2, 3, 4}))
	f.Add(replyOf(NAK, [4]byte{}))
	f.Add(replyOf(ACK, [4]byte{}, option{121, "\x01\x80\xcb\x00\x71\x42"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseReply(b, mac)
		if err != nil {
			if r != (Reply{}) {
				t.Fatal("value and error together")
			}
			return
		}
		if r.Kind != NAK && (!unicast4(r.Address) || !unicast4(r.Router) || r.Address == r.Router || r.Lease < Shortest || r.Lease > Longest || r.Renew >= r.Lease) {
			t.Fatalf("%x became %+v", b, r)
		}
	})
}

// network is a DHCP server under the test's hand.
func hear(t *testing.T, c *Client, now time.Duration, kind Kind, message []byte, more ...option) {
	t.Helper()
	r, err := ParseReply(replyOf(kind, [4]byte(message[4:]), more...), mac)
	if err != nil {
		t.Fatal(err)
	}
	c.Heard(now, r)
}

func kindOf(b []byte) string {
	switch {
	case b == nil:
		return "nothing"
	case b[242] == 1:
		return "discover"
	case [4]byte(b[12:]) != [4]byte{}:
		return "renew"
	}
	return "select"
}

func TestClientLife(t *testing.T) {
	c := &Client{MAC: mac}
	step := func(now time.Duration, want string) []byte {
		t.Helper()
		b := c.Step(now, [4]byte{byte(now / time.Second), 7})
		if got := kindOf(b); got != want {
			t.Fatalf("at %v: %s, want %s", now, got, want)
		}
		return b
	}
	step(0, "discover")
	step(time.Second, "nothing")
	step(2*time.Second, "discover")
	discover := step(6*time.Second, "discover")
	hear(t, c, 6*time.Second, ACK, discover) // no offer
	hear(t, c, 6*time.Second, Offer, make([]byte, 8))
	step(6*time.Second, "nothing")
	hear(t, c, 6*time.Second, Offer, discover)
	request := step(6*time.Second, "select")
	if a, s := request[254:258], request[260:264]; string(a) != "\xcb\x00\x71\x4d" || string(s) != "\xcb\x00\x71\x01" {
		t.Errorf("asks for %x of %x", a, s)
	}
	hear(t, c, 6*time.Second, ACK, request, option{54, "\xcb\x00\x71\x42"}) // of another server
	if c.Held() != (Held{}) {
		t.Fatal("another server's word was taken")
	}
	hear(t, c, 6*time.Second, ACK, request)
	want := Held{netip.MustParseAddr("203.0.113.77"), netip.MustParseAddr("203.0.113.254"), 6*time.Second + time.Hour}
	if c.Held() != want || c.Next() != 6*time.Second+30*time.Minute {
		t.Fatalf("holds %+v, next %v", c.Held(), c.Next())
	}
	renew := step(c.Next(), "renew")
	hear(t, c, 31*time.Minute, ACK, renew)
	if c.Held().Until != 91*time.Minute {
		t.Errorf("renewed until %v", c.Held().Until)
	}
	// The server is gone: tries grow rarer towards nothing, then the address goes.
	tries := 0
	for now := c.Next(); c.Held() != (Held{}); now = c.Next() {
		if kindOf(c.Step(now, [4]byte{9})) == "renew" {
			tries++
		}
	}
	if tries < 4 || tries > 12 {
		t.Errorf("%d tries to renew", tries)
	}
}

// A NAK takes the address at once; who answers everything with NAK is asked ever more rarely.
func TestClientNAK(t *testing.T) {
	c := &Client{MAC: mac}
	now, asked := time.Duration(0), 0
	for now < time.Hour {
		b := c.Step(now, [4]byte{1})
		switch kindOf(b) {
		case "discover":
			asked++
			hear(t, c, now, Offer, b)
		case "select":
			hear(t, c, now, NAK, b)
		}
		now = max(c.Next(), now)
	}
	if asked < 30 || asked > 70 {
		t.Errorf("%d discoveries in an hour", asked)
	}
	b := c.Step(c.Next(), [4]byte{1})
	hear(t, c, now, Offer, b)
	hear(t, c, now, ACK, c.Step(now, [4]byte{1}))
	renew := c.Step(c.Next(), [4]byte{2})
	hear(t, c, c.Next(), NAK, renew)
	if c.Held() != (Held{}) {
		t.Error("a NAK left the address")
	}
}

// Three unanswered requests lead back to discovery; a refused lease too.
func TestClientStartsAnew(t *testing.T) {
	c := &Client{MAC: mac}
	hear(t, c, 0, Offer, c.Step(0, [4]byte{1}))
	var said []string
	for range 4 {
		said = append(said, kindOf(c.Step(max(c.Next(), 0), [4]byte{2})))
	}
	if got := strings.Join(said, " "); got != "select select select discover" {
		t.Error(got)
	}
	now := c.Next()
	b := c.Step(now, [4]byte{3})
	hear(t, c, now, Offer, b)
	hear(t, c, now, ACK, c.Step(now, [4]byte{3}))
	c.Refuse(now)
	if c.Held() != (Held{}) || c.Next() <= now {
		t.Errorf("holds %+v, next %v", c.Held(), c.Next())
	}
}

// advertisementOf makes one: router life in seconds, then options.
func advertisementOf(life uint16, options ...[]byte) []byte {
	b := []byte{134, 0, 0, 0, 64, 0, byte(life >> 8), byte(life), 0, 0, 0, 0, 0, 0, 0, 0}
	return append(b, slices.Concat(options...)...)
}

func prefixOption(flags byte, valid uint32, prefix string) []byte {
	p := netip.MustParsePrefix(prefix)
	b := []byte{3, 4, byte(p.Bits()), flags}
	b = binary.BigEndian.AppendUint32(b, valid)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	return append(b, p.Addr().AsSlice()...)
}

var (
	router   = netip.MustParseAddr("fe80::fe")
	routeAll = []byte{24, 1, 0, 8, 0, 0, 0x0e, 0x10}                                                       // RIO ::/0, high
	resolver = append([]byte{25, 3, 0, 0, 0, 0, 0x0e, 0x10}, netip.MustParseAddr("fe80::66").AsSlice()...) // RDNSS
	mtu      = []byte{5, 1, 0, 0, 0, 0, 0, 68}
)

func TestAdvertisement(t *testing.T) {
	b := advertisementOf(1800, routeAll, resolver, mtu, prefixOption(0x80, 3600, "2001:db8:66::/64"), prefixOption(0xc0, 3600, "2001:db8:113::/64"))
	a, err := ParseAdvertisement(b, router)
	want := Advertisement{router, 30 * time.Minute, netip.MustParsePrefix("2001:db8:113::/64"), time.Hour}
	if err != nil || a != want {
		t.Errorf("%+v, %v", a, err)
	}
	for name, p := range map[string][]byte{
		"link-local": prefixOption(0xc0, 3600, "fe80::/64"), "a group": prefixOption(0xc0, 3600, "ff02::/64"), "mapped": prefixOption(0xc0, 3600, "::ffff:0:0/64"),
		"loopback": prefixOption(0xc0, 3600, "::/64"), "wide": prefixOption(0xc0, 3600, "2001:db8::/48"), "narrow": prefixOption(0xc0, 3600, "2001:db8::/127"),
		"host bits": prefixOption(0xc0, 3600, "2001:db8::1/64"), "not for addresses": prefixOption(0x80, 3600, "2001:db8::/64"), "a moment": prefixOption(0xc0, 59, "2001:db8::/64"),
	} {
		if a, err := ParseAdvertisement(advertisementOf(1800, p), router); err != nil || a.Prefix.IsValid() {
			t.Errorf("prefix %s: %+v, %v", name, a, err)
		}
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "a redirect": append([]byte{137}, advertisementOf(1800)[1:]...), "a code": append([]byte{134, 1}, advertisementOf(1800)[2:]...),
		"half an option": advertisementOf(1800, []byte{3}), "an option of no length": advertisementOf(1800, make([]byte, 8)),
		"a cut option": advertisementOf(1800, []byte{3, 4, 64, 0xc0, 0, 0, 0, 0}), "a short prefix": advertisementOf(1800, []byte{3, 1, 64, 0xc0, 0, 0, 0, 0}),
	} {
		if a, err := ParseAdvertisement(b, router); err == nil {
			t.Errorf("%s: %+v", name, a)
		}
	}
	for _, from := range []string{"2001:db8::1", "203.0.113.1", "::1", "fe80::1%x"} {
		if _, err := ParseAdvertisement(b, netip.MustParseAddr(from)); err == nil {
			t.Errorf("an advertisement from %s was read", from)
		}
	}
}

func FuzzAdvertisement(f *testing.F) {
	f.Add(advertisementOf(1800, routeAll, prefixOption(0xc0, 3600, "2001:db8:113::/64")))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ParseAdvertisement(b, router)
		if err != nil {
			if a != (Advertisement{}) {
				t.Fatal("value and error together")
			}
			return
		}
		if a.Prefix.IsValid() && (a.Prefix.Bits() != 64 || !unicast6(a.Prefix.Addr()) || a.Valid < Shortest || a.Valid > Longest) {
			t.Fatalf("%x became %+v", b, a)
		}
	})
}

func TestHost(t *testing.T) {
	h := &Host{MAC: mac}
	for _, c := range []struct {
		at   time.Duration
		want bool
	}{{0, true}, {time.Second, false}, {4 * time.Second, true}, {8 * time.Second, true}, {12 * time.Second, false}, {68 * time.Second, true}} {
		if got := h.Step(c.at); (got != nil) != c.want || c.want && string(got) != "\x85\x00\x00\x00\x00\x00\x00\x00\x01\x01\x02\x00\x00\x00\x00\x0b" {
			t.Errorf("at %v: %x", c.at, got)
		}
	}
	good := Advertisement{router, 30 * time.Minute, netip.MustParsePrefix("2001:db8:113::/64"), time.Hour}
	random := [8]byte{0xff, 2, 3, 4, 5, 6, 7, 8}
	h.Heard(time.Minute, good, random)
	want := Held{netip.MustParseAddr("2001:db8:113:0:fc02:304:506:708"), router, 31 * time.Minute}
	if h.Held() != want {
		t.Fatalf("holds %+v", h.Held())
	}
	// Another router does not move it, and the identifier stays while the prefix does.
	other := good
	other.Router, other.Prefix = netip.MustParseAddr("fe80::66"), netip.MustParsePrefix("2001:db8:66::/64")
	h.Heard(2*time.Minute, other, [8]byte{1})
	h.Heard(2*time.Minute, good, [8]byte{1})
	if want.Until = 32 * time.Minute; h.Held() != want {
		t.Errorf("holds %+v", h.Held())
	}
	moved := good
	moved.Prefix = netip.MustParsePrefix("2001:db8:114::/64")
	h.Heard(3*time.Minute, moved, [8]byte{4, 1})
	if got := h.Held().Address.String(); got != "2001:db8:114:0:401::" {
		t.Errorf("in another prefix: %s", got)
	}
	// The router says goodbye, or is heard no more.
	h.Heard(4*time.Minute, Advertisement{Router: router}, random)
	if h.Held() != (Held{}) {
		t.Error("held after the router's goodbye")
	}
	h.Heard(5*time.Minute, good, random)
	if h.Step(h.Held().Until); h.Held() != (Held{}) {
		t.Error("held after its time")
	}
	h.Heard(time.Hour, Advertisement{Router: router, Lifetime: time.Hour}, random)
	if h.Held() != (Held{}) {
		t.Error("an address without a prefix")
	}
}
