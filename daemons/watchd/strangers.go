package main

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"rempart/internal/link"
	"rempart/vpn/enforce/backstop"
)

// stranger is a device that is up where it should not be.
type stranger struct {
	space string
	index int
}

// takenDown is how long init has to take a stranger down in a namespace whose devices it hears of: as long as one act of its loop
// may take (stuckAfter).
const takenDown = 10 * time.Second

// strangers looks for devices that should not be there. Red holds the loopback and the tunnel's device. Elsewhere a device that
// nobody ordered may be there, down: init takes down what comes up, and one that stays up is a difference. Whatever is moved into
// a namespace arrives down.
func (w *watcher) strangers() error {
	seen := map[stranger]time.Time{}
	now := time.Now()
	look := func(name string, place backstop.Place) error {
		list, err := link.List()
		if err != nil {
			return err
		}
		for _, d := range list {
			s := stranger{name, d.Index}
			switch {
			case d.Name == "lo" || w.ordersOf(place, d):
			case place == backstop.Red && (d.Up || !slices.Contains(kernelsOwn, d.Name)):
				return fmt.Errorf("%s: device %s is not the tunnel's", name, d.Name)
			case !d.Up:
			case w.strange[s].IsZero() || w.silent:
				seen[s] = now // a silent init takes nothing down, and the radios are down
			case now.Sub(w.strange[s]) <= w.patience:
				seen[s] = w.strange[s]
			default:
				return fmt.Errorf("%s: device %s is up", name, d.Name)
			}
		}
		return nil
	}
	err := look("black", backstop.Black)
	for _, s := range w.spaces {
		err = errors.Join(err, s.ns.Do(func() error { return look(s.name, s.place) }))
	}
	w.strange = seen
	return err
}

// ordersOf tells whether a device of a place is one that init has put there.
func (w *watcher) ordersOf(place backstop.Place, d link.Device) bool {
	if place == backstop.Red {
		return d.Name == w.tunnel && d.Kind == "tuntap"
	}
	for _, o := range w.orders.Devices {
		if place == backstop.Black && o.Index == d.Index {
			return true
		}
	}
	return false
}

// kernelsOwn are the devices that the kernel itself makes in every namespace when it has their modules. Down they carry nothing.
var kernelsOwn = []string{"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"}
