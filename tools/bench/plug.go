package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"rempart/internal/link"
	"rempart/internal/sandbox/guard"
	"rempart/vpn/egress"
	"rempart/vpn/enforce"
	"rempart/vpn/enforce/backstop"
)

// plugged is the part of a phone that a device meets when it is plugged in: the namespaces with the backstop in them, and the
// guard.
type plugged struct {
	spaces  map[string]backstop.Space
	stop    *backstop.Backstop
	guard   *guard.Guard // nil: this kernel runs none
	guarded string
	pins    string
	undo    []func() error
}

// newPlugged makes one, closed. It must be closed, also with an error.
func newPlugged(pins string) (p *plugged, err error) {
	p = &plugged{pins: pins, spaces: map[string]backstop.Space{}}
	for name, kind := range map[string]backstop.Place{"init": backstop.Other, "void": backstop.Other, "red": backstop.Red, "black": backstop.Black} {
		ns, err := link.Create("")
		if err != nil {
			return p, err
		}
		p.undo = append(p.undo, ns.Close)
		p.spaces[name] = backstop.Space{Place: kind, NS: ns}
	}
	if p.stop, err = backstop.Lay(p.spaces); err != nil {
		return p, err
	}
	own, err := ownCgroupDir()
	if err != nil {
		return p, err
	}
	handset := filepath.Join(own, fmt.Sprintf("rempart-bench-%d", os.Getpid()))
	if err := os.Mkdir(handset, 0o755); err != nil {
		return p, fmt.Errorf("cannot make a control group: %w", err)
	}
	p.undo = append(p.undo, func() error { return os.Remove(handset) })
	err = p.spaces["init"].NS.Do(func() (err error) {
		p.guard, err = guard.Install(handset, pins+"-guard")
		return err
	})
	switch {
	case errors.Is(err, guard.ErrNoGuard):
		p.guarded = "none on this kernel"
		return p, nil
	case err != nil:
		return p, err
	}
	p.guarded = string(p.guard.Form())
	p.undo = append(p.undo, p.guard.Remove)
	return p, nil
}

// close takes all away again, the last first.
func (p *plugged) close() (err error) {
	for i := len(p.undo) - 1; i >= 0; i-- {
		err = errors.Join(err, p.undo[i]())
	}
	return err
}

// plug does with a device what daemons/init's plug and the release behind it do, in their order.
func (p *plugged) plug(s *deviceSample, name string) (err error) {
	own, black := p.spaces["init"].NS, p.spaces["black"].NS
	index := 0
	err = own.Do(func() error {
		if err := link.AddVeth(link.Port{Name: name}, link.Port{Name: "far-" + name}); err != nil {
			return err
		}
		index, err = link.Index(name)
		return err
	})
	if err != nil {
		return err
	}
	began := time.Now()
	from := began
	lap := func(what string) {
		now := time.Now()
		s.Spans = append(s.Spans, span{What: what, FromNS: from.Sub(began).Nanoseconds(), ToNS: now.Sub(began).Nanoseconds()})
		from = now
	}
	var hold *enforce.Hold
	err = own.Do(func() (err error) {
		if err := errors.Join(link.SetDown(name), enforce.AttachFloor(index)); err != nil {
			return err
		}
		lap("floor where it was born")
		hold, err = enforce.HoldDevice(index)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hold.Close()) }()
	lap("hold")
	if err := own.Do(func() error { return link.MoveTo(name, black) }); err != nil {
		return err
	}
	lap("to black")
	err = black.Do(func() (err error) {
		if index, err = link.Index(name); err != nil {
			return err
		}
		return errors.Join(enforce.AttachFloor(index), enforce.FloorInForce(index))
	})
	if err != nil {
		return err
	}
	lap("floor in black")
	if err := p.stop.AddDevice(name, sendOwn[0].Addr(), sendOwn[1].Addr()); err != nil {
		return err
	}
	lap("nft and IPsec default")
	g, err := attachAsEgressd(black, index, p.pins)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, black.Do(func() error { return enforce.Sever(index) }), g.Release(), unpin(p.pins), p.unplug(name, index))
	}()
	lap("gate")
	if err := hold.Close(); err != nil {
		return err
	}
	lap("hold let go")
	if err := errors.Join(black.Do(func() error { return p.admit(index) }), p.readBack(index, egress.DenyAll())); err != nil {
		return err
	}
	lap("guard, all read back")
	s.AllMS = float64(from.Sub(began)) / float64(time.Millisecond)
	return p.open(g, index, lap)
}

// open releases the device to a gateway.
func (p *plugged) open(g *enforce.Gate, index int, lap func(string)) error {
	const uid = 903
	policy := egress.Policy{Classes: []egress.Class{{Gateway: "gateway", Addr: netip.MustParseAddr("203.0.113.1"), Proto: egress.UDP, Port: sendPort, Purpose: egress.Tunnel, Cgroup: 1}}}
	if err := p.stop.Release(policy, uid); err != nil {
		return err
	}
	err := p.spaces["black"].NS.Do(func() error { return errors.Join(asEgressd(), g.Swap(policy)) })
	if err := errors.Join(err, p.readBack(index, policy)); err != nil {
		return err
	}
	lap("then released, all read back")
	return p.stop.Close()
}

func (p *plugged) admit(index int) error {
	if p.guard == nil {
		return nil
	}
	return p.guard.Admit(index)
}

// readBack asks the kernel for every layer.
func (p *plugged) readBack(index int, want egress.Policy) error {
	err := p.spaces["black"].NS.Do(func() error {
		report, err := enforce.ReadBack(index, want, egress.LinkFacts{})
		return errors.Join(err, report.Err(), enforce.FloorInForce(index))
	})
	for _, l := range p.stop.There() {
		err = errors.Join(err, p.stop.ReadBack(l))
	}
	return err
}

// unplug removes the device.
func (p *plugged) unplug(name string, index int) error {
	return errors.Join(p.stop.RemoveDevice(name), p.spaces["black"].NS.Do(func() error {
		if p.guard != nil {
			if err := p.guard.Revoke(index); err != nil {
				return err
			}
		}
		return link.Remove(name)
	}))
}
