package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"rempart/internal/journal"
	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/vpn/enforce/backstop"
	"rempart/vpn/watch"
)

// place is another namespace of a scene.
func (s *scene) place(name string) *link.NS {
	s.t.Helper()
	for _, other := range s.spaces {
		if other.name == name {
			return other.ns
		}
	}
	s.t.Fatalf("no namespace %s", name)
	return nil
}

// Who moves a device into red, or makes one there, loses the radio; the tunnel's device is red's, and so are, while they are down,
// those that the kernel makes by itself.
func TestAStrangerInRedIsADifference(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the same namespace with the tunnel's device alone, first")
	for name, c := range map[string]struct {
		as       string // its name in red
		instead  bool   // of the tunnel's
		up, fine bool
	}{
		"a veth, down":                        {as: "far1"},
		"one with the tunnel's name":          {as: "wg0", instead: true},
		"one with a name of the kernel's":     {as: "sit0", fine: true},
		"one with a name of the kernel's, up": {as: "sit0", up: true},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			s := newScene(t)
			red := s.place("red")
			behind, err := backstop.Standing{Wanted: backstop.Wanted{Tunnel: "wg0"}}.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			closed := watch.Orders{Closed: true, Devices: s.devices(), Behind: behind}
			s.order(closed)
			s.hears(watch.Good)
			if err := red.Do(func() error {
				tun, err := link.OpenTUN("wg0")
				if err != nil {
					return err
				}
				t.Cleanup(func() { tun.Close() })
				return link.SetUp("wg0")
			}); err != nil {
				t.Fatal(err)
			}
			s.order(closed)
			s.hears(watch.Good)
			s.wants(true, "with the tunnel's device")
			if err := s.place("void").Do(func() error {
				return link.AddVeth(link.Port{Name: "far1"}, link.Port{Name: "end1"})
			}); err != nil {
				t.Fatal(err)
			}
			s.order(closed)
			s.hears(watch.Good)
			s.wants(true, "with a device in void that is down")
			err = red.Do(func() error {
				if c.instead {
					return errors.Join(link.SetDown("wg0"), link.Rename("wg0", "wg1"))
				}
				return nil
			})
			err = errors.Join(err, s.place("void").Do(func() error { return errors.Join(link.Rename("far1", c.as), link.MoveTo(c.as, red)) }))
			if c.up {
				err = errors.Join(err, red.Do(func() error { return link.SetUp(c.as) }))
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.fine {
				s.order(closed)
				s.hears(watch.Good)
				s.wants(true, "after it came")
				return
			}
			if r := s.hears(watch.Difference); !strings.Contains(r.Text, "red: device ") || !strings.Contains(r.Text, "is not the tunnel's") {
				t.Errorf("it says %q", r.Text)
			}
			s.wants(false, "when the difference is reported")
		})
	}
}

// In the other namespaces, black too, init takes down what comes up. What it does not is a difference, and what it does is none.
func TestAStrangerThatStaysUpIsADifference(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the same device taken down, first")
	for _, name := range []string{"void", "black"} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			ns := s.black
			if name != "black" {
				ns = s.place(name)
			}
			do := func(fn func() error) {
				t.Helper()
				if err := ns.Do(fn); err != nil {
					t.Fatal(err)
				}
			}
			s.order(watch.Orders{Closed: true, Devices: s.devices()})
			s.hears(watch.Good)
			do(func() error {
				return errors.Join(link.AddVeth(link.Port{Name: "new0"}, link.Port{Name: "end0"}), link.SetUp("new0"))
			})
			beats := time.NewTicker(watch.Beat / 2)
			defer beats.Stop()
			keep := func(d time.Duration) {
				for end := time.Now().Add(d); time.Now().Before(end); <-beats.C {
					s.order(watch.Orders{Beat: true})
				}
			}
			keep(patience / 2)
			do(func() error { return link.SetDown("new0") })
			keep(patience)
			s.wants(true, "init has taken it down")
			do(func() error { return link.SetUp("new0") })
			keep(patience + 2*lookAgain)
			if r := s.hears(watch.Difference); !strings.Contains(r.Text, name+": device new0 is up") {
				t.Errorf("it says %q", r.Text)
			}
			s.wants(false, "when the difference is reported")
		})
	}
}

// A look knows all programs of ours that it must ask after.
func TestALookFindsOurPrograms(t *testing.T) {
	s := newScene(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w, err := newWatcher(ctx, -1, "", journal.New(io.Discard, "watchd"))
	if err != nil {
		t.Fatal(err)
	}
	w.beaten = time.Now().Add(time.Hour)
	w.orders = watch.Orders{Closed: true, Devices: s.devices()}
	s.in(func() error {
		for range 2 {
			difference, _ := w.compareOn(ctx, s.devices())
			if len(w.programs) != 4 || difference != nil {
				t.Errorf("programs %v, difference %v; want those of gate and floor", w.programs, difference)
			}
		}
		return nil
	})
}
