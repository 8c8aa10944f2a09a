package main

import (
	"context"
	"fmt"

	"rempart/internal/journal"
	"rempart/internal/run"
)

// step is one named phase of the boot.
type step struct {
	name string
	do   func(ctx context.Context) (detail string, err error)
}

// flow is the boot, in order (DESIGN.md §4). A step that fails stops the boot: no later step runs, so no link ever comes up
// before everything above it holds.
//
// DO NOT REARRANGE: locking needs no secret and comes before anything that can think; the policy is read behind the closed
// gate; no device is brought up before its floor and gate were read back and the policy was verified.
func (p *phone) flow() []step {
	return []step{
		{"colours", p.makeColours},    // cgroups; the red, black and void namespaces; kernel chatter off
		{"guard", p.installGuard},     // nobody but the supervisors opens packet sockets or gets a packet out of a new device
		{"floor", p.layFloor},         // radios to black, down; a drop-all classifier on each, both directions
		{"gate", p.raiseGate},         // egressd measured and started; deny-all attached, pinned; read back here
		{"policy", p.readPolicy},      // signature, floor; measured; egressd learns its classes only when every daemon runs
		{"measure", p.measureRest},    // every later program, before any of them runs
		{"watcher", p.startWatcher},   // watchd, who enforces nothing, reads all back; without it no radio comes up
		{"keystore", p.handOver},      // keyd gets the TPM, init keeps nothing
		{"radios", p.raiseRadios},     // addresses and up, behind the closed gate
		{"tunnel", p.startTunnel},     // wg0 in red, its descriptor to tunneld
		{"applications", p.startApps}, // voiced, or gatewayd
	}
}

// boot runs the flow.
func (p *phone) boot(ctx context.Context) error {
	for _, s := range p.flow() {
		i := p.report.begin(s.name)
		p.publish()
		detail, err := s.do(ctx)
		p.report.end(i, detail, err)
		if err != nil {
			p.report.Closed, p.report.Reason = true, fmt.Sprintf("boot stopped at %s: %v", s.name, err)
			p.journal.Event(eventStep, s.name, journal.Failure, "reason", err.Error())
			p.publish()
			return run.Hint(fmt.Errorf("cannot boot past step %q: %w", s.name, err), "%s; %s", p.links(), hintFor(err))
		}
		p.journal.Event(eventStep, s.name, journal.Success, "detail", detail)
	}
	p.report.ReadyNS = mono()
	p.publish()
	return nil
}

// links says in words what a stopped boot leaves: shutdown takes down whatever is up.
func (p *phone) links() string {
	for _, d := range p.report.Devices {
		if d.Up {
			return "every link is taken down again"
		}
	}
	return "no link was brought up"
}

// hintFor tells what a person can do about a stopped boot.
func hintFor(err error) string {
	if h := run.HintOf(err); h != "" {
		return h
	}
	return "mend the cause and start the handset again"
}
