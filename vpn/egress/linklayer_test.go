package egress

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"rempart/internal/proof"
)

func fullFacts() LinkFacts {
	return LinkFacts{
		Linkd: 7, MAC: [6]byte{2, 0, 0, 0, 0, 11},
		Addr4: netip.MustParseAddr("203.0.113.11"), Router4: netip.MustParseAddr("203.0.113.254"),
		Local6: netip.MustParseAddr("fe80::b"), Addr6: netip.MustParseAddr("2001:db8:113::11"), Router6: netip.MustParseAddr("fe80::fe"),
	}
}

func TestLinkFactsCheck(t *testing.T) {
	if err := (LinkFacts{}).Check(); err != nil {
		t.Errorf("no facts: %v", err)
	}
	if err := fullFacts().Check(); err != nil {
		t.Errorf("all facts: %v", err)
	}
	for name, change := range map[string]func(*LinkFacts){
		"no MAC":                    func(f *LinkFacts) { f.MAC = [6]byte{} },
		"group MAC":                 func(f *LinkFacts) { f.MAC[0] = 3 },
		"no router":                 func(f *LinkFacts) { f.Router4 = netip.Addr{} },
		"no address":                func(f *LinkFacts) { f.Addr4 = netip.Addr{} },
		"the router is the device":  func(f *LinkFacts) { f.Router4 = f.Addr4 },
		"multicast address":         func(f *LinkFacts) { f.Addr4 = netip.MustParseAddr("224.0.0.1") },
		"loopback router":           func(f *LinkFacts) { f.Router4 = netip.MustParseAddr("127.0.0.1") },
		"IPv6 as IPv4":              func(f *LinkFacts) { f.Addr4 = f.Addr6 },
		"mapped IPv6":               func(f *LinkFacts) { f.Addr6 = netip.MustParseAddr("::ffff:203.0.113.11") },
		"global link-local":         func(f *LinkFacts) { f.Local6 = f.Addr6 },
		"link-local global":         func(f *LinkFacts) { f.Addr6 = netip.MustParseAddr("fe80::c") },
		"a router without address":  func(f *LinkFacts) { f.Addr6 = netip.Addr{} },
		"a global router":           func(f *LinkFacts) { f.Router6 = netip.MustParseAddr("2001:db8:113::fe") },
		"a zone":                    func(f *LinkFacts) { f.Router6 = netip.MustParseAddr("fe80::fe%wwan0") },
		"the router's local is own": func(f *LinkFacts) { f.Router6 = f.Local6 },
		"no link-local address":     func(f *LinkFacts) { f.Local6 = netip.Addr{} },
	} {
		f := fullFacts()
		change(&f)
		if f.Check() == nil {
			t.Errorf("%s: accepted %+v", name, f)
		}
	}
}

func FuzzLinkFacts(f *testing.F) {
	full, none := fullFacts().Bytes(), LinkFacts{}.Bytes()
	f.Add(full[:])
	f.Add(none[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != LinkFactsLen {
			return
		}
		facts, err := ParseLinkFacts([LinkFactsLen]byte(b))
		if err != nil {
			return
		}
		if got := facts.Bytes(); string(got[:]) != string(b) {
			t.Fatalf("%x became %x", b, got)
		}
		if err := facts.Check(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestDHCPMessages reads the three messages field by field (RFC 2131, RFC 7844).
func TestDHCPMessages(t *testing.T) {
	f := fullFacts()
	xid := [4]byte{1, 2, 3, 4}
	offer, server := netip.MustParseAddr("203.0.113.77"), netip.MustParseAddr("203.0.113.1")
	for m, options := range map[DHCPMessage]string{
		DHCPDiscover: "\x35\x01\x01" + "\x3d\x07\x01\x02\x00\x00\x00\x00\x0b" + "\x37\x06\x01\x03\x33\x36\x3a\x3b" + "\xff",
		DHCPSelect: "\x35\x01\x03" + "\x3d\x07\x01\x02\x00\x00\x00\x00\x0b" + "\x32\x04\xcb\x00\x71\x4d" + "\x36\x04\xcb\x00\x71\x01" +
			"\x37\x06\x01\x03\x33\x36\x3a\x3b" + "\xff",
		DHCPRenew: "\x35\x01\x03" + "\x3d\x07\x01\x02\x00\x00\x00\x00\x0b" + "\x37\x06\x01\x03\x33\x36\x3a\x3b" + "\xff",
	} {
		b := f.DHCP(m, xid, offer, server)
		ciaddr := "\x00\x00\x00\x00"
		if m == DHCPRenew {
			ciaddr = "\xcb\x00\x71\x0b"
		}
		want := "\x01\x01\x06\x00" + "\x01\x02\x03\x04" + "\x00\x00\x80\x00" + ciaddr + strings.Repeat("\x00", 12) +
			"\x02\x00\x00\x00\x00\x0b" + strings.Repeat("\x00", 10+64+128) + "\x63\x82\x53\x63" + options
		want += strings.Repeat("\x00", DHCPLen-len(want))
		if string(b) != want {
			t.Errorf("message %d:\n%x\nwant\n%x", m, b, want)
		}
	}
}

// TestTemplateAdmitsItsMessage: what linkd sends passes, and any change of any compared bit does not.
func TestTemplateAdmitsItsMessage(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "each frame without the change")
	for m := range DHCPMessages {
		f := fullFacts()
		frame := dhcpFrameOf(f, m)
		free := 0
		try := func() Reason {
			_, r := Decide(Policy{}, Egress, frame, Meta{Cgroup: f.Linkd, Link: &Link{Facts: f}})
			return r
		}
		if r := try(); r != Admitted {
			t.Fatalf("message %d: %v", m, r)
		}
		for i := range len(frame) * 8 {
			frame[i/8] ^= 1 << (i % 8)
			if try() == Admitted {
				free++
			}
			frame[i/8] ^= 1 << (i % 8)
		}
		// xid and the two checksums; in a selection the offer's address and server.
		want := 32 + 16 + 16
		if m == DHCPSelect {
			want += 64
		}
		if free != want {
			t.Errorf("message %d: %d bits may be chosen, want %d", m, free, want)
		}
	}
	f := fullFacts()
	f.Addr4, f.Router4 = netip.Addr{}, netip.Addr{}
	if (f.Template(DHCPRenew) != DHCPTemplate{}) {
		t.Error("a renewal without an address has a template")
	}
}

// dhcpFrameOf is the frame that the kernel makes of a message.
func dhcpFrameOf(f LinkFacts, m DHCPMessage) []byte {
	frame := f.Template(m).Value
	copy(frame[dhcpAt:], f.DHCP(m, [4]byte{9, 8, 7, 6}, netip.MustParseAddr("203.0.113.77"), netip.MustParseAddr("203.0.113.1")))
	frame[24], frame[25], frame[40], frame[41] = 0xab, 0xcd, 0xef, 0x01
	return frame[:]
}

func reply(f LinkFacts, xid [4]byte) []byte {
	frame := make([]byte, dhcpFrame)
	copy(frame, broadcastMAC[:])
	copy(frame[6:], []byte{2, 0, 0, 0, 0, 0xfe, 8, 0, 0x45, 0, 1, 0x48, 0, 0, 0x40, 0, 64, UDP, 0, 0, 203, 0, 113, 254, 255, 255, 255, 255, 0, 67, 0, 68, 1, 0x34})
	copy(frame[dhcpAt:], []byte{2, 1, 6, 0})
	copy(frame[dhcpAt+4:], xid[:])
	copy(frame[dhcpAt+28:], f.MAC[:])
	copy(frame[dhcpAt+236:], []byte{99, 130, 83, 99, optionEnd})
	return frame
}

// TestDHCPRepliesAreExpected: a reply is taken for ten seconds after a request, with its number, and else never.
func TestDHCPRepliesAreExpected(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the reply in time")
	f := fullFacts()
	l := &Link{Facts: f, Now: uint64(time.Hour)}
	xid := [4]byte{9, 8, 7, 6}
	try := func(want Reason, what string, frame []byte) {
		t.Helper()
		if _, r := Decide(Policy{}, Ingress, frame, Meta{Link: l}); r != want {
			t.Errorf("%s: %v, want %v", what, r, want)
		}
	}
	try(DHCP, "before any request", reply(f, xid))
	if _, r := Decide(Policy{}, Egress, dhcpFrameOf(f, DHCPDiscover), Meta{Cgroup: f.Linkd, Link: l}); r != Admitted {
		t.Fatal(r)
	}
	try(Admitted, "the reply", reply(f, xid))
	try(DHCP, "another number", reply(f, [4]byte{9, 8, 7, 5}))
	for name, change := range map[string]func([]byte){
		"a request":         func(b []byte) { b[dhcpAt] = 1 },
		"for another phone": func(b []byte) { b[dhcpAt+28] ^= 4 },
		"no DHCP":           func(b []byte) { b[dhcpAt+236] = 0 },
		"to a group":        func(b []byte) { b[30], b[31] = 224, 0 },
		"to another MAC":    func(b []byte) { b[5] = 0 },
		"from a group":      func(b []byte) { b[6] |= 1 },
		"from this device":  func(b []byte) { copy(b[6:], f.MAC[:]) },
		"from nowhere":      func(b []byte) { b[26] = 0 },
		"UDP ends early":    func(b []byte) { b[39]-- },
	} {
		b := reply(f, xid)
		change(b)
		try(DHCP, name, b)
	}
	l.Now += uint64(DHCPExpected) - 1
	try(Admitted, "the last moment", reply(f, xid))
	l.Now++
	try(DHCP, "too late", reply(f, xid))
}

// TestLinkRate drives each bucket with a clock: the burst, then the rate, for ever, and each bucket for itself.
func TestLinkRate(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the frames within the rate")
	f := fullFacts()
	f.Linkd = 7
	question := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 11, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 11, 203, 0, 113, 11, 0, 0, 0, 0, 0, 0, 203, 0, 113, 254}
	for _, c := range []struct {
		name     string
		frame    []byte
		interval time.Duration
		burst    int
	}{
		{"ARP", question, LinkInterval, LinkBurst},
		{"DHCP", dhcpFrameOf(f, DHCPDiscover), DHCPInterval, DHCPBurst},
	} {
		l := &Link{Facts: f, Now: uint64(time.Hour)}
		admitted := func(n int) (passed int) {
			for range n {
				switch _, r := Decide(Policy{}, Egress, c.frame, Meta{Cgroup: 7, Link: l}); r {
				case Admitted:
					passed++
				case LinkRate:
				default:
					t.Fatalf("%s: %v", c.name, r)
				}
			}
			return passed
		}
		if n := admitted(100); n != c.burst {
			t.Errorf("%s: %d at once, want %d", c.name, n, c.burst)
		}
		for range 10 {
			l.Now += uint64(c.interval)
			if n := admitted(100); n != 1 {
				t.Errorf("%s: %d after one interval", c.name, n)
			}
		}
		l.Now += uint64(time.Hour)
		if n := admitted(100); n != c.burst {
			t.Errorf("%s: %d after a rest, want %d", c.name, n, c.burst)
		}
	}
}

// TestNoFactsNothing: without facts nothing of the minimum is admitted, as before there was one.
func TestNoFactsNothing(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "TestTemplateAdmitsItsMessage")
	f := fullFacts()
	open := Policy{Classes: []Class{{Gateway: "g", Addr: netip.MustParseAddr("203.0.113.1"), Proto: UDP, Port: 51820, Purpose: Tunnel, Cgroup: f.Linkd}}}
	for _, l := range []*Link{nil, {}} {
		for want, frame := range map[Reason][]byte{ARP: {12: 8, 13: 6, 41: 0}, DHCP: dhcpFrameOf(f, DHCPDiscover)} {
			if _, r := Decide(open, Egress, frame, Meta{Cgroup: f.Linkd, Link: l}); r != want {
				t.Errorf("%v, want %v", r, want)
			}
			if _, r := Decide(DenyAll(), Egress, frame, Meta{Cgroup: f.Linkd, Link: l}); r != Closed {
				t.Errorf("closed: %v", r)
			}
		}
	}
	for _, other := range []uint64{0, 8} {
		if _, r := Decide(Policy{}, Egress, dhcpFrameOf(f, DHCPDiscover), Meta{Cgroup: other, Link: &Link{Facts: f}}); r != Cgroup {
			t.Errorf("DHCP of cgroup %d: %v", other, r)
		}
	}
}
