package registrar

import (
	"errors"
	"testing"
	"time"

	"rempart/voice/sip"
)

const (
	a = sip.AOR("sip:a@handsets.example")
	b = sip.AOR("sip:b@handsets.example")
	c = sip.AOR("sip:c@handsets.example")
)

func TestTable(t *testing.T) {
	var now int64 = 1000
	tab := New(2, func() int64 { return now })
	if err := tab.Register(a, "10.77.0.11:1", time.Second); err != nil {
		t.Fatal(err)
	}
	now += 10
	if err := tab.Register(b, "10.77.0.12:1", time.Second); err != nil {
		t.Fatal(err)
	}
	if err := tab.Register(c, "10.77.0.13:1", time.Second); !errors.Is(err, ErrFull) {
		t.Fatalf("a third name: %v", err)
	}
	// A refresh moves the expiry, keeps since, and needs no room.
	now += 10
	if err := tab.Register(a, "10.77.0.11:1", time.Second); err != nil {
		t.Fatal(err)
	}
	got, ok := tab.Lookup(a)
	if !ok || got.Since != 1000 || got.Expires != 1020+time.Second.Nanoseconds() {
		t.Errorf("after a refresh: %+v %v", got, ok)
	}
	// A newer connection takes over; the older one's end does not matter then.
	if err := tab.Register(a, "10.77.0.11:2", time.Second); err != nil {
		t.Fatal(err)
	}
	tab.Drop("10.77.0.11:1")
	tab.Unregister(a, "10.77.0.11:1")
	if got, ok := tab.Lookup(a); !ok || got.Source != "10.77.0.11:2" || got.Since != 1020 {
		t.Errorf("after a second connection: %+v %v", got, ok)
	}
	tab.Drop("10.77.0.11:2")
	if _, ok := tab.Lookup(a); ok {
		t.Error("a binding outlived its connection")
	}
	if l := tab.List(); len(l) != 1 || l[0].AOR != b {
		t.Errorf("list: %+v", l)
	}
	now += time.Second.Nanoseconds()
	if l := tab.List(); len(l) != 0 {
		t.Errorf("an expired binding is listed: %+v", l)
	}
	if err := tab.Register(c, "10.77.0.13:1", time.Second); err != nil {
		t.Errorf("expired names still take room: %v", err)
	}
	tab.Keep(func(x sip.AOR) bool { return x != c })
	if _, ok := tab.Lookup(c); ok {
		t.Error("an unknown name was kept")
	}
	tab.Register(b, "x", time.Second)
	tab.Unregister(b, "x")
	if _, ok := tab.Lookup(b); ok {
		t.Error("an unregistered name is found")
	}
}
