package main

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"rempart/boot/manifest"
	"rempart/boot/report"
	"rempart/internal/journal"
	"rempart/voice/port"
	"rempart/vpn/enforce/backstop"
	"rempart/vpn/enforce/nft"
)

// layBackstop closes every namespace by the layers that are not eBPF, before any device is in black: nft and the IPsec
// policies' default. A kernel that lacks one of them leaves the other layers; the report says so.
func (p *phone) layBackstop() error {
	b, err := backstop.Lay(map[string]backstop.Space{
		"init": {Place: backstop.Other, NS: p.own}, "void": {Place: backstop.Other, NS: p.void},
		"red": {Place: backstop.Red, NS: p.red}, "black": {Place: backstop.Black, NS: p.black},
	})
	if err != nil {
		return fmt.Errorf("cannot close the namespaces: %w", err)
	}
	p.backstop = b
	for _, l := range []backstop.Layer{backstop.NFT, backstop.XFRM} {
		outcome, reason := journal.Success, ""
		if err := b.Missing(l); err != nil {
			outcome, reason = journal.Failure, err.Error()
		}
		p.journal.Event(eventLayer, string(l), outcome, "reason", reason)
	}
	return p.readBackstop()
}

// openRed lets red speak with the tunnel's networks: a handset is called for sound and keys, a gateway serves calls and the
// directory and passes handset to handset what a call needs.
func (p *phone) openRed() error {
	network, ok := p.policy.Network(tunnelDevice)
	if !ok {
		return fmt.Errorf("cannot open red: the policy has no network %s", tunnelDevice)
	}
	voice := []nft.Port{{Protocol: unix.IPPROTO_UDP, Number: port.Sound}, {Protocol: unix.IPPROTO_TCP, Number: port.Keying}}
	if p.policy.Role == manifest.RoleGateway {
		services := []nft.Port{{Protocol: unix.IPPROTO_TCP, Number: port.Calls}, {Protocol: unix.IPPROTO_TCP, Number: port.Directory}}
		return p.behindTheGate(func() error { return p.backstop.Tunnel(tunnelDevice, network.Inner, services, voice) })
	}
	return p.behindTheGate(func() error { return p.backstop.Tunnel(tunnelDevice, network.Inner, voice, nil) })
}

// closeBackstop lets nothing through in black any more. It asks no daemon. If it fails the radios go down.
func (p *phone) closeBackstop() {
	if p.backstop == nil {
		return
	}
	if err := p.behindTheGate(p.backstop.Close); err != nil {
		p.journal.Event(eventClose, "backstop", journal.Failure, "reason", err.Error())
		if err := p.lowerRadios(); err != nil {
			p.journal.Event(eventClose, "radios", journal.Failure, "reason", err.Error())
		}
	}
}

// readBackstop compares both layers of every namespace with what they should be, and notes what was found.
func (p *phone) readBackstop() error {
	drops, err := p.backstop.Drops()
	if err != nil {
		return err
	}
	var all error
	var told []report.Layer
	for _, l := range []backstop.Layer{backstop.NFT, backstop.XFRM} {
		t := report.Layer{Name: string(l), State: p.backstop.State(l), InForce: p.backstop.Missing(l) == nil}
		if err := p.backstop.ReadBack(l); err != nil {
			t.InForce, t.State = false, err.Error()
			p.journal.Event(eventReread, string(l), journal.Failure, "reason", err.Error())
			all = errors.Join(all, err)
		}
		if l == backstop.NFT {
			t.Drops = drops
		}
		told = append(told, t)
	}
	p.report.Backstop = told
	return all
}
