package egress

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"rempart/internal/proof"
)

// levelSample is a table with two networks of red that overlap, black, and three rows.
func levelSample() LevelTable {
	prefix := netip.MustParsePrefix
	return LevelTable{
		Networks: []LevelNetwork{
			{Name: "wg0", Netns: 1, Ifindex: 2, Prefixes: []netip.Prefix{prefix("10.77.0.0/16"), prefix("fd77::/64")}},
			{Name: "wg1", Netns: 1, Ifindex: 3, Prefixes: []netip.Prefix{prefix("10.77.5.0/24")}},
			{Name: "black", Netns: 2, Prefixes: []netip.Prefix{prefix("203.0.113.1/32"), prefix("0.0.0.0/0")}},
		},
		Rows: []LevelRow{
			{Name: "mail", Cgroup: 11, Netns: 1, Send: 0b001, Receive: 0b011},
			{Name: "games", Cgroup: 12, Netns: 1, Send: 0b011, Receive: 0b001},
			{Name: "tunneld", Cgroup: 13, Netns: 2, Raw: true, Send: 0b100, Receive: 0b100},
		},
	}
}

func TestLevelTableIsItsBytes(t *testing.T) {
	for _, table := range []LevelTable{{}, levelSample(), levelSample().Closed()} {
		b, err := table.Marshal()
		if err != nil || len(b) > MaxLevelMarshal {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		got, err := ParseLevelTable(b)
		if err != nil || got.Digest() != table.Digest() || len(got.Rows) != len(table.Rows) {
			t.Errorf("%+v became %+v, %v", table, got, err)
		}
		for i := range b {
			if got, err := ParseLevelTable(b[:i]); err == nil {
				t.Fatalf("%d of %d bytes became %+v", i, len(b), got)
			}
		}
		if _, err := ParseLevelTable(append(b, 0)); err == nil {
			t.Error("a byte too much was taken")
		}
	}
}

// Behind all of IPv4 in the same namespace, all of IPv6 takes nothing from it.
func TestLevelTableTakesBothWholes(t *testing.T) {
	table := levelSample()
	table.Networks[2].Prefixes = append(table.Networks[2].Prefixes, netip.MustParsePrefix("::/0"))
	if _, err := table.Marshal(); err != nil {
		t.Error(err)
	}
}

// TestLevelTableRefuses: one fault each.
func TestLevelTableRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*LevelTable){
		"a network without a name":      func(t *LevelTable) { t.Networks[0].Name = "" },
		"a network twice":               func(t *LevelTable) { t.Networks[1].Name = "wg0" },
		"a network nowhere":             func(t *LevelTable) { t.Networks[0].Netns = 0 },
		"a network behind device -1":    func(t *LevelTable) { t.Networks[0].Ifindex = -1 },
		"a network without addresses":   func(t *LevelTable) { t.Networks[0].Prefixes = nil },
		"an unmasked prefix":            func(t *LevelTable) { t.Networks[0].Prefixes[0] = netip.MustParsePrefix("10.77.0.1/16") },
		"IPv4 as IPv6":                  func(t *LevelTable) { t.Networks[0].Prefixes[0] = netip.MustParsePrefix("::ffff:10.77.0.0/112") },
		"IPv6 that holds all of IPv4":   func(t *LevelTable) { t.Networks[0].Prefixes[1] = netip.MustParsePrefix("::/0") },
		"no prefix":                     func(t *LevelTable) { t.Networks[0].Prefixes[0] = netip.Prefix{} },
		"a prefix in two networks":      func(t *LevelTable) { t.Networks[1].Prefixes[0] = netip.MustParsePrefix("10.77.0.0/16") },
		"a row without a name":          func(t *LevelTable) { t.Rows[0].Name = "" },
		"a row without a cgroup":        func(t *LevelTable) { t.Rows[0].Cgroup = 0 },
		"a row without a namespace":     func(t *LevelTable) { t.Rows[0].Netns = 0 },
		"two rows of a cgroup":          func(t *LevelTable) { t.Rows[1].Cgroup = 11 },
		"two rows of a name":            func(t *LevelTable) { t.Rows[1].Name = "mail" },
		"rights to no network":          func(t *LevelTable) { t.Rows[0].Send = 0b1000 },
		"rights to no network, receive": func(t *LevelTable) { t.Rows[0].Receive = 1 << 31 },
		"too many rows": func(t *LevelTable) {
			for i := range MaxLevelRows {
				t.Rows = append(t.Rows, LevelRow{Name: "x" + strings.Repeat("x", i%60), Cgroup: uint64(100 + i), Netns: 1})
			}
		},
	} {
		table := levelSample()
		spoil(&table)
		if b, err := table.Marshal(); err == nil {
			t.Errorf("%s: became %d bytes", name, len(b))
		}
		if got, err := ParseLevelTable(table.encode()); err == nil || got.Rows != nil {
			t.Errorf("%s: was read as %+v, %v", name, got, err)
		}
	}
}

// TestLevelRightsForgetTheNumbers: they name what a policy says and not where it runs.
func TestLevelRightsForgetTheNumbers(t *testing.T) {
	a, b := levelSample(), levelSample()
	for i := range b.Networks {
		b.Networks[i].Netns, b.Networks[i].Ifindex = 100+b.Networks[i].Netns, 40+i
	}
	for i := range b.Rows {
		b.Rows[i].Cgroup, b.Rows[i].Netns = 1000+b.Rows[i].Cgroup, 100+b.Rows[i].Netns
	}
	if a.Rights() != b.Rights() || a.Digest() == b.Digest() {
		t.Error("the rights of the same policy differ, or the digests of different tables do not")
	}
	seen := map[[32]byte]bool{a.Rights(): true}
	for _, change := range []func(*LevelTable){
		func(t *LevelTable) { *t = t.Closed() }, func(t *LevelTable) { *t = LevelTable{} }, func(t *LevelTable) { t.Rows[0].Send = 0b010 },
		func(t *LevelTable) { t.Rows[0].Raw = true }, func(t *LevelTable) { t.Rows[0].Name = "other" }, func(t *LevelTable) { t.Rows = t.Rows[:2] },
		func(t *LevelTable) { t.Networks[0].Prefixes = t.Networks[0].Prefixes[:1] },
	} {
		c := levelSample()
		change(&c)
		if seen[c.Rights()] {
			t.Errorf("%+v has the rights of another table", c)
		}
		seen[c.Rights()] = true
	}
}

func TestLevelModel(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the rows that are allowed")
	table, addr := levelSample(), netip.MustParseAddr
	for _, c := range []struct {
		name string
		got  LevelReason
		want LevelReason
	}{
		{"mail to wg0", table.DecideCall(11, 1, addr("10.77.0.1")), LevelAllowed},
		{"mail to wg0, IPv4 as IPv6", table.DecideCall(11, 1, addr("::ffff:10.77.0.1")), LevelAllowed},
		{"mail to wg1 inside wg0's prefix", table.DecideCall(11, 1, addr("10.77.5.1")), LevelSend},
		{"games to wg1", table.DecideCall(12, 1, addr("10.77.5.1")), LevelAllowed},
		{"mail in black", table.DecideCall(11, 2, addr("10.77.0.1")), LevelNamespace},
		{"mail to a stranger", table.DecideCall(11, 1, addr("198.51.100.7")), LevelNetworkNo},
		{"mail to IPv6", table.DecideCall(11, 1, addr("fd77::1")), LevelAllowed},
		{"mail to itself", table.DecideCall(11, 1, addr("::1")), LevelAllowed},
		{"mail to itself, IPv4 as IPv6", table.DecideCall(11, 1, addr("::ffff:127.0.0.1")), LevelAllowed},
		{"nobody to itself", table.DecideCall(99, 1, addr("127.0.0.1")), LevelProcess},
		{"tunneld to its gateway", table.DecideCall(13, 2, addr("203.0.113.1")), LevelAllowed},
		{"tunneld to red", table.DecideCall(13, 2, addr("fd77::1")), LevelNetworkNo},
		{"a socket of mail", table.DecideSocket(11, 1, 1, 6), LevelAllowed},
		{"a raw socket of mail", table.DecideSocket(11, 1, 3, 255), LevelSocket},
		{"a raw socket of tunneld", table.DecideSocket(13, 2, 3, 255), LevelAllowed},
		{"a datagram socket for ICMP", table.DecideSocket(11, 1, 2, 1), LevelSocket},
		{"a socket of mail in black", table.DecideSocket(11, 2, 1, 6), LevelNamespace},
		{"mail out", table.DecidePacket(Egress, 11, 2, addr("10.77.0.1"), 0), LevelAllowed},
		{"mail out by wg1", table.DecidePacket(Egress, 11, 3, addr("10.77.0.1"), 0), LevelDevice},
		{"mail in from wg1", table.DecidePacket(Ingress, 11, 3, addr("10.77.5.1"), 0), LevelAllowed},
		{"games in from wg1", table.DecidePacket(Ingress, 12, 3, addr("10.77.5.1"), 0), LevelReceive},
		{"tunneld out by any device", table.DecidePacket(Egress, 13, 77, addr("203.0.113.1"), 0), LevelAllowed},
		{"on lo from mail to mail", table.DecidePacket(Ingress, 11, Loopback, addr("127.0.0.1"), LoopbackMark|1), LevelAllowed},
		{"on lo from games to mail", table.DecidePacket(Ingress, 11, Loopback, addr("127.0.0.1"), LoopbackMark|2), LevelLoopback},
		{"on lo from nobody", table.DecidePacket(Ingress, 11, Loopback, addr("127.0.0.1"), 0), LevelLoopback},
		{"closed", table.Closed().DecideCall(11, 1, addr("10.77.0.1")), LevelSend},
		{"a socket when closed", table.Closed().DecideSocket(11, 1, 1, 6), LevelAllowed},
		{"a socket without a table", LevelTable{}.DecideSocket(11, 1, 1, 6), LevelProcess},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", c.name, c.got, c.want)
		}
	}
}

func TestLevelWithin(t *testing.T) {
	wide := levelSample()
	narrow := levelSample()
	narrow.Rows[0].Send = 0
	other := levelSample()
	other.Networks[0].Ifindex = 9
	for _, c := range []struct {
		a, b LevelTable
		want bool
	}{{LevelTable{}, wide, true}, {wide, wide, true}, {narrow, wide, true}, {wide, narrow, false}, {wide.Closed(), narrow, true}, {wide, LevelTable{}, false}, {narrow, other, false}} {
		if got := c.a.Within(c.b); got != c.want {
			t.Errorf("%v within %v: %v", c.a.Rows, c.b.Rows, got)
		}
	}
}

func TestEveryReasonHasWords(t *testing.T) {
	seen := map[string]bool{}
	for r := LevelAllowed; r < LevelReasons; r++ {
		if r.String() == "" || r.Words() == "" || seen[r.String()] || seen[r.Words()] && r != LevelAllowed {
			t.Errorf("reason %d reads %q, %q", r, r, r.Words())
		}
		seen[r.String()], seen[r.Words()] = true, true
	}
	for r := Admitted; r < Reasons; r++ {
		if reasonWords[r] == "" {
			t.Errorf("the gate's reason %v has no words", r)
		}
	}
	if LevelReasons > RecordReasons || Reasons > RecordReasons {
		t.Error("more reasons than the record takes")
	}
	for h := HookConnect; h <= LevelHooks; h++ {
		if h.String() == "" {
			t.Errorf("hook %d has no name", h)
		}
	}
	if n := 1 + 1 + MaxText + 3*8 + 1 + MaxSamples*SampleSize; n > MaxReply {
		t.Errorf("an answer to drops has up to %d bytes, %d are read", n, MaxReply)
	}
	if s := (Sample{Program: ProgramFloor}); s.Why() == "" || s.Words() == "" {
		t.Error("the floor's sample says nothing")
	}
}

func TestDropsAreTheirBytes(t *testing.T) {
	full := Drops{Next: 99, Missed: 1, LeftOut: 1 << 63, Samples: []Sample{samples()[0], samples()[2]}}
	full.Samples[1].Seq = 98
	for _, c := range []struct {
		drops Drops
		text  string
	}{{Drops{}, ""}, {full, ""}, {Drops{}, "no"}} {
		b, err := MarshalDrops(c.drops, c.text)
		if err != nil {
			t.Fatal(err)
		}
		got, text, err := ParseDrops(b)
		if err != nil || text != c.text || got.Next != c.drops.Next || got.Missed != c.drops.Missed || got.LeftOut != c.drops.LeftOut || !slices.Equal(got.Samples, c.drops.Samples) {
			t.Errorf("%+v %q became %+v %q, %v", c.drops, c.text, got, text, err)
		}
		for i := range b {
			if _, _, err := ParseDrops(b[:i]); err == nil {
				t.Errorf("%d of %d bytes were taken", i, len(b))
			}
		}
	}
	for name, d := range map[string]Drops{
		"out of order": {Next: 99, Samples: []Sample{samples()[2], samples()[0]}}, "twice": {Next: 9, Samples: []Sample{samples()[0], samples()[0]}},
		"behind the next": {Next: 1, Samples: []Sample{samples()[2]}}, "too many": {Next: 99, Samples: make([]Sample, MaxSamples+1)},
	} {
		b, err := MarshalDrops(d, "")
		if err == nil {
			_, _, err = ParseDrops(b)
		}
		if err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzParseLevelTable(f *testing.F) {
	for _, table := range []LevelTable{{}, levelSample()} {
		f.Add(table.encode())
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		table, err := ParseLevelTable(in)
		if err != nil {
			return
		}
		if out, err := table.Marshal(); err != nil || !bytes.Equal(out, in) {
			t.Fatalf("%x became %x, %v", in, out, err)
		}
	})
}

func FuzzParseDrops(f *testing.F) {
	b, err := MarshalDrops(Drops{Next: 9, Samples: samples()[:1]}, "")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		d, text, err := ParseDrops(in)
		if err != nil {
			return
		}
		if out, err := MarshalDrops(d, text); err != nil || !bytes.Equal(out, in) {
			t.Fatalf("%x became %x, %v", in, out, err)
		}
	})
}
