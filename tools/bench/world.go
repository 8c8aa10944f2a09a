package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/netns"
	"rempart/board/scenario/watch"
	"rempart/boot/manifest"
	"rempart/boot/manifest/load"
	"rempart/internal/run"
	"rempart/tools/lab/bringup"
)

// inWorld brings a world with two handsets up for do, and takes it down again
// with all it kept.
func inWorld(ctx context.Context, o options, r *result, offload bool, do func(w *netns.World, before *air) error) (err error) {
	state, err := os.MkdirTemp("", "rempart-bench-")
	if err != nil {
		return fmt.Errorf("cannot make a state folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(state)) }()
	setup, err := bringup.Options{State: state, Bin: o.bin, Offload: offload}.Complete()
	if err != nil {
		return err
	}
	name := o.world + "-" + r.Name
	w, err := netns.Start(ctx, name, state)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Release(), netns.Down(context.WithoutCancel(ctx), name)) }()
	if offload {
		r.Settings["links"] = "segmentation and checksum offload on: frames up to 64 KiB"
	} else {
		r.Settings["links"] = "segmentation and checksum offload off: every frame has its size on the air"
	}
	watching, err := capture(ctx, w, filepath.Join(o.out, r.Name+".pcapng"))
	if err != nil {
		return err
	}
	if err := bringup.Up(ctx, w, setup, nil); err != nil {
		hint := run.HintOf(err)
		err = errors.Join(err, watching.drop())
		if hint != "" {
			err = run.Hint(err, "%s", hint)
		}
		return err
	}
	if err := do(w, watching); err != nil {
		return errors.Join(err, watching.drop())
	}
	return watching.judge(ctx, r, "whole run", 1)
}

// air is an unfiltered capture of the link, judged when it ends.
type air struct {
	w       *netns.World
	file    string
	running *netns.Capture
}

// capture starts one.
func capture(ctx context.Context, w *netns.World, file string) (*air, error) {
	running, err := w.Capture(context.WithoutCancel(ctx), file)
	if err != nil {
		return nil, err
	}
	return &air{w: w, file: file, running: running}, nil
}

// drop ends the capture without judging it.
func (a *air) drop() error {
	if a.running == nil {
		return nil
	}
	_, err := a.running.Stop()
	a.running = nil
	return err
}

// judge ends the capture and holds every frame against the signed policy. Fewer
// frames than atLeast show that the capture did not see what there was. A
// capture that was judged or dropped before is left alone.
func (a *air) judge(ctx context.Context, r *result, during string, atLeast int) error {
	if a.running == nil {
		return nil
	}
	rules, err := rules(ctx, a.w)
	if err != nil {
		return errors.Join(err, a.drop())
	}
	ended, err := a.running.Stop()
	a.running = nil
	if err != nil {
		return err
	}
	if !ended.Complete() {
		return run.Hint(fmt.Errorf("cannot judge the link: the capture is not complete %s", ended.Error), "the machine was too busy: run again")
	}
	watcher, err := watch.New(rules)
	if err != nil {
		return err
	}
	f, err := os.Open(a.file)
	if err != nil {
		return fmt.Errorf("cannot read the capture: %w", err)
	}
	defer f.Close()
	if err := watcher.Read(ctx, f); err != nil {
		return fmt.Errorf("cannot read the capture: %w", err)
	}
	seen := watcher.Summary()
	r.Air = &seen
	r.add("frames on the link, "+during, "frames", []float64{float64(seen.Frames)}, bound{largest, true, float64(atLeast)})
	r.add("frames outside the admitted classes, "+during, "frames", []float64{float64(seen.Outside)}, bound{Of: largest})
	return nil
}

// rules are what a handset's signed policy admits on the link.
func rules(ctx context.Context, w *netns.World) (watch.Rules, error) {
	s, err := w.Status(ctx)
	if err != nil {
		return watch.Rules{}, err
	}
	var rules watch.Rules
	image := ""
	for _, m := range s.Machines {
		if m.Role == manifest.RoleHandset {
			rules.Handsets = append(rules.Handsets, m.Radio.V4.Addr(), m.Radio.V6.Addr())
			image = m.Image
		}
	}
	policy, _, err := load.Policy(filepath.Join(image, "etc", "rempart"))
	if err != nil {
		return rules, err
	}
	rules.Classes = classes(policy)
	return rules, nil
}

// classes are the policy's, one for each gateway's address and service.
func classes(p *manifest.Policy) []watch.Class {
	protocols := map[string]uint8{"udp": unix.IPPROTO_UDP, "tcp": unix.IPPROTO_TCP}
	var all []watch.Class
	for _, g := range p.Gateways {
		for _, address := range g.Addresses {
			for _, s := range g.Services {
				all = append(all, watch.Class{Name: s.Purpose, Gateway: address, Protocol: protocols[s.Protocol], Port: s.Port, WireGuard: s.Purpose == "tunnel"})
			}
		}
	}
	return all
}

// monotonic is CLOCK_MONOTONIC in nanoseconds, which all processes of one
// machine share.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}

// poll calls ok every few milliseconds until it says true, fails, or time is
// up. What it looks at should be cheap: the looking must not load the machine.
func poll(ctx context.Context, limit time.Duration, what string, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		done, err := ok()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot wait longer for %s: %w", what, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// inner returns the gateway's and the handset's addresses inside the tunnel,
// IPv4.
func inner(m netns.Machine) netip.Addr { return bringup.Inner(m.Number)[0] }
