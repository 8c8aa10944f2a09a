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
	"rempart/vpn/watch"
)

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
	if p.watcher != nil {
		p.watcher.heard = time.Now() // nobody has listened during the boot
		p.progress.Store(mono())
		p.wake()
	}
	beat, last := time.NewTicker(watch.Beat), time.Now()
	defer beat.Stop()
	if p.sup.allUp() {
		p.release(ctx, again)
	}
	for {
		p.progress.Store(mono())
		select {
		case <-ctx.Done():
			return run.ErrStopped
		case d := <-p.sup.deaths:
			if err := p.died(d, again); err != nil {
				return err
			}
		case <-p.sup.stops:
			if !p.doubt("it was stopped", again) {
				continue
			}
		case name := <-again:
			p.restart(ctx, name, again)
		case w := <-wishes:
			w.reply <- p.grant(ctx, w)
		case d := <-devices:
			p.deviceChanged(ctx, d, again)
		case h := <-p.reports:
			if !p.hear(h, again) {
				continue // nothing to publish
			}
		case <-beat.C:
			p.expireLeases(ctx)
			since := time.Since(last) // not by the tick's own time: it may have waited for a long act
			if last = time.Now(); !p.beat(since) {
				continue
			}
		}
		p.publish()
	}
}

// died closes the phone first and thinks second. Without the watcher the radios go down before anything else.
func (p *phone) died(d death, again chan string) error {
	if d.name == "watchd" {
		p.closeWatcher()
		if err := p.lowerRadios(); err != nil {
			p.journal.Event(eventClose, "radios", journal.Failure, "reason", err.Error())
		}
	}
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
		if name == "linkd" {
			p.forgetLeases(ctx)
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
		ctx := context.Background()
		err := p.change(ctx, func(ctx context.Context) (egress.Status, error) { return p.gate.Table(ctx, egress.DenyAll()) })
		if err == nil {
			p.opened = false
			err = p.setLevels(ctx, p.levels.Closed())
		}
		if err == nil {
			p.tell()
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
	p.tell()
	p.journal.Event(eventEnd, "radios are down until a restart", journal.Failure, "reason", why)
}

// release lets tunneld ask for its gateway again, once every daemon runs, the watcher has read all back, and so has init. It
// raises the radios that are down.
func (p *phone) release(ctx context.Context, again chan string) {
	if p.lost != "" {
		p.report.Reason = p.lost
		return
	}
	if !p.watched() {
		p.report.Reason = "waiting for the watcher"
		return // it says when it has read all back
	}
	err := func() error {
		if p.severed {
			// The floor holds meanwhile: there is time.
			if err := p.attachGate(ctx); err != nil {
				return err
			}
		} else if err := errors.Join(p.readBack(egress.DenyAll()), p.readLevels()); err != nil {
			return err
		}
		if err := p.setLevels(ctx, p.levels); err != nil {
			return err
		}
		if err := p.readLevels(); err != nil {
			return err
		}
		// Behind the gate first: it still denies all, and what it will admit must be let through by all.
		release := func() error { return p.backstop.Release(p.table, uidTunneld) }
		if err := errors.Join(p.behindTheGate(release), p.readBackstop()); err != nil {
			return err
		}
		if err := p.raiseLowered(); err != nil {
			return err
		}
		p.report.Closed, p.opened = false, true
		if err := p.order(); err != nil {
			return err
		}
		return p.change(ctx, func(ctx context.Context) (egress.Status, error) { return p.gate.Table(ctx, p.table) })
	}()
	if err != nil {
		if p.severed && errors.Is(err, errHangs) {
			// What close does on a phone that is not severed.
			p.sup.signal(p.sup.daemon("egressd"), unix.SIGKILL)
		}
		p.close(err.Error())
		p.later(releasePause, "", again)
		return
	}
	p.report.Reason = ""
	p.journal.Event(eventOpen, "all daemons run", journal.Success)
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
