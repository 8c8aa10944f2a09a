package link

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Change is a device that appeared, changed or went.
type Change struct {
	Place string // as given to Watch
	NS    *NS
	Name  string
	Index int
	Up    bool
	Gone  bool
}

// Watch sends the device changes of ns to out until ctx ends; devices that are there already come first. It never drops
// a change: when out is full it waits, and the kernel's own queue overflowing (ENOBUFS) is answered by listing all again.
func Watch(ctx context.Context, place string, ns *NS, out chan<- Change) error {
	updates := make(chan netlink.LinkUpdate, 64)
	h := netns.NsHandle(ns.FD())
	lost := make(chan struct{}, 1)
	err := netlink.LinkSubscribeWithOptions(updates, ctx.Done(), netlink.LinkSubscribeOptions{
		Namespace:    &h,
		ListExisting: true,
		ErrorCallback: func(error) {
			select {
			case lost <- struct{}{}:
			default:
			}
		},
	})
	if err != nil {
		return fmt.Errorf("cannot watch the devices of %s: %w", place, err)
	}
	send := func(c Change) bool {
		select {
		case out <- c:
			return true
		case <-ctx.Done():
			return false
		}
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-lost:
				var all []Device
				// A namespace that cannot be listed any more is gone with its devices.
				if err := ns.Do(func() (err error) { all, err = List(); return err }); err != nil {
					return
				}
				for _, d := range all {
					if !send(Change{Place: place, NS: ns, Name: d.Name, Index: d.Index, Up: d.Up}) {
						return
					}
				}
			case u, ok := <-updates:
				if !ok {
					return
				}
				a := u.Link.Attrs()
				if !send(Change{place, ns, a.Name, a.Index, a.RawFlags&unix.IFF_UP != 0, u.Header.Type == unix.RTM_DELLINK}) {
					return
				}
			}
		}
	}()
	return nil
}
