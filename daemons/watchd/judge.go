package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"rempart/internal/journal"
	"rempart/internal/link"
	"rempart/vpn/egress"
	"rempart/vpn/egress/ask"
	"rempart/vpn/enforce"
	"rempart/vpn/enforce/backstop"
	"rempart/vpn/watch"
)

// cgroupDir is the root of the handset's cgroups.
const cgroupDir = "/sys/fs/cgroup"

// compare holds what is in force against the orders. noAnswer: egressd did not say what it admits; what is in force is then at
// least something that the signed policy allows.
func (w *watcher) compare(ctx context.Context) (difference, noAnswer error) {
	for {
		devices, err := w.devices()
		if err != nil {
			return err, nil
		}
		if difference, noAnswer = w.compareOn(ctx, devices); difference == nil {
			return nil, noAnswer
		}
		// A device that went while it was read is no difference.
		if after, err := w.devices(); err != nil || len(after) == len(devices) {
			return errors.Join(difference, err), nil
		}
	}
}

func (w *watcher) compareOn(ctx context.Context, devices []watch.Device) (difference, noAnswer error) {
	w.programs = nil
	for _, d := range devices {
		if err := enforce.FloorInForce(d.Index); err != nil {
			return fmt.Errorf("%s: %w", d.Name, err), nil
		}
	}
	if difference, noAnswer = w.gates(ctx, devices); difference != nil {
		return difference, noAnswer
	}
	for _, part := range []struct {
		there bool
		read  func() error
	}{
		{w.guard != nil, func() error { return w.guard.ReadBack() }},
		{w.levels != nil, w.hooks},
		// With a device its table goes, and init is about to say so.
		{w.behind != nil && len(devices) == len(w.orders.Devices), w.backstop},
		{true, w.strangers},
		{true, w.extensions},
	} {
		if !part.there {
			continue
		}
		if err := w.beat(); err != nil {
			return err, nil
		}
		if err := part.read(); err != nil {
			return err, noAnswer
		}
	}
	return nil, noAnswer
}

// hooks compares the level hooks at the handset's cgroup, where the guard may have programs too.
func (w *watcher) hooks() error {
	var guards []uint32
	if w.guard != nil {
		var err error
		if guards, err = w.guard.Programs(); err != nil {
			return err
		}
	}
	r, err := enforce.ReadBackLevels(cgroupDir, *w.levels, guards...)
	for _, id := range r.Programs {
		w.programs = append(w.programs, id)
	}
	return errors.Join(err, r.Err())
}

// extensions looks for programs that replace a function of one of ours.
func (w *watcher) extensions() error {
	if w.guard != nil {
		programs, err := w.guard.AllPrograms()
		if err != nil {
			return err
		}
		w.programs = append(w.programs, programs...)
	}
	return enforce.Unextended(w.programs...)
}

// backstop compares nft and the IPsec policies of every namespace.
func (w *watcher) backstop() error {
	if err := w.behind.ReadBack(backstop.Black); err != nil {
		return err
	}
	for _, s := range w.spaces {
		if err := s.ns.Do(func() error { return w.behind.ReadBack(s.place) }); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// devices are those of the orders that are there. One that is gone carries nobody's packets, and init learns of it by itself;
// another name means another device, or one that somebody renamed.
func (w *watcher) devices() ([]watch.Device, error) {
	list, err := link.List()
	if err != nil {
		return nil, err
	}
	name := map[int]string{}
	for _, d := range list {
		name[d.Index] = d.Name
	}
	var there []watch.Device
	for _, d := range w.orders.Devices {
		switch name[d.Index] {
		case "":
		case d.Name:
			there = append(there, d)
		default:
			return nil, fmt.Errorf("device %d is %s and should be %s", d.Index, name[d.Index], d.Name)
		}
	}
	return there, nil
}

// gates compares every gate. A closed phone must deny all, whatever egressd says, so it is not asked. Nor is it while what is in
// force is what it last said: that is a row of the signed table, or deny-all.
func (w *watcher) gates(ctx context.Context, devices []watch.Device) (difference, noAnswer error) {
	if w.orders.Severing {
		return nil, nil
	}
	if w.orders.Closed || w.orders.Severed {
		return w.read(devices, egress.DenyAll()), nil
	}
	if time.Now().Before(w.askNext) && w.admitted(devices, w.answer) == nil {
		return nil, nil
	}
	// Counts of changes are of one egressd: only the first question may be to another one than the last.
	first := true
	status := func() (s egress.Status, err error) {
		dial := first
		first = false
		w.askNext = time.Time{}
		if s, err = w.status(ctx, dial); err == nil {
			w.answer, w.askNext = s, time.Now().Add(w.every)
		}
		return s, err
	}
	difference, noAnswer = ask.Agreed(status, func(s egress.Status) error { return w.admitted(devices, s) })
	if noAnswer != nil {
		difference = w.allowed(devices)
	}
	return difference, noAnswer
}

// admitted compares the gate of each device with what egressd says it admits.
func (w *watcher) admitted(devices []watch.Device, s egress.Status) error {
	if s.Admitted == "" {
		return w.read(devices, egress.DenyAll())
	}
	row := w.orders.Table.For(s.Admitted)
	if len(row.Classes) == 0 {
		return fmt.Errorf("egressd admits %q, which the signed policy does not", s.Admitted)
	}
	return w.read(devices, row)
}

// allowed wants deny-all or one row of the table on each device.
func (w *watcher) allowed(devices []watch.Device) error {
	rows := []egress.Policy{egress.DenyAll()}
	seen := map[string]bool{}
	for _, c := range w.orders.Table.Classes {
		if !seen[c.Gateway] {
			seen[c.Gateway] = true
			rows = append(rows, w.orders.Table.For(c.Gateway))
		}
	}
	for _, d := range devices {
		var err error
		for _, row := range rows {
			if err = w.read([]watch.Device{d}, row); err == nil {
				break
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// read compares the gate of each device with a policy. Where init has severed the gates, none need be there.
func (w *watcher) read(devices []watch.Device, want egress.Policy) error {
	for _, d := range devices {
		err := w.readOne(d, want, d.Facts)
		if err != nil && d.Was != d.Facts {
			err = w.readOne(d, want, d.Was)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", d.Name, err)
		}
	}
	return nil
}

func (w *watcher) readOne(d watch.Device, want egress.Policy, facts egress.LinkFacts) error {
	r, err := enforce.ReadBack(d.Index, want, facts)
	w.programs = append(append(w.programs, r.Programs[:]...), r.Floors...)
	switch {
	case err != nil:
		return err
	case w.orders.Severed:
		return r.Bare()
	}
	return r.Err()
}

// status asks egressd; with dial also one that was started since the last question.
func (w *watcher) status(ctx context.Context, dial bool) (egress.Status, error) {
	asking, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if w.ask != nil {
		s, err := w.ask.Status(asking)
		if _, refused := errors.AsType[*ask.RefusedError](err); err == nil || refused {
			return s, err
		}
		_ = w.ask.Close() // of no more use
		w.ask = nil
		if !dial || asking.Err() != nil {
			return egress.Status{}, err
		}
	}
	if !dial {
		return egress.Status{}, errors.New("cannot ask egressd: it is another one than before")
	}
	var err error
	if w.ask, err = ask.Dial(w.egressd); err != nil {
		return egress.Status{}, err
	}
	return w.ask.Status(asking)
}

// lower takes every device of black down that is up. It is the one thing that watchd ever changes.
func (w *watcher) lower() {
	devices, err := link.List()
	if err != nil {
		w.journal.Event(eventLower, "devices", journal.Failure, "reason", err.Error())
		return
	}
	for _, d := range devices {
		if d.Name == "lo" || !d.Up {
			continue
		}
		outcome, reason := journal.Success, ""
		if err := link.SetDown(d.Name); err != nil {
			outcome, reason = journal.Failure, err.Error()
		}
		w.journal.Event(eventLower, d.Name, outcome, "reason", reason)
	}
}
