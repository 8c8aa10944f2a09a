package wish

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"
)

func leases() []Lease {
	return []Lease{
		{Device: "wwan0", Address: netip.MustParseAddr("203.0.113.77"), Router: netip.MustParseAddr("203.0.113.254"), For: time.Hour},
		{Device: "wwan0", Six: true, Address: netip.MustParseAddr("2001:db8:113::77"), Router: netip.MustParseAddr("fe80::fe"), For: MaxLease},
		{Device: "w"},
		{Device: "wwan0", Six: true},
	}
}

func TestLeaseGoesThrough(t *testing.T) {
	for _, want := range leases() {
		var got Lease
		path, done := serveLease(t, func(l Lease) error { got = l; return nil })
		if err := SendLease(t.Context(), path, want); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil || got != want {
			t.Errorf("init got %+v, %v, want %+v", got, err, want)
		}
	}
}

func serveLease(t *testing.T, set func(Lease) error) (string, <-chan error) {
	return serveAt(t, func(c net.Conn) error { return ServeLease(c, set) })
}

// A wish of one kind is none of the other: init reads from each daemon what it may ask.
func TestKindsAreApart(t *testing.T) {
	address, err := Marshal(prefixes("10.77.0.11/24"))
	if err != nil {
		t.Fatal(err)
	}
	if l, err := ParseLease(address); err == nil {
		t.Errorf("an address wish became %+v", l)
	}
	for _, l := range leases() {
		b, err := l.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if p, err := Parse(b); err == nil {
			t.Errorf("a lease became %v", p)
		}
	}
}

func TestLeaseRefuses(t *testing.T) {
	good := leases()[0]
	for name, change := range map[string]func(*Lease){
		"no device":        func(l *Lease) { l.Device = "" },
		"a path":           func(l *Lease) { l.Device = "../x" },
		"a long name":      func(l *Lease) { l.Device = "wwan0123456789ab" },
		"no router":        func(l *Lease) { l.Router = netip.Addr{} },
		"the wrong family": func(l *Lease) { l.Six = true },
		"families mixed":   func(l *Lease) { l.Router = netip.MustParseAddr("fe80::1") },
		"mapped": func(l *Lease) {
			l.Six, l.Address, l.Router = true, netip.MustParseAddr("::ffff:1.2.3.4"), netip.MustParseAddr("fe80::1")
		},
		"loopback":               func(l *Lease) { l.Address = netip.MustParseAddr("127.0.0.1") },
		"a group":                func(l *Lease) { l.Address = netip.MustParseAddr("224.0.0.1") },
		"nothing":                func(l *Lease) { l.Address = netip.IPv4Unspecified() },
		"a moment":               func(l *Lease) { l.For = time.Millisecond },
		"an address for no time": func(l *Lease) { l.For = 0 },
		"too long":               func(l *Lease) { l.For = MaxLease + time.Second },
	} {
		l := good
		change(&l)
		if b, err := l.Marshal(); err == nil {
			t.Errorf("%s: %+v became %x", name, l, b)
		}
	}
}

func FuzzLease(f *testing.F) {
	for _, l := range leases() {
		b, err := l.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		l, err := ParseLease(in)
		if err != nil {
			return
		}
		if out, err := l.Marshal(); err != nil || !bytes.Equal(in, out) {
			t.Fatalf("%x became %x, %v", in, out, err)
		}
	})
}
