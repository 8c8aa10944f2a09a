package main

import (
	"context"
	"errors"
	"fmt"

	"rempart/internal/journal"
	"rempart/internal/link"
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

// deviceChanged puts the floor under a device that nobody named on the command line and takes it down: it stays where it was
// born, closed. The guard has kept everyone else's packets off it since it was born; this is the second layer.
func (p *phone) deviceChanged(c link.Change) {
	if c.Gone || c.Name == "lo" {
		return
	}
	if c.Place == "black" {
		for _, d := range p.report.Devices {
			if d.Index == c.Index {
				return
			}
		}
	}
	err := c.NS.Do(func() error {
		return errors.Join(enforce.AttachFloor(c.Index), link.SetDown(c.Name))
	})
	outcome, reason := journal.Refused, ""
	if err != nil {
		outcome, reason = journal.Failure, err.Error()
	}
	p.journal.Event(eventDevice, c.Name, outcome, "place", c.Place, "index", fmt.Sprint(c.Index), "up", fmt.Sprint(c.Up), "reason", reason)
}
