package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	"rempart/internal/journal"
	"rempart/internal/sock"
	"rempart/vpn/egress"
	"rempart/vpn/enforce"
)

// Uids and cgroups of those who may ask for more than the status, and of watchd, which asks seldom.
const (
	uidInit       = 0
	cgroupInit    = "/init"
	uidTunneld    = 903
	cgroupTunneld = "/tunneld"
	uidWatchd     = 906
	cgroupWatchd  = "/watchd"
)

// allowed tells whether peer may ask for op.
func allowed(op egress.Op, peer sock.Peer) bool {
	fromInit, fromTunneld := peer.Is(uidInit, cgroupInit), peer.Is(uidTunneld, cgroupTunneld)
	switch op {
	case egress.OpTable, egress.OpAttach, egress.OpLink, egress.OpLevels:
		return fromInit
	case egress.OpAdmit:
		return fromTunneld
	case egress.OpClose:
		return fromInit || fromTunneld
	case egress.OpStatus, egress.OpDrops:
		return true
	}
	return false
}

// engine holds what may be admitted, what is, and on which devices.
//
// Invariant: every gate's policy is table.For(admitted), or deny-all; admitted is
// empty after any failure. Only while unsure a gate may hold an earlier policy.
//
// Programs are loaded under change and exchanged under mu, so an answer tells of one policy in force, and is not kept waiting
// by the kernel's verifier. What is below mu is written under both and read under either.
type engine struct {
	pinDir  string
	cgroup  string // the handset's, where the level hooks stand
	journal *journal.Journal
	options []enforce.Option

	change sync.Mutex
	unsure bool   // the last deny-all failed: a gate may still admit what it did
	taken  func() // tells tunneld that what it had admitted is not in force any more; nil for nobody

	mu       sync.Mutex
	table    egress.Policy
	admitted string
	changes  uint64 // replacements of the policy in force, tried or done
	gates    map[int]*enforce.Gate
	record   *enforce.Record // of what was dropped; nil before it is open
	levels   *enforce.Levels // nil before the hooks are attached
}

func newEngine(pinDir, cgroup string, j *journal.Journal, options ...enforce.Option) *engine {
	return &engine{pinDir: pinDir, cgroup: cgroup, journal: j, options: options, gates: map[int]*enforce.Gate{}}
}

// recover raises the level hooks and denies all on the devices of an earlier egressd. A device that is gone,
// or that init has not allowed us to touch yet, waits for init's attach.
func (e *engine) recover() {
	e.change.Lock()
	defer e.change.Unlock()
	// Without them init's read-back ends the boot: the reason is in the journal.
	_ = e.raiseLevels()
	indices, err := enforce.Pinned(e.pinDir)
	if err != nil {
		e.journal.Event(eventAttach, "pins", journal.Failure, "reason", err.Error())
		return
	}
	for _, ifindex := range indices {
		if err := e.attach(ifindex); err != nil {
			e.journal.Event(eventAttach, strconv.Itoa(ifindex), journal.Failure, "reason", err.Error())
		}
	}
}

// do answers one request. A change waits for the one before it, a question for none.
func (e *engine) do(peer sock.Peer, r egress.Request) egress.Status {
	if !allowed(r.Op, peer) {
		e.journal.Event(eventRefuse, peer.String(), journal.Refused, "op", r.Op.String())
		return e.status(fmt.Errorf("%v may not %v", peer, r.Op))
	}
	if r.Op == egress.OpStatus {
		return e.status(nil)
	}
	e.change.Lock()
	defer e.change.Unlock()
	was := e.admitted
	err := e.act(peer, r)
	if was != "" && e.admitted == "" && e.taken != nil && !peer.Is(uidTunneld, cgroupTunneld) {
		e.taken()
	}
	return e.status(err)
}

// act makes a change that peer may make.
func (e *engine) act(peer sock.Peer, r egress.Request) error {
	switch r.Op {
	case egress.OpTable:
		return e.setTable(r.Table)
	case egress.OpAttach:
		return e.attach(r.Ifindex)
	case egress.OpLevels:
		return e.setLevels(r.Levels)
	case egress.OpLink:
		return e.setLink(r.Ifindex, r.Link)
	case egress.OpAdmit:
		return e.admit(r.Gateway)
	case egress.OpClose:
		return e.deny("asked by " + peer.String())
	}
	return nil
}

// setTable replaces the table. What is admitted stays only if the new table has it
// unchanged: an empty table closes the gate and keeps it closed. Its answer is init's
// proof of that, so a close that failed before is done now or said to fail again.
func (e *engine) setTable(table egress.Policy) error {
	if e.unsure || e.admitted != "" && !table.For(e.admitted).Equal(e.table.For(e.admitted)) {
		if err := e.deny("the table changed"); err != nil {
			return err
		}
	}
	e.mu.Lock()
	e.table = table
	e.mu.Unlock()
	digest := table.Digest()
	e.journal.Event(eventTable, "init", journal.Success, "classes", strconv.Itoa(len(table.Classes)), "digest", hex.EncodeToString(digest[:8]))
	return nil
}

// attach puts the gate on a device, deny-all, and closes it on all others: with a
// new device tunneld has to ask again. A gate of ours that was severed, or whose
// device was made again, is attached anew.
func (e *engine) attach(ifindex int) error {
	if err := e.deny("a device is attached"); err != nil {
		return err
	}
	if old, ok := e.gates[ifindex]; ok {
		e.mu.Lock()
		delete(e.gates, ifindex)
		e.mu.Unlock()
		if err := old.Release(); err != nil {
			return err
		}
	}
	if len(e.gates) >= egress.MaxDevices {
		return fmt.Errorf("cannot put the gate on device %d: %d devices have it, the limit is %d", ifindex, len(e.gates), egress.MaxDevices)
	}
	g, err := enforce.Attach(ifindex, e.pinDir, e.options...)
	if err != nil {
		e.journal.Event(eventAttach, strconv.Itoa(ifindex), journal.Failure, "reason", err.Error())
		return err
	}
	e.mu.Lock()
	e.gates[ifindex] = g
	e.mu.Unlock()
	e.journal.Event(eventAttach, strconv.Itoa(ifindex), journal.Success, "hook", g.Hook().String())
	return nil
}

// setLink tells a device's gate the facts of its link. A gate that cannot take them denies all, and with it every other.
func (e *engine) setLink(ifindex int, facts egress.LinkFacts) error {
	g, ok := e.gates[ifindex]
	if !ok {
		return fmt.Errorf("device %d has no gate", ifindex)
	}
	if err := g.SetLink(facts); err != nil {
		e.journal.Event(eventLink, strconv.Itoa(ifindex), journal.Failure, "reason", err.Error())
		return errors.Join(err, e.deny("link facts were not taken"))
	}
	e.journal.Event(eventLink, strconv.Itoa(ifindex), journal.Success, "addr4", facts.Addr4.String(), "router4", facts.Router4.String(),
		"addr6", facts.Addr6.String(), "router6", facts.Router6.String())
	return nil
}

func (e *engine) admit(gateway string) error {
	p := e.table.For(gateway)
	if len(p.Classes) == 0 {
		e.journal.Event(eventRefuse, "gateway", journal.Refused, "op", "admit", "reason", "not in the table")
		return fmt.Errorf("gateway %q is not in the table", gateway)
	}
	if err := e.swap(p, gateway); err != nil {
		return errors.Join(err, e.deny("an admission failed"))
	}
	digest := p.Digest()
	e.journal.Event(eventSwap, gateway, journal.Success, "classes", strconv.Itoa(len(p.Classes)), "digest", hex.EncodeToString(digest[:8]))
	return nil
}

// deny closes every gate. Where that fails, as on a gate that init has severed, the
// gate is dropped from the list: it must be attached again to be of use.
func (e *engine) deny(reason string) error {
	was := e.admitted
	err := e.swap(egress.DenyAll(), "")
	e.unsure = err != nil
	outcome, text := journal.Success, ""
	if err != nil {
		outcome, text = journal.Failure, err.Error()
	}
	if was != "" || err != nil {
		e.journal.Event(eventClose, reason, outcome, "was", was, "reason", text)
	}
	return err
}

// swap loads policy p for every gate, then puts it in force on all of them at once for whoever asks.
func (e *engine) swap(p egress.Policy, admitted string) error {
	prepared := map[int]*enforce.Change{}
	var errs []error
	for _, ifindex := range e.devices() {
		c, err := e.gates[ifindex].Prepare(p)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		defer c.Close()
		prepared[ifindex] = c
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.changes++
	e.admitted = ""
	for _, ifindex := range slices.Sorted(maps.Keys(prepared)) {
		err := prepared[ifindex].Commit()
		if errors.Is(err, enforce.ErrDetached) {
			// Nothing of ours is on the device: the floor drops. No one is admitted
			// there until init attaches again, so deny-all is in force.
			errs = append(errs, e.gates[ifindex].Release())
			delete(e.gates, ifindex)
			if len(p.Classes) == 0 {
				err = nil
			}
		}
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	if err == nil {
		e.admitted = admitted
	}
	return err
}

func (e *engine) devices() []int { return slices.Sorted(maps.Keys(e.gates)) }

func (e *engine) status(err error) egress.Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := egress.Status{Admitted: e.admitted, Digest: e.table.For(e.admitted).Digest(), Changes: e.changes}
	if e.admitted == "" {
		s.Digest = egress.DenyAll().Digest()
	}
	err = errors.Join(err, e.levelStatus(&s))
	for _, ifindex := range e.devices() {
		c, cerr := e.gates[ifindex].Counters()
		err = errors.Join(err, cerr)
		s.Devices = append(s.Devices, egress.Device{Ifindex: ifindex, Hook: e.gates[ifindex].Hook(), Counters: c})
	}
	if err != nil {
		s.Err = err.Error()
	}
	return s
}

// stop denies all and lets go; the gates stay on their devices.
func (e *engine) stop() error {
	e.change.Lock()
	defer e.change.Unlock()
	err := errors.Join(e.deny("egressd stops"), e.leaveLevels())
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ifindex := range e.devices() {
		err = errors.Join(err, e.gates[ifindex].Release())
		delete(e.gates, ifindex)
	}
	return err
}
