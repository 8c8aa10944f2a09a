package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"rempart/boot/manifest"
	"rempart/boot/report"
	"rempart/internal/journal"
	"rempart/internal/link"
	"rempart/internal/run"
	"rempart/vpn/egress"
	"rempart/vpn/enforce"
)

// layFloor moves every radio to black while it is down and puts the drop-all classifier on it there.
func (p *phone) layFloor(context.Context) (string, error) {
	devices, err := link.List()
	if err != nil {
		return "", err
	}
	var names []string
	for _, d := range devices {
		if d.Name == "lo" {
			continue
		}
		if d.Up {
			return "", fmt.Errorf("device %s is already up", d.Name)
		}
	}
	for _, r := range p.radios {
		if _, err := link.Index(r.name); err != nil {
			if r.later {
				continue
			}
			return "", run.Hint(err, "the command line names a radio that this board does not have")
		}
		if err := link.MoveTo(r.name, p.black); err != nil {
			return "", err
		}
		err := p.blackDo(func() error {
			i, err := link.Index(r.name)
			if err != nil {
				return err
			}
			if err := errors.Join(enforce.AttachFloor(i), enforce.FloorInForce(i)); err != nil {
				return err
			}
			if err := p.backstop.AddDevice(r.name, r.own()...); err != nil {
				return err
			}
			p.report.Devices = append(p.report.Devices, report.Device{Name: r.name, Index: i, Floor: true, Gate: "none yet"})
			return nil
		})
		if err != nil {
			return "", fmt.Errorf("cannot lay the floor under %s: %w", r.name, err)
		}
		names = append(names, r.name)
	}
	return strings.Join(names, ", ") + ": drop all, both directions, device down", nil
}

// raiseGate measures and starts egressd, has it attach its deny-all gate, and reads back what the kernel says.
func (p *phone) raiseGate(ctx context.Context) (string, error) {
	if err := p.openLog(); err != nil {
		return "", err
	}
	if err := p.measureNamed("egressd"); err != nil {
		return "", err
	}
	if err := own(filepath.Join(bpffsDir, "gate"), uidEgressd); err != nil {
		return "", err
	}
	if err := p.listen("egressd"); err != nil {
		return "", err
	}
	if err := p.sup.start("egressd"); err != nil {
		return "", err
	}
	if err := p.attachGate(ctx); err != nil {
		return "", err
	}
	return "deny-all attached by egressd, read back by init from kernel ids", nil
}

// attachGate connects to egressd and puts its deny-all gate on every radio.
func (p *phone) attachGate(ctx context.Context) error {
	if err := p.connect(ctx); err != nil {
		return err
	}
	for _, d := range p.report.Devices {
		err := p.change(ctx, func(ctx context.Context) (egress.Status, error) { return p.gate.Attach(ctx, d.Index) })
		if err != nil {
			return fmt.Errorf("cannot put the gate on %s: %w", d.Name, err)
		}
		delete(p.told, d.Name) // a new gate knows nothing of its link
	}
	p.severed = false
	p.levelsUnknown = true
	p.tell()
	// A new egressd has emptied the table: without rows no daemon could make a socket.
	if err := p.setLevels(ctx, p.levels.Closed()); err != nil {
		return err
	}
	if err := p.tellLinks(ctx); err != nil {
		return err
	}
	return errors.Join(p.readBack(egress.DenyAll()), p.readLevels())
}

// readBack compares what the kernel has on every radio with want, floor included.
func (p *phone) readBack(want egress.Policy) error {
	var all error
	for i := range p.report.Devices {
		d := &p.report.Devices[i]
		var got enforce.Report
		err := p.blackDo(func() error {
			var err error
			if got, err = enforce.ReadBack(d.Index, want, p.facts(d.Name)); err != nil {
				return err
			}
			return errors.Join(got.Err(), enforce.FloorInForce(d.Index))
		})
		d.ReadNS, d.InForce = mono(), err == nil
		if err != nil {
			d.Gate = err.Error()
			p.journal.Event(eventReread, d.Name, journal.Failure, "reason", err.Error())
			all = errors.Join(all, fmt.Errorf("gate of %s: %w", d.Name, err))
			continue
		}
		state := "deny-all"
		if len(want.Classes) > 0 {
			state = fmt.Sprintf("admits %d classes", len(want.Classes))
		}
		d.Gate = fmt.Sprintf("%s, policy %x, programs %d and %d, %s", state, got.Digest[:4], got.Programs[0], got.Programs[1], got.Hook)
		p.journal.Event(eventReread, d.Name, journal.Success, "state", d.Gate)
	}
	return errors.Join(all, p.readBackstop())
}

// raiseRadios gives each radio its address and brings it up, behind the closed gate that was just read back.
func (p *phone) raiseRadios(ctx context.Context) (string, error) {
	if err := p.readBack(egress.DenyAll()); err != nil {
		return "", err
	}
	for _, d := range p.report.Devices {
		if err := p.blackDo(func() error { return p.admit(d.Name) }); err != nil {
			return "", err
		}
	}
	if err := p.raiseLowered(); err != nil {
		return "", err
	}
	var said []string
	for _, d := range p.report.Devices {
		if len(d.Addresses) == 0 {
			said = append(said, d.Name+" up, address to be leased")
			continue
		}
		said = append(said, d.Name+" up as "+strings.Join(d.Addresses, ", "))
	}
	if err := p.listen("init"); err != nil {
		return "", err
	}
	if err := p.startLinkd(ctx); err != nil {
		return "", err
	}
	return strings.Join(said, "; "), nil
}

// remotes are whom black has a route to: a handset's gateways, as the signed policy names them. A gateway answers whoever asks.
func (p *phone) remotes() []netip.Prefix {
	if p.policy.Role == manifest.RoleGateway {
		return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	}
	var all []netip.Prefix
	for _, g := range p.policy.Gateways {
		for _, a := range g.Addresses {
			all = append(all, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return all
}

// raiseLowered brings up every radio that is down.
func (p *phone) raiseLowered() error {
	for i := range p.report.Devices {
		d := &p.report.Devices[i]
		r, ok := p.known(d.Name)
		if d.Up || !ok {
			continue
		}
		if err := p.blackDo(func() error { return p.raise(r, d.Index) }); err != nil {
			return err
		}
		if d.Up = true; !r.dhcp {
			d.Addresses = []string{r.v4.String(), r.v6.String()}
		}
	}
	return nil
}

// raise gives a radio its addresses and brings it up.
func (p *phone) raise(r radio, index int) error {
	if !r.dhcp {
		return raiseFixed(r, p.remotes())
	}
	if d, ok := p.dynamic[r.name]; ok {
		return p.raiseAgain(r, d)
	}
	return p.raiseDynamic(r, index)
}

// own are the fixed addresses of a radio; none if it leases them.
func (r radio) own() []netip.Addr {
	if r.dhcp {
		return nil
	}
	return []netip.Addr{r.v4.Addr(), r.v6.Addr()}
}

// known returns the radio of that name on the command line.
func (p *phone) known(name string) (radio, bool) {
	for _, r := range p.radios {
		if r.name == name {
			return r, true
		}
	}
	return radio{}, false
}

// raiseFixed configures one radio in the calling thread's namespace. The address has no on-link prefix, and there is no default
// route: each remote is reached by the one next hop, whose link address is given, as on a point-to-point modem link. A radio
// that was taken down has kept some of it.
func raiseFixed(r radio, remotes []netip.Prefix) error {
	for _, a := range []netip.Addr{r.v4.Addr(), r.v6.Addr()} {
		if err := link.AddAddr(r.name, netip.PrefixFrom(a, a.BitLen())); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if err := link.SetUp(r.name); err != nil {
		return err
	}
	for _, via := range []netip.Addr{r.via4, r.via6} {
		if err := link.AddNeighbour(r.name, via, r.viaMAC); err != nil {
			return err
		}
		if err := link.AddRoute(link.Route{To: netip.PrefixFrom(via, via.BitLen()), Device: r.name}); err != nil {
			return err
		}
		for _, to := range remotes {
			if to.Addr().Is6() != via.Is6() {
				continue
			}
			if err := link.AddRoute(link.Route{To: to, Device: r.name, Via: via}); err != nil {
				return err
			}
		}
	}
	return nil
}

// lowerRadios takes every radio down: the last resort, and the first act on a difference.
func (p *phone) lowerRadios() error {
	var all error
	for i := range p.report.Devices {
		d := &p.report.Devices[i]
		if err := p.blackDo(func() error { return link.SetDown(d.Name) }); err != nil {
			all = errors.Join(all, err)
			continue
		}
		d.Up = false
	}
	return all
}

// sever takes the gate off every radio so that the floor alone holds. It needs no egressd.
func (p *phone) sever() error {
	p.severing = true
	p.tell()
	var all error
	for _, d := range p.report.Devices {
		all = errors.Join(all, p.blackDo(func() error { return enforce.Sever(d.Index) }))
	}
	p.severing, p.severed, p.opened = false, true, false
	p.tell()
	return all
}
