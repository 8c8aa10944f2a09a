package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"rempart/boot/report"
	"rempart/internal/journal"
	"rempart/internal/link"
	"rempart/vpn/egress"
	"rempart/vpn/egress/plan"
)

// makeLevels compiles the level table and puts it in force without its rights: the daemons that are started from now on may
// make their sockets, and nothing passes through them before release. Before wg0 is there its network is behind no device.
func (p *phone) makeLevels(ctx context.Context) error {
	at := plan.Places{Devices: map[string]int{}, Cgroups: map[string]uint64{}}
	var err error
	if at.Red, err = p.red.Cookie(); err != nil {
		return err
	}
	if at.Black, err = p.black.Cookie(); err != nil {
		return err
	}
	if p.tun != nil {
		err = p.red.Do(func() (err error) { at.Devices[tunnelDevice], err = link.Index(tunnelDevice); return err })
		if err != nil {
			return err
		}
		p.report.Tunnels = []report.Tunnel{{Name: tunnelDevice, Index: at.Devices[tunnelDevice]}}
	}
	for _, name := range []string{"tunneld", "linkd"} {
		if at.Cgroups[name], err = cgroupID(p.cgroups[name]); err != nil {
			return err
		}
	}
	for _, a := range p.policy.Apps {
		dir := filepath.Join(cgroupDir, "apps", a.Name)
		if a.Name == "voiced" || a.Name == "gatewayd" {
			dir = filepath.Join(cgroupDir, a.Name)
		}
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return fmt.Errorf("cannot tell the id of cgroup %s: %w", dir, err)
		}
		at.Cgroups[a.Name] = st.Ino
	}
	table, err := plan.Levels(p.policy, at)
	if err != nil {
		return err
	}
	p.levels = table
	return p.setLevels(ctx, table.Closed())
}

// setLevels has egressd put a level table in force and notes it as the one that must be. The watcher looks away meanwhile.
func (p *phone) setLevels(ctx context.Context, table egress.LevelTable) error {
	p.levelsUnknown = true
	p.tell()
	err := p.change(ctx, func(ctx context.Context) (egress.Status, error) { return p.gate.Levels(ctx, table) })
	if err != nil {
		return err
	}
	p.levelsUnknown, p.levelsNow = false, table
	p.tell()
	return nil
}

// readLevels compares the level hooks with the table that must be in force.
func (p *phone) readLevels() error {
	var guards []uint32
	if p.guard != nil {
		var err error
		if guards, err = p.guard.Programs(); err != nil {
			return err
		}
	}
	got, err := p.readHooks(cgroupDir, p.levelsNow, guards...)
	if err := errors.Join(err, got.Err()); err != nil {
		p.report.Levels = err.Error()
		p.journal.Event(eventReread, "levels", journal.Failure, "reason", err.Error())
		return err
	}
	state := "nobody may send or receive"
	if open := countRights(p.levelsNow); open > 0 {
		state = fmt.Sprintf("%d processes may", open)
	}
	p.report.Levels = fmt.Sprintf("%s: %s, table %x, %d programs", report.LevelsInForce, state, got.Digest[:4], len(got.Programs))
	return nil
}

// countRights is how many rows of a table have a right.
func countRights(t egress.LevelTable) (n int) {
	for _, r := range t.Rows {
		if r.Send|r.Receive != 0 {
			n++
		}
	}
	return n
}
