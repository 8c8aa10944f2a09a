package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/journal"
	"rempart/internal/link"
	"rempart/internal/run"
	"rempart/internal/sandbox/guard"
	"rempart/vpn/egress"
	"rempart/vpn/egress/ask"
	"rempart/vpn/enforce/backstop"
	"rempart/vpn/watch"
)

// How often is looked without a notice, how soon after an egressd that did not answer, and how soon after a look at all: notices
// come in swarms, and whoever makes them shall not keep the watcher busy.
const (
	lookEvery  = 5 * time.Second
	lookAgain  = 250 * time.Millisecond
	lookPause  = 50 * time.Millisecond
	askTimeout = time.Second
)

// askEvery is how often egressd is asked when nothing else asks for that. The bound is that of its wakeups, two a minute: one
// question is 5 to 30 wakeups of its threads (make bench). What hangs that long changes nothing: what it left in force is held
// against the signed table at each look, and whoever needs it, as init and tunneld, asks it and waits no longer than that takes.
const askEvery = 15 * time.Minute

// watcher is one loop over poll: nothing in it runs at the same time as anything else.
type watcher struct {
	supervisor int // init's end is a SOCK_SEQPACKET
	stop       int // readable when it is time to end
	egressd    string
	journal    *journal.Journal
	notices    []int
	spaces     []space // beside black, where it lives

	ask      *ask.Client   // nil: dial
	answer   egress.Status // egressd's last
	askNext  time.Time     // when it is no longer taken for what egressd would say
	every    time.Duration // askEvery
	orders   watch.Orders
	ordered  bool // orders have come
	fresh    bool // orders that no look was under yet
	guard    *guard.Standing
	behind   *backstop.Standing
	levels   *egress.LevelTable
	tunnel   string                 // red's device, as init said last
	strange  map[stranger]time.Time // since when
	patience time.Duration          // with a stranger
	programs []uint32               // ids of our programs, as the look under way found them
	heard    time.Time              // init's last word; zero before its first beat: until then it boots, behind a closed gate
	silent   bool                   // the radios were taken down for init's silence
	state    string                 // of the last look, for the journal
	beaten   time.Time              // the last sign of life
}

// space is another namespace of the handset.
type space struct {
	name  string
	place backstop.Place
	ns    *link.NS
}

// newWatcher makes a watcher that ends with ctx.
func newWatcher(ctx context.Context, supervisor int, egressd string, j *journal.Journal) (*watcher, error) {
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("cannot wait for the end: %w", err)
	}
	context.AfterFunc(ctx, func() {
		// It cannot fail but by overflow, and is done once.
		_, _ = unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	return &watcher{supervisor: supervisor, stop: stop, egressd: egressd, journal: j, patience: takenDown, every: askEvery}, nil
}

// listen opens the notices of the calling thread's namespace.
func (w *watcher) listen() error {
	fds, err := link.Notices()
	w.notices = append(w.notices, fds...)
	return err
}

// await waits for the first orders.
func (w *watcher) await(ctx context.Context) error {
	for !w.ordered {
		if ctx.Err() != nil {
			return run.ErrStopped
		}
		if err := w.poll(nil, watch.Beat); err != nil {
			return err
		}
		if err := w.obey(); err != nil {
			return err
		}
	}
	return nil
}

// run watches until ctx ends (run.ErrStopped) or init is gone, which takes the radios down.
func (w *watcher) run(ctx context.Context) error {
	var look, pause time.Time
	for ctx.Err() == nil {
		next := w.beaten.Add(watch.Beat)
		if look.Before(next) {
			next = look
		}
		if err := w.poll(w.notices, time.Until(next)); err != nil {
			return err
		}
		changed := false
		for _, fd := range w.notices {
			heard, err := link.Heard(fd)
			if err != nil {
				return err
			}
			changed = changed || heard
		}
		if err := w.obey(); err != nil {
			w.lower()
			return err
		}
		now := time.Now()
		w.listenToInit(now)
		if changed || w.fresh {
			look = now
			if pause.After(now) {
				look = pause
			}
		}
		if !look.After(now) {
			look = now.Add(w.look(ctx))
			pause = time.Now().Add(lookPause)
		}
		if err := w.beat(); err != nil {
			return err
		}
	}
	return run.ErrStopped
}

// beat says that this loop lives, when that is due. A look on a busy machine may take longer than a beat, so it is called
// between its parts; a part that does not end is silence.
func (w *watcher) beat() error {
	if time.Since(w.beaten) < watch.Beat {
		return nil
	}
	w.beaten = time.Now()
	return w.say(watch.Report{Kind: watch.Alive})
}

// poll waits until init or one of fds has something to say, at most for limit.
func (w *watcher) poll(fds []int, limit time.Duration) error {
	set := []unix.PollFd{{Fd: int32(w.supervisor), Events: unix.POLLIN}, {Fd: int32(w.stop), Events: unix.POLLIN}}
	for _, fd := range fds {
		set = append(set, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	// Rounded up: a wait that ends just before its time is followed by one of 0.
	ms := int(max(limit+time.Millisecond-1, 0) / time.Millisecond)
	if _, err := unix.Poll(set, ms); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("cannot wait: %w", err)
	}
	return nil
}

// obey takes all that init has said. io.EOF: init is gone.
func (w *watcher) obey() error {
	b := make([]byte, watch.MaxOrders+1)
	for {
		n, _, err := unix.Recvfrom(w.supervisor, b, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("cannot hear init: %w", err)
		case n == 0:
			return fmt.Errorf("cannot hear init: %w", io.EOF)
		}
		o, err := watch.ParseOrders(b[:n])
		if err != nil {
			return err
		}
		if o.Beat {
			w.heard = time.Now()
			continue
		}
		w.guard = nil
		if len(o.Guard) > 0 {
			standing, err := guard.ParseStanding(o.Guard)
			if err != nil {
				return err
			}
			w.guard = &standing
		}
		w.behind = nil
		if len(o.Behind) > 0 {
			standing, err := backstop.ParseStanding(o.Behind)
			if err != nil {
				return err
			}
			w.behind, w.tunnel = &standing, standing.Wanted.Tunnel
		}
		w.levels = nil
		if len(o.Levels) > 0 {
			table, err := egress.ParseLevelTable(o.Levels)
			if err != nil {
				return err
			}
			w.levels = &table
		}
		w.orders, w.ordered, w.fresh = o, true, true
		if !w.heard.IsZero() {
			w.heard = time.Now()
		}
	}
}

// listenToInit takes the radios down when init has been silent for too long.
func (w *watcher) listenToInit(now time.Time) {
	if w.heard.IsZero() || now.Sub(w.heard) <= watch.Silence {
		w.silent = false
		return
	}
	w.lower()
	if w.silent {
		return
	}
	w.silent = true
	w.journal.Event(eventSilence, "init", journal.Failure, "for", now.Sub(w.heard).Round(time.Millisecond).String())
	// Init reads it when it lives again. That it cannot be said now is no news.
	_ = w.say(watch.Report{Kind: watch.Silent, Generation: w.orders.Generation})
}

// look compares once and says what it saw. It returns how long until the next look without a cause.
func (w *watcher) look(ctx context.Context) time.Duration {
	var difference, noAnswer error
	for {
		w.fresh = false
		if w.orders.Down {
			w.lower()
			return lookEvery
		}
		difference, noAnswer = w.compare(ctx)
		if difference == nil || ctx.Err() != nil {
			break
		}
		// What init did meanwhile is no difference: its orders were sent before it did it.
		if err := w.obey(); err != nil || !w.fresh {
			break
		}
	}
	report, again := watch.Report{Kind: watch.Good, Generation: w.orders.Generation}, lookEvery
	switch {
	case ctx.Err() != nil:
		return lookEvery
	case difference != nil:
		w.lower()
		report.Kind, report.Text = watch.Difference, difference.Error()
		w.became(eventDifference, journal.Failure, report.Text)
	case noAnswer != nil:
		report.Kind, report.Text, again = watch.NoAnswer, noAnswer.Error(), lookAgain
		w.became(eventNoAnswer, journal.Failure, report.Text)
	default:
		w.became(eventGood, journal.Success, "")
	}
	if len(w.strange) > 0 {
		again = lookAgain
	}
	if err := w.say(report); err != nil {
		w.journal.Event(eventSilence, "init", journal.Failure, "reason", err.Error())
	}
	return again
}

// became journals what a look saw, once.
func (w *watcher) became(id journal.ID, outcome journal.Outcome, why string) {
	state := string(id) + why
	if w.state == state {
		return
	}
	w.state = state
	w.journal.Event(id, fmt.Sprint(len(w.orders.Devices))+" devices", outcome, "reason", why)
}

// say sends init a report. It never waits: an init that does not read is silent, and that is judged elsewhere.
func (w *watcher) say(r watch.Report) error {
	b, err := watch.MarshalReport(r)
	if err != nil {
		return err
	}
	if err := unix.Sendto(w.supervisor, b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil); err != nil && !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("cannot tell init: %w", err)
	}
	return nil
}
