package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"rempart/boot/report"
	"rempart/internal/journal"
	"rempart/internal/link"
	"rempart/vpn/egress"
	"rempart/vpn/enforce"
)

// watchDevices reports every device that appears or changes in init's own namespace, where the kernel puts new hardware, and
// in black.
func (p *phone) watchDevices(ctx context.Context) (<-chan link.Change, error) {
	out := make(chan link.Change, 64)
	for place, ns := range map[string]*link.NS{"init": p.own, "black": p.black} {
		if err := link.Watch(ctx, place, ns, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// deviceChanged closes a device that appears: its floor is laid and it is taken down, where it was born. The guard has kept
// everyone else's packets off it since then; this is the second layer. If it is a radio of the command line, it becomes one.
func (p *phone) deviceChanged(ctx context.Context, c link.Change, again chan string) {
	switch {
	case c.Name == "lo":
	case c.Gone:
		if i := p.inBlack(c); i >= 0 {
			p.unplug(i, again)
		}
	case c.Place == "init" && p.awaited(c.Name):
		err := p.plug(ctx, c)
		if errors.Is(err, errStale) {
			return // it went, or was moved, after this was said
		}
		p.toldOf(c, journal.Success, err)
		p.later(0, "", again)
	case p.inBlack(c) < 0:
		err := c.NS.Do(func() error { return errors.Join(enforce.AttachFloor(c.Index), link.SetDown(c.Name)) })
		p.toldOf(c, journal.Refused, err)
	}
}

func (p *phone) toldOf(c link.Change, outcome journal.Outcome, err error) {
	reason := ""
	if err != nil {
		outcome, reason = journal.Failure, err.Error()
	}
	p.journal.Event(eventDevice, c.Name, outcome, "place", c.Place, "index", fmt.Sprint(c.Index), "up", fmt.Sprint(c.Up), "reason", reason)
}

// inBlack is which of black's radios a change is about; -1: none.
func (p *phone) inBlack(c link.Change) int {
	if c.Place != "black" {
		return -1
	}
	return slices.IndexFunc(p.report.Devices, func(d report.Device) bool { return d.Index == c.Index })
}

// awaited tells whether a device of that name may become a radio now: the command line names it, none of that name is there,
// and there is room.
func (p *phone) awaited(name string) bool {
	there := slices.ContainsFunc(p.report.Devices, func(d report.Device) bool { return d.Name == name })
	r, ok := p.known(name)
	return ok && !r.dhcp && !there && len(p.report.Devices) < maxRadios && p.lost == ""
}

// errStale says that a device is not any more where it was said to be.
var errStale = errors.New("the device is not there any more")

// plug makes a device that was born in init's namespace a radio of black, still down; the next release reads all back and
// brings it up.
//
// DO NOT REARRANGE: it is down and closed before it moves. The floor does not come along, the hold does; it goes when the gate
// is on the device, and nothing but the gate and the layers behind it is asked from then on.
func (p *phone) plug(ctx context.Context, c link.Change) (err error) {
	var hold *enforce.Hold
	err = c.NS.Do(func() error {
		if i, err := link.Index(c.Name); err != nil || i != c.Index {
			return errStale
		}
		if err := errors.Join(link.SetDown(c.Name), enforce.AttachFloor(c.Index)); err != nil {
			return err
		}
		hold, err = enforce.HoldDevice(c.Index)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hold.Close()) }()
	p.close(c.Name + " appears") // with a new device tunneld asks again
	if err := c.NS.Do(func() error { return link.MoveTo(c.Name, p.black) }); err != nil {
		return err
	}
	d := report.Device{Name: c.Name, Floor: true, Gate: "none yet"}
	err = p.blackDo(func() (err error) {
		if d.Index, err = link.Index(c.Name); err != nil {
			return err
		}
		return errors.Join(enforce.AttachFloor(d.Index), enforce.FloorInForce(d.Index))
	})
	if err != nil {
		return errors.Join(err, p.blackDo(func() error { return link.SetDown(c.Name) }))
	}
	r, _ := p.known(c.Name) // it was awaited
	if err := p.behindTheGate(func() error { return p.backstop.AddDevice(c.Name, r.own()...) }); err != nil {
		return err
	}
	// Without egressd the floor holds; whoever attaches the gates next attaches this one too.
	if !p.severed {
		err := p.change(ctx, func(ctx context.Context) (egress.Status, error) { return p.gate.Attach(ctx, d.Index) })
		if err != nil {
			return errors.Join(fmt.Errorf("cannot put the gate on %s: %w", c.Name, err), p.behindTheGate(func() error { return p.backstop.RemoveDevice(c.Name) }))
		}
	}
	if err := hold.Close(); err != nil {
		return err
	}
	p.report.Devices = append(p.report.Devices, d)
	p.tell()
	return p.blackDo(func() error { return p.admit(c.Name) })
}

// unplug forgets a radio that is gone. What comes back under its name and number is another device, with no gate until it is
// gated; the others get its routes.
func (p *phone) unplug(i int, again chan string) {
	d := p.report.Devices[i]
	p.report.Devices = slices.Delete(p.report.Devices, i, i+1)
	delete(p.told, d.Name)
	p.close(d.Name + " is gone")
	err := p.behindTheGate(func() error { return p.backstop.RemoveDevice(d.Name) })
	if p.guard != nil {
		err = errors.Join(err, p.blackDo(func() error { return p.guard.Revoke(d.Index) }))
	}
	for _, other := range p.report.Devices {
		if r, ok := p.known(other.Name); ok && other.Up {
			err = errors.Join(err, p.blackDo(func() error { return p.raise(r, other.Index) }))
		}
	}
	p.tell()
	outcome, reason := journal.Success, ""
	if err != nil {
		outcome, reason = journal.Failure, err.Error()
	}
	p.journal.Event(eventGone, d.Name, outcome, "index", fmt.Sprint(d.Index), "reason", reason)
	p.later(0, "", again)
}
