package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/journal"
	"rempart/vpn/egress"
	"rempart/vpn/egress/ask"
)

// How long egressd may take. It tells its status from what it knows, also while it loads programs, so a second without an answer
// is a process that does not run. A change takes it a load of two programs for each radio, some tens of milliseconds each on an
// idle machine: the limit is for a machine that is not.
const (
	askTimeout  = time.Second     // for its status
	loadTimeout = 5 * time.Second // for a change, and for the first answer of a new one, which loads all before it answers
	pulseEvery  = 250 * time.Millisecond
)

// errHangs says that egressd does not even tell its status.
var errHangs = errors.New("egressd does not answer")

// connect takes up with the egressd that runs now: one connection for changes, one to ask whether it lives meanwhile.
func (p *phone) connect(ctx context.Context) error {
	var clients [2]*ask.Client
	for i := range clients {
		var err error
		if clients[i], err = ask.Dial(filepath.Join(runDir, "egressd.sock")); err != nil {
			return err
		}
	}
	for _, old := range []*ask.Client{p.gate, p.pulse} {
		if old != nil {
			if err := old.Close(); err != nil {
				p.journal.Event("gate.connection", "egressd", journal.Failure, "reason", err.Error())
			}
		}
	}
	p.gate, p.pulse = clients[0], clients[1]
	defer func() { p.progress.Store(mono()) }()
	return p.lives(ctx, loadTimeout)
}

// lives asks egressd for its status.
func (p *phone) lives(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := p.pulse.Status(ctx)
	if _, refused := errors.AsType[*ask.RefusedError](err); err == nil || refused {
		return nil
	}
	return fmt.Errorf("%w: %w", errHangs, err)
}

// change has egressd do what it loads programs for. It may take its time as long as it tells its status meanwhile.
func (p *phone) change(ctx context.Context, do func(context.Context) (egress.Status, error)) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	done, hangs := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-done:
				hangs <- nil
				return
			case <-time.After(pulseEvery):
			}
			// Not until done: an answer that nobody waits for would end the connection.
			if err := p.lives(context.Background(), askTimeout); err != nil {
				cancel()
				hangs <- err
				return
			}
		}
	}()
	_, err := do(ctx)
	close(done)
	if hung := <-hangs; hung != nil {
		return hung
	}
	p.progress.Store(mono())
	return err
}

// doubt asks an egressd that someone found hanging once more, and ends it if it does not answer: it must not come back to life
// later and re-admit.
func (p *phone) doubt(why string, again chan string) bool {
	d := p.sup.daemon("egressd")
	if p.report.Closed || !p.sup.running(d) || p.lives(context.Background(), askTimeout) == nil {
		return false
	}
	p.sup.signal(d, unix.SIGKILL)
	p.close(errHangs.Error() + ": " + why)
	p.later(releasePause, "", again)
	return true
}
