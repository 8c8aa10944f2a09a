package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/journal"
	"rempart/internal/sandbox"
	"rempart/vpn/egress"
	"rempart/vpn/watch"
)

// sayTimeout bounds how long init waits for a watchd that does not read, watchPatience for its first read-back in a boot.
const (
	sayTimeout    = 200 * time.Millisecond
	watchPatience = 10 * time.Second
)

// watcher is init's end of watchd. One life of watchd has one.
type watcher struct {
	conn       *net.UnixConn
	theirs     *os.File    // until it is handed over
	generation uint32      // of the last orders
	awake      atomic.Bool // it is beaten for
	closed     atomic.Bool
	good       bool // it has read all back since it was started, and it is as it should be
	heard      time.Time
}

// heard is a report with the watcher that it came from: one of an earlier life is nobody's.
type heard struct {
	from *watcher
	watch.Report
}

// openWatcher makes the socket pair of the next watchd and returns what it is handed: its end, and the namespaces.
func (p *phone) openWatcher() ([]sandbox.Handed, error) {
	p.closeWatcher()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot reach watchd: %w", err)
	}
	ours := os.NewFile(uintptr(fds[0]), "watchd")
	defer ours.Close()
	w := &watcher{theirs: os.NewFile(uintptr(fds[1]), "init"), heard: time.Now()}
	c, err := net.FileConn(ours)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot reach watchd: %w", err), w.theirs.Close())
	}
	w.conn = c.(*net.UnixConn)
	p.watcher = w
	return []sandbox.Handed{{Name: "init", File: w.theirs}, {Name: "own", File: p.own.File()}, {Name: "red", File: p.red.File()}, {Name: "void", File: p.void.File()}}, nil
}

func (p *phone) closeWatcher() {
	w := p.watcher
	if w == nil {
		return
	}
	p.watcher = nil
	w.awake.Store(true) // so that who beats for it ends
	w.closed.Store(true)
	_ = w.conn.Close()   // a socket pair to a process that is dead
	_ = w.theirs.Close() // closed already, unless it was never started
}

// greetWatcher gives a watchd that was just started its first orders.
func (p *phone) greetWatcher() error {
	w := p.watcher
	_ = w.theirs.Close() // watchd has its own
	go func() {
		b := make([]byte, watch.MaxReport+1)
		for {
			n, err := w.conn.Read(b)
			if err != nil || n == 0 {
				return // its death is told by the kernel
			}
			r, err := watch.ParseReport(b[:n])
			if err != nil {
				// Not what watchd says: as good as silence, which the loop judges.
				p.journal.Event(eventWatch, "watchd", journal.Refused, "reason", err.Error())
				return
			}
			p.reports <- heard{w, r}
		}
	}()
	go p.beatFor(w)
	return p.order()
}

// stuckAfter is how long one act of the loop may take before init counts as hanging: above all bounds on what it asks.
const stuckAfter = 10 * time.Second

// beatFor tells a watchd that init lives, from its first read-back on and as long as the loop goes on. An init that is stopped
// or frozen stops here too.
func (p *phone) beatFor(w *watcher) {
	for {
		time.Sleep(watch.Beat)
		if !w.awake.Load() || mono()-p.progress.Load() > int64(stuckAfter) {
			continue
		}
		if w.say(watch.Orders{Beat: true}) != nil && w.closed.Load() {
			return
		}
	}
}

// order tells watchd what should be in force from now on. It comes before what loosens that, and after what tightens it.
func (p *phone) order() error {
	w := p.watcher
	if w == nil {
		return nil
	}
	w.generation++
	o := watch.Orders{Generation: w.generation, Closed: !p.opened, Severing: p.severing, Severed: p.severed, Down: p.lost != "", Table: p.table}
	for _, d := range p.report.Devices {
		o.Devices = append(o.Devices, watch.Device{Index: d.Index, Name: d.Name, Facts: p.facts(d.Name), Was: p.told[d.Name]})
	}
	if p.guard != nil {
		standing, err := p.guard.Standing()
		if err != nil {
			return err
		}
		if o.Guard, err = standing.Marshal(); err != nil {
			return err
		}
	}
	if p.backstop != nil && !p.changing {
		var err error
		if o.Behind, err = p.backstop.Standing().Marshal(); err != nil {
			return err
		}
	}
	if !p.severed && !p.severing && !p.levelsUnknown {
		var err error
		if o.Levels, err = p.levelsNow.Marshal(); err != nil {
			return err
		}
	}
	return w.say(o)
}

// behindTheGate changes nft and the IPsec policies. That takes several steps, so the watcher looks away meanwhile; the gate it
// goes on watching.
func (p *phone) behindTheGate(change func() error) error {
	p.changing = true
	p.tell()
	err := change()
	p.changing = false
	p.tell()
	return err
}

func (w *watcher) say(o watch.Orders) error {
	b, err := watch.MarshalOrders(o)
	if err != nil {
		return err
	}
	if err := w.conn.SetWriteDeadline(time.Now().Add(sayTimeout)); err != nil {
		return err
	}
	if _, err := w.conn.Write(b); err != nil {
		return fmt.Errorf("cannot tell watchd: %w", err)
	}
	return nil
}

// tell is order for those who cannot do anything about a watchd that does not read: it is dead or silent, and that closes.
func (p *phone) tell() {
	if err := p.order(); err != nil {
		p.journal.Event(eventWatch, "watchd", journal.Failure, "reason", err.Error())
	}
}

// startWatcher starts watchd and waits until it has read all back. No radio is up yet, and none comes up without it.
func (p *phone) startWatcher(ctx context.Context) (string, error) {
	if err := p.sup.start("watchd"); err != nil {
		return "", err
	}
	limit := time.After(watchPatience)
	for {
		select {
		case h := <-p.reports:
			switch {
			case h.from != p.watcher:
			case h.Kind == watch.Good:
				p.watcher.good = true
				return "watchd reads all back by itself; radios come up only while it does", nil
			case h.Kind == watch.Difference:
				return "", errors.New(h.Text)
			}
		case <-limit:
			return "", errors.New("watchd has read nothing back")
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// watched tells whether a watchd runs that has read everything back.
func (p *phone) watched() bool { return p.watcher != nil && p.watcher.good }

// hear acts on what watchd says. It tells whether anything changed.
func (p *phone) hear(h heard, again chan string) bool {
	if h.from != p.watcher {
		return false
	}
	p.watcher.heard = time.Now()
	switch h.Kind {
	case watch.Good:
		for i := range p.report.Devices {
			p.report.Devices[i].ReadNS = mono()
		}
		if h.Generation == p.watcher.generation && !p.watcher.good {
			p.watcher.good = true
			p.wake()
			p.journal.Event(eventWatch, "watchd", journal.Success, "generation", fmt.Sprint(h.Generation))
			p.later(0, "", again)
		}
	case watch.Difference:
		// The radios are down already.
		p.lose("the watcher: " + h.Text)
		p.close(p.lost)
		p.inspect()
	case watch.NoAnswer:
		return p.doubt(h.Text, again)
	case watch.Silent:
		// Init was stopped. What happened meanwhile is not known, but the radios were down.
		p.lower("init was silent")
		p.later(0, "", again)
	case watch.Alive:
		return false
	}
	return true
}

// wake begins to beat for watchd: from now on it judges init's silence.
func (p *phone) wake() {
	p.watcher.awake.Store(true)
	if err := p.watcher.say(watch.Orders{Beat: true}); err != nil {
		p.journal.Event(eventWatch, "watchd", journal.Failure, "reason", err.Error())
	}
}

// beat takes the radios down if watchd is silent.
func (p *phone) beat(since time.Duration) (changed bool) {
	w := p.watcher
	if w == nil {
		return false
	}
	if since > watch.Silence {
		w.heard = time.Now() // init itself was stopped, or the machine was
	}
	if time.Since(w.heard) <= watch.Silence {
		return false
	}
	p.lower("watchd is silent")
	p.closeWatcher()
	// It is started again when its death is read.
	p.sup.signal(p.sup.daemon("watchd"), unix.SIGKILL)
	return true
}

// lower closes the phone with the radios down. They come up again with the release.
func (p *phone) lower(why string) {
	if err := p.lowerRadios(); err != nil {
		p.journal.Event(eventClose, "radios", journal.Failure, "reason", err.Error())
	}
	p.close(why)
}

// inspect fills the report with what init itself sees on a phone that watchd found wanting.
func (p *phone) inspect() {
	if p.severed {
		p.holdFloor()
		return
	}
	_ = p.readBack(egress.DenyAll()) // it writes each difference into the report
	if p.guard != nil {
		if err := p.guard.ReadBack(); err != nil {
			p.report.Guard = err.Error()
		}
	}
}
