package link

import (
	"context"
	"fmt"
	"maps"
	"time"

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
// a change for good: when out is full it waits, and when the kernel's own queue has overflowed (ENOBUFS) it says again what
// is there, and of each device that it has told of and that is not, that it is gone.
func Watch(ctx context.Context, place string, ns *NS, out chan<- Change) error {
	return watch(ctx, place, ns, out, 0)
}

// rewatchPause is between two tries to ask the kernel again.
const rewatchPause = 50 * time.Millisecond

// watch has a queue of buffer bytes in the kernel, 0 for the kernel's own measure.
func watch(ctx context.Context, place string, ns *NS, out chan<- Change, buffer int) error {
	w := &watcher{place: place, ns: ns, out: out, buffer: buffer, told: map[int]string{}}
	updates, stop, err := w.subscribe(ctx)
	if err != nil {
		return fmt.Errorf("cannot watch the devices of %s: %w", place, err)
	}
	go func() {
		for {
			w.pass(ctx, updates)
			stop()
			for {
				if ctx.Err() != nil {
					return
				}
				if updates, stop, err = w.subscribe(ctx); err == nil {
					if w.missing(ctx) == nil {
						break
					}
					stop()
				}
				select {
				case <-ctx.Done():
				case <-time.After(rewatchPause):
				}
			}
		}
	}()
	return nil
}

type watcher struct {
	place  string
	ns     *NS
	out    chan<- Change
	buffer int
	told   map[int]string // names by index of the devices that out knows
}

// subscribe asks for what is there and for every change. The library ends a subscription at its first error.
func (w *watcher) subscribe(ctx context.Context) (<-chan netlink.LinkUpdate, context.CancelFunc, error) {
	ctx, stop := context.WithCancel(ctx)
	updates := make(chan netlink.LinkUpdate, 64)
	h := netns.NsHandle(w.ns.FD())
	err := netlink.LinkSubscribeWithOptions(updates, ctx.Done(), netlink.LinkSubscribeOptions{Namespace: &h, ListExisting: true, ReceiveBufferSize: w.buffer})
	if err != nil {
		stop()
	}
	return updates, stop, err
}

// pass hands on until the subscription ends.
func (w *watcher) pass(ctx context.Context, updates <-chan netlink.LinkUpdate) {
	for u := range updates {
		a := u.Link.Attrs()
		w.send(ctx, Change{w.place, w.ns, a.Name, a.Index, a.RawFlags&unix.IFF_UP != 0, u.Header.Type == unix.RTM_DELLINK})
	}
}

func (w *watcher) send(ctx context.Context, c Change) {
	if w.told[c.Index] = c.Name; c.Gone {
		delete(w.told, c.Index)
	}
	select {
	case w.out <- c:
	case <-ctx.Done():
	}
}

// missing tells of the devices that went while nobody was told.
func (w *watcher) missing(ctx context.Context) error {
	var all []Device
	if err := w.ns.Do(func() (err error) { all, err = List(); return err }); err != nil {
		return err
	}
	gone := maps.Clone(w.told)
	for _, d := range all {
		delete(gone, d.Index)
	}
	for index, name := range gone {
		w.send(ctx, Change{Place: w.place, NS: w.ns, Name: name, Index: index, Gone: true})
	}
	return nil
}
