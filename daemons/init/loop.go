package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/journal"
	"rempart/internal/run"
	"rempart/vpn/egress"
	"rempart/vpn/enforce"
)

// rereadEvery is how often the gate is compared with what it should be, beside every change.
const rereadEvery = 5 * time.Second

// askTimeout bounds one question to egressd; after it egressd counts as dead and the floor takes over.
const askTimeout = time.Second

// releasePause is how long a phone that could not be released waits for the next try.
const releasePause = 250 * time.Millisecond

// loop supervises until ctx ends (run.ErrStopped) or the handset must restart (errRestart).
func (p *phone) loop(ctx context.Context) error {
	wishes, err := p.serveWishes(ctx)
	if err != nil {
		return err
	}
	devices, err := p.watchDevices(ctx)
	if err != nil {
		return err
	}
	again := make(chan string, 16)
	tick := time.NewTicker(rereadEvery)
	defer tick.Stop()
	if p.sup.allUp() {
		p.release(ctx, again)
	}
	for {
		select {
		case <-ctx.Done():
			return run.ErrStopped
		case d := <-p.sup.deaths:
			if err := p.died(d, again); err != nil {
				return err
			}
		case name := <-again:
			p.restart(ctx, name, again)
		case w := <-wishes:
			w.reply <- p.grant(ctx, w)
			p.check(ctx, again)
		case d := <-devices:
			p.deviceChanged(d)
		case <-tick.C:
			p.expireLeases(ctx)
			p.check(ctx, again)
		}
		p.publish()
	}
}

// died closes the phone first and thinks second.
func (p *phone) died(d death, again chan string) error {
	p.close(d.name + " died: " + exitText(d.status))
	p.journal.Event(eventDeath, d.name, journal.Failure, "exit", exitText(d.status))
	if d.name == "keyd" {
		// Its boot secrets were opened once and are capped; only a new boot opens them again.
		return fmt.Errorf("%w: keyd ended (%s)", errRestart, exitText(d.status))
	}
	p.later(p.sup.daemon(d.name).nextPause(), d.name, again)
	return nil
}

func (p *phone) later(pause time.Duration, name string, again chan string) {
	time.AfterFunc(pause, func() { again <- name })
}

// restart starts a dead daemon again; "" only tries to release the phone again.
func (p *phone) restart(ctx context.Context, name string, again chan string) {
	if name != "" {
		if d := p.sup.daemon(name); p.sup.running(d) {
			return
		}
		if err := p.sup.start(name); err != nil {
			p.journal.Event(eventStart, name, journal.Failure, "reason", err.Error())
			p.later(longPause, name, again)
			return
		}
		if name == "egressd" && !p.sup.allUp() {
			p.reattach(ctx)
		}
	}
	if p.sup.allUp() {
		p.release(ctx, again)
	}
}

// reattach takes up with a new egressd while other daemons are down: these need the level table's rows to start. What fails
// here is tried again by release.
func (p *phone) reattach(ctx context.Context) {
	if err := p.attachGate(ctx); err != nil {
		p.journal.Event(eventClose, "egressd", journal.Failure, "reason", err.Error())
		p.close(err.Error())
	}
}

// close holds the phone at deny-all until release. It asks egressd, whose answer means that the kernel has it; if egressd
// does not answer, the gate is severed so that the floor alone holds; if that fails too, the radios go down.
func (p *phone) close(reason string) {
	p.report.Closed, p.report.Reason = true, reason
	p.journal.Event(eventClose, reason, journal.Success)
	p.closeBackstop()
	if p.gate == nil {
		return
	}
	if p.severed {
		p.holdFloor()
		return
	}
	if d := p.sup.daemon("egressd"); p.sup.running(d) {
		ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
		defer cancel()
		_, err := p.gate.Table(ctx, egress.DenyAll())
		if err == nil {
			err = p.setLevels(ctx, p.levels.Closed())
		}
		if err == nil {
			return
		}
		p.journal.Event(eventClose, "egressd", journal.Failure, "reason", err.Error())
		// It lives but does not do as told: it must not come back to life later and re-admit.
		p.sup.signal(d, unix.SIGKILL)
	}
	if err := p.sever(); err != nil {
		p.journal.Event(eventClose, "gate", journal.Failure, "reason", err.Error())
		if err := p.lowerRadios(); err != nil {
			p.journal.Event(eventClose, "radios", journal.Failure, "reason", err.Error())
		}
	}
}

// holdFloor reads back the floor of a severed phone: nothing else holds it. Without it the radios go down.
func (p *phone) holdFloor() {
	var all error
	for i := range p.report.Devices {
		d := &p.report.Devices[i]
		err := p.blackDo(func() error { return enforce.FloorInForce(d.Index) })
		if d.Floor = err == nil; err != nil {
			d.InForce, d.Gate = false, err.Error()
		}
		all = errors.Join(all, err)
	}
	if all = errors.Join(all, p.readBackstop()); all != nil {
		p.lose("the floor or what stands behind it is not what it should be: " + all.Error())
	}
}

// lose takes the radios down until a restart.
func (p *phone) lose(why string) {
	if err := p.lowerRadios(); err != nil {
		p.journal.Event(eventClose, "radios", journal.Failure, "reason", err.Error())
	}
	p.report.Closed, p.report.Reason = true, why
	if p.lost == why {
		return // said before
	}
	p.lost = why
	p.journal.Event(eventEnd, "radios are down until a restart", journal.Failure, "reason", why)
}

// release lets tunneld ask for its gateway again, once every daemon runs and the closed gate was read back.
func (p *phone) release(ctx context.Context, again chan string) {
	if p.lost != "" {
		p.report.Reason = p.lost
		return
	}
	err := func() error {
		if p.severed {
			// A new egressd loads all its programs before it answers. The floor holds meanwhile: there is time.
			if err := p.attachGate(ctx); err != nil {
				return err
			}
		} else if err := errors.Join(p.readBack(egress.DenyAll()), p.readLevels()); err != nil {
			return err
		}
		ask, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		if err := p.setLevels(ask, p.levels); err != nil {
			return err
		}
		if err := p.readLevels(); err != nil {
			return err
		}
		// Behind the gate first: it still denies all, and what it will admit must be let through by all.
		if err := errors.Join(p.backstop.Release(p.table, uidTunneld), p.readBackstop()); err != nil {
			return err
		}
		ask, cancel = context.WithTimeout(ctx, askTimeout)
		defer cancel()
		_, err := p.gate.Table(ask, p.table)
		return err
	}()
	if err != nil {
		p.close(err.Error())
		p.later(releasePause, "", again)
		return
	}
	p.report.Closed, p.report.Reason = false, ""
	p.journal.Event(eventOpen, "all daemons run", journal.Success)
}

// check reads back the gate against what egressd says is admitted, which must be a row of the signed table. On a difference
// the radios go down first. An egressd that does not answer is no difference: it is dead, and its death is about to be read,
// or it hangs, and close ends it.
func (p *phone) check(ctx context.Context, again chan string) {
	if p.severed {
		p.holdFloor()
		return
	}
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	err, silent := agreed(func() (egress.Status, error) { return p.gate.Status(ask) }, func(s egress.Status) error { return p.readBack(p.admitted(s)) })
	if silent != nil {
		if ctx.Err() == nil {
			p.close("egressd does not answer: " + silent.Error())
			p.later(releasePause, "", again)
		}
		return
	}
	if err == nil {
		err = p.readLevels()
	}
	if err == nil && p.guard != nil {
		if err = p.guard.ReadBack(); err != nil {
			p.report.Guard = err.Error()
		}
	}
	if err == nil || ctx.Err() != nil {
		return
	}
	why := "the gate, level hooks or guard are not what they should be: " + err.Error()
	p.lose(why)
	p.close(why)
}

// rereadTries bounds how often a policy that changes while it is read is read again. One that never holds still for as long
// as a reading takes cannot be vouched for.
const rereadTries = 20

// agreed reads what is in force and compares it with what egressd says. A swap between the answer and the reading is not a
// difference: then egressd's count of changes has moved on, and all is done again. silent is an egressd that does not answer.
func agreed(status func() (egress.Status, error), read func(egress.Status) error) (difference, silent error) {
	s, err := status()
	for range rereadTries {
		if err != nil {
			return nil, err
		}
		if difference = read(s); difference == nil {
			return nil, nil
		}
		was := s.Changes
		if s, err = status(); err == nil && s.Changes == was {
			return difference, nil
		}
	}
	return difference, nil
}

// admitted is what must be in force while egressd says s: nothing while the phone is closed.
func (p *phone) admitted(s egress.Status) egress.Policy {
	if p.report.Closed || s.Admitted == "" {
		return egress.DenyAll()
	}
	return p.table.For(s.Admitted)
}

// shutdown ends the phone in order: closed, daemons down (keyd last but one, so that the TPM is shut down cleanly), links down.
func (p *phone) shutdown(how string) {
	p.journal.Event(eventEnd, how, journal.Success)
	p.close("shutting down")
	p.sup.end(2 * time.Second)
	if p.black != nil {
		if err := p.lowerRadios(); err != nil {
			p.journal.Event(eventEnd, "radios", journal.Failure, "reason", err.Error())
		}
	}
	p.publish()
}
