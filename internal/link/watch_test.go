package link

import (
	"fmt"
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

// More changes than the kernel keeps for a reader that waits: afterwards it is told what is there, and what went.
func TestWatchOutlivesAnOverflow(t *testing.T) {
	proof.NeedRoot(t)
	ns, err := Create("")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	do := func(fn func() error) {
		t.Helper()
		if err := ns.Do(fn); err != nil {
			t.Fatal(err)
		}
	}
	do(func() error { return AddVeth(Port{Name: "early"}, Port{Name: "early-peer"}) })
	out := make(chan Change)
	if err := watch(t.Context(), "test", ns, out, 4<<10); err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	note := func(c Change) { there[c.Name] = !c.Gone }
	for !there["early"] {
		note(<-out)
	}
	do(func() error {
		for i := range 100 { // nobody reads
			name := fmt.Sprintf("x%d", i)
			if err := AddVeth(Port{Name: name}, Port{Name: name + "-peer"}); err != nil {
				return err
			}
			if err := Remove(name); err != nil {
				return err
			}
		}
		if err := Remove("early"); err != nil {
			return err
		}
		return AddVeth(Port{Name: "late"}, Port{Name: "late-peer"})
	})
	for limit := time.After(10 * time.Second); there["early"] || !there["late"]; {
		select {
		case c := <-out:
			note(c)
		case <-limit:
			t.Fatalf("told of %v", there)
		}
	}
	// And it goes on.
	do(func() error { return AddVeth(Port{Name: "last"}, Port{Name: "last-peer"}) })
	for limit := time.After(10 * time.Second); !there["last"]; {
		select {
		case c := <-out:
			note(c)
		case <-limit:
			t.Fatal("not told of the last device")
		}
	}
}
