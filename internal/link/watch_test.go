package link

import (
	"testing"
	"time"

	"rempart/internal/proof"
)

func TestWatchSeesADeviceAppearAndGo(t *testing.T) {
	proof.NeedRoot(t)
	ns, err := Create("")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	out := make(chan Change, 64)
	if err := Watch(t.Context(), "test", ns, out); err != nil {
		t.Fatal(err)
	}
	wait := func(what string, match func(Change) bool) {
		t.Helper()
		for limit := time.After(5 * time.Second); ; {
			select {
			case c := <-out:
				if match(c) {
					return
				}
			case <-limit:
				t.Fatalf("no change: %s", what)
			}
		}
	}
	wait("lo that was there", func(c Change) bool { return c.Name == "lo" && !c.Up && c.Place == "test" && c.NS == ns })
	do := func(fn func() error) {
		t.Helper()
		if err := ns.Do(fn); err != nil {
			t.Fatal(err)
		}
	}
	do(func() error { return AddVeth(Port{Name: "usb0"}, Port{Name: "peer"}) })
	wait("usb0 down", func(c Change) bool { return c.Name == "usb0" && !c.Up && !c.Gone && c.Index > 0 })
	do(func() error { return SetUp("usb0") })
	wait("usb0 up", func(c Change) bool { return c.Name == "usb0" && c.Up })
	do(func() error { return Remove("usb0") })
	wait("usb0 gone", func(c Change) bool { return c.Name == "usb0" && c.Gone })
}
