package egress

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func sample() Policy {
	return Policy{Classes: []Class{
		{Gateway: "gateway", Addr: netip.MustParseAddr("203.0.113.1"), Proto: UDP, Port: 51820, Purpose: Tunnel, Cgroup: 77},
		{Gateway: "gateway", Addr: netip.MustParseAddr("2001:db8:113::1"), Proto: UDP, Port: 51820, Purpose: Tunnel, Cgroup: 77},
		{Gateway: "gateway", Addr: netip.MustParseAddr("203.0.113.1"), Proto: TCP, Port: 443, Purpose: Attestation, Cgroup: 77},
		{Gateway: "other", Addr: netip.MustParseAddr("203.0.113.2"), Proto: UDP, Port: 4500, Purpose: IKE, Cgroup: 78},
		{Gateway: "self", Proto: UDP, Port: 51821, Purpose: Tunnel, Cgroup: 77},
	}}
}

func TestCheckNamesWhatIsWrong(t *testing.T) {
	good := sample().Classes[0]
	for want, spoil := range map[string]func(*Class){
		"gateway name":           func(c *Class) { c.Gateway = "" },
		"gateway name \"A\"":     func(c *Class) { c.Gateway = "A" },
		"gateway name \"a b\"":   func(c *Class) { c.Gateway = "a b" },
		"gateway name \"aaaa":    func(c *Class) { c.Gateway = strings.Repeat("a", 64) },
		"neither tcp":            func(c *Class) { c.Proto = 1 },
		"port is 0":              func(c *Class) { c.Port = 0 },
		"unknown purpose 0":      func(c *Class) { c.Purpose = 0 },
		"unknown purpose 4":      func(c *Class) { c.Purpose = 4 },
		"cgroup id is 0":         func(c *Class) { c.Cgroup = 0 },
		"has a zone":             func(c *Class) { c.Addr = netip.MustParseAddr("fe80::1%eth0") },
		"IPv4 written as IPv6":   func(c *Class) { c.Addr = netip.MustParseAddr("::ffff:203.0.113.1") },
		"224.0.0.1 is not":       func(c *Class) { c.Addr = netip.MustParseAddr("224.0.0.1") },
		"255.255.255.255 is not": func(c *Class) { c.Addr = netip.MustParseAddr("255.255.255.255") },
		"127.0.0.1 is not":       func(c *Class) { c.Addr = netip.MustParseAddr("127.0.0.1") },
		"0.0.0.0 is not":         func(c *Class) { c.Addr = netip.MustParseAddr("0.0.0.0") },
		"address :: is not":      func(c *Class) { c.Addr = netip.MustParseAddr("::") },
		"ff02::1 is not":         func(c *Class) { c.Addr = netip.MustParseAddr("ff02::1") },
		"::1 is not":             func(c *Class) { c.Addr = netip.MustParseAddr("::1") },
	} {
		c := good
		spoil(&c)
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", c, err, want)
		}
		if _, err := (Policy{Classes: []Class{c}}).Marshal(); err == nil {
			t.Errorf("%v was marshalled", c)
		}
	}
	twice := sample()
	twice.Classes = append(twice.Classes, twice.Classes[0])
	twice.Classes[5].Gateway, twice.Classes[5].Cgroup = "x", 9
	if err := twice.Check(); err == nil || !strings.Contains(err.Error(), "the same to the gate") {
		t.Errorf("two classes with one key: %v", err)
	}
	var many Policy
	for i := range MaxClasses + 1 {
		c := good
		c.Port = uint16(i + 1)
		many.Classes = append(many.Classes, c)
	}
	if err := many.Check(); err == nil {
		t.Error("too many classes passed")
	}
	many.Classes = many.Classes[1:]
	b, err := many.Marshal()
	if err != nil || len(b) > MaxMarshal {
		t.Errorf("the largest policy: %d bytes, %v", len(b), err)
	}
	if err := sample().Check(); err != nil {
		t.Error(err)
	}
}

func TestByteFormIsOneAndKept(t *testing.T) {
	want := sample()
	b, err := want.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		mixed := Policy{Classes: slices.Clone(want.Classes)}
		r.Shuffle(len(mixed.Classes), func(i, j int) { mixed.Classes[i], mixed.Classes[j] = mixed.Classes[j], mixed.Classes[i] })
		if got, err := mixed.Marshal(); err != nil || !bytes.Equal(got, b) || mixed.Digest() != want.Digest() {
			t.Fatalf("another order gave another byte form: %v", err)
		}
	}
	got, err := Parse(b)
	if err != nil || !got.Equal(want) {
		t.Errorf("parsed %v, %v", got, err)
	}
	// The digest of deny-all is part of what other programs compare: it must not move.
	if d := fmt.Sprintf("%x", DenyAll().Digest()); d != denyAllDigest {
		t.Errorf("deny-all is now %s", d)
	}
	if DenyAll().Equal(want) || want.For("gateway").Equal(want) || len(want.For("gateway").Classes) != 3 || len(want.For("nobody").Classes) != 0 {
		t.Error("digest or For mixes policies up")
	}
	for n := range b {
		if _, err := Parse(b[:n]); err == nil {
			t.Errorf("the first %d bytes parse", n)
		}
	}
	for name, bad := range map[string][]byte{
		"trailing byte": append(slices.Clone(b), 0), "oversized": make([]byte, MaxMarshal+1), "empty": nil,
		"unsorted": append(append([]byte("RGP1\x00\x02"), appendClass(nil, want.Classes[0])...), appendClass(nil, want.Classes[3])...),
		"twice":    append(append([]byte("RGP1\x00\x02"), appendClass(nil, want.Classes[3])...), appendClass(nil, want.Classes[3])...),
	} {
		if p, err := Parse(bad); err == nil || len(p.Classes) != 0 {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
}

func TestWithinAndEntries(t *testing.T) {
	all := sample()
	part := Policy{Classes: all.Classes[1:3]}
	if !part.Within(all) || all.Within(part) || !DenyAll().Within(part) || !all.Within(all) {
		t.Error("Within is wrong")
	}
	other := Policy{Classes: slices.Clone(part.Classes)}
	other.Classes[0].Cgroup++
	if other.Within(all) {
		t.Error("another cgroup is within")
	}
	e := Policy{Classes: all.Classes[:1]}.Entries()[0]
	want := Key{203, 0, 113, 1, 16: 0xca, 17: 0x6c, 18: 17, 19: 4}
	if e.Key != want || e.Cgroup != 77 {
		t.Errorf("entry %v, want key %v", e, want)
	}
	if k := (Policy{Classes: all.Classes[4:]}).Entries()[0].Key; k != (Key{16: 0xca, 17: 0x6d, 18: 17, 19: 0}) {
		t.Errorf("responder's key %v", k)
	}
}

func TestNames(t *testing.T) {
	for _, name := range []string{"tunnel", "attestation", "ike"} {
		if p, err := ParsePurpose(name); err != nil || p.String() != name {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
	if _, err := ParsePurpose("voice"); err == nil {
		t.Error("an unknown purpose parsed")
	}
	seen := map[string]bool{}
	for r := Admitted; r <= Reasons; r++ {
		if r.String() == "" || seen[r.String()] {
			t.Errorf("reason %d has name %q", r, r)
		}
		seen[r.String()] = true
	}
	if Reasons > CounterSlots {
		t.Error("more reasons than counters")
	}
	if s := sample().Classes[4].String(); s != "self any udp/51821 tunnel from cgroup 77" {
		t.Errorf("class reads %q", s)
	}
	for _, s := range []string{Direction(9).String(), Hook(9).String(), Op(9).String(), Purpose(9).String()} {
		if !strings.Contains(s, "(9)") {
			t.Errorf("unknown value reads %q", s)
		}
	}
}

func FuzzParse(f *testing.F) {
	b, err := sample().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(DenyAll().encode())
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := Parse(in)
		if err != nil {
			if len(p.Classes) != 0 {
				t.Fatal("value and error together")
			}
			return
		}
		out, err := p.Marshal()
		if err != nil || !bytes.Equal(out, in) {
			t.Fatalf("marshal of the parsed policy differs: %x, %v", out, err)
		}
	})
}

func requests() []Request {
	return []Request{{Op: OpTable, Table: sample()}, {Op: OpTable}, {Op: OpAttach, Ifindex: 1<<31 - 1}, {Op: OpAdmit, Gateway: "gateway"}, {Op: OpClose}, {Op: OpStatus}, {Op: OpLevels, Levels: levelSample()}, {Op: OpLevels}, {Op: OpDrops, Since: 1<<63 + 5},
		{Op: OpLink, Ifindex: 3}, {Op: OpLink, Ifindex: 3, Link: fullFacts()}}
}

func TestRequests(t *testing.T) {
	for _, r := range requests() {
		b, err := MarshalRequest(r)
		if err != nil || len(b) > MaxRequest {
			t.Fatalf("%v: %d bytes, %v", r.Op, len(b), err)
		}
		got, err := ParseRequest(b)
		if err != nil || got.Op != r.Op || got.Ifindex != r.Ifindex || got.Gateway != r.Gateway || got.Link != r.Link || !got.Table.Equal(r.Table) || got.Levels.Digest() != r.Levels.Digest() || got.Since != r.Since {
			t.Errorf("%v: %+v, %v", r.Op, got, err)
		}
		if _, err := ParseRequest(append(b, 0)); err == nil {
			t.Errorf("%v with a trailing byte parses", r.Op)
		}
	}
	for _, r := range []Request{{}, {Op: 9}, {Op: OpAttach}, {Op: OpAttach, Ifindex: -1}, {Op: OpAttach, Ifindex: 1 << 31}, {Op: OpAdmit}, {Op: OpAdmit, Gateway: "A"},
		{Op: OpLink, Link: fullFacts()}, {Op: OpLink, Ifindex: 3, Link: LinkFacts{Linkd: 1}},
		{Op: OpTable, Table: Policy{Classes: []Class{{}}}}} {
		if b, err := MarshalRequest(r); err == nil {
			t.Errorf("%+v became %x", r, b)
		}
	}
	for _, b := range [][]byte{nil, {0}, {9}, {2, 0, 0, 0, 0}, {2, 0x80, 0, 0, 0}, {3, 0}, {3, 1, 'A'}, {3, 200}, make([]byte, MaxRequest+1)} {
		if r, err := ParseRequest(b); err == nil || r.Op != 0 {
			t.Errorf("%x became %+v, %v", b[:min(len(b), 8)], r, err)
		}
	}
}

func status() Status {
	s := Status{Admitted: "gateway", Digest: sample().Digest(), Changes: 1<<63 + 7, Levels: levelSample().Digest(), Rights: levelSample().Rights()}
	s.Decided[HookPacketIn][LevelLoopback] = 1 << 62
	for i := range MaxDevices {
		d := Device{Ifindex: i + 1, Hook: HookTCX}
		d.Counters[Ingress][Cgroup] = 1<<63 + uint64(i)
		s.Devices = append(s.Devices, d)
	}
	return s
}

func TestStatus(t *testing.T) {
	for _, s := range []Status{{}, status(), {Err: strings.Repeat("x", MaxText), Digest: DenyAll().Digest()}} {
		b, err := MarshalStatus(s)
		if err != nil || len(b) > MaxReply {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		got, err := ParseStatus(b)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(s) {
			t.Errorf("%+v became %+v, %v", s, got, err)
		}
	}
	// Long text is cut at a character.
	b, err := MarshalStatus(Status{Err: strings.Repeat("é", 200)})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := ParseStatus(b); err != nil || s.Err != strings.Repeat("é", 127) {
		t.Errorf("cut text %q, %v", s.Err, err)
	}
	if s, err := ParseStatus([]byte{0, 0}); err == nil {
		t.Errorf("failure with no text: %+v", s)
	}
	many := status()
	many.Devices = append(many.Devices, Device{})
	if _, err := MarshalStatus(many); err == nil {
		t.Error("too many devices passed")
	}
	var c Counters
	c[Egress][Admitted], c[Egress][Mark], c[Egress][Short], c[Ingress][ARP] = 5, 2, 3, 7
	if c.Dropped(Egress) != 5 || c.Dropped(Ingress) != 7 {
		t.Errorf("dropped %d, %d", c.Dropped(Egress), c.Dropped(Ingress))
	}
}

func FuzzWire(f *testing.F) {
	for _, r := range requests() {
		b, err := MarshalRequest(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	b, err := MarshalStatus(status())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		if r, err := ParseRequest(in); err == nil {
			if out, err := MarshalRequest(r); err != nil || !bytes.Equal(out, in) {
				t.Fatalf("request %x became %x, %v", in, out, err)
			}
		}
		if s, err := ParseStatus(in); err == nil {
			if out, err := MarshalStatus(s); err != nil || !bytes.Equal(out, in) {
				t.Fatalf("status %x became %x, %v", in, out, err)
			}
		}
	})
}
