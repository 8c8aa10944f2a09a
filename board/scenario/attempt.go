package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"rempart/board/scenario/attack"
	"rempart/board/scenario/watch"
)

// sender is one running sender.
type sender struct {
	Process
	last    attack.Result
	results int // result lines so far, the one of the start not counted
}

// attempt starts the row's senders, lets its event happen, and collects what
// the senders and the handset's counters say.
func (w *world) attempt(ctx context.Context, row Row, markers *[]watch.Marker) (evidence, error) {
	e := evidence{from: row.From}
	var before Counters
	var berr error
	if w.last != nil {
		before = *w.last
	} else {
		before, berr = w.board.Counters(ctx)
	}
	w.last = nil
	var senders []*sender
	defer func() {
		for _, s := range senders {
			s.Close()
		}
	}()
	for _, f := range row.Family {
		m := newMarker()
		if err := w.watcher.Mark(watch.Marker(m)); err != nil {
			return e, err
		}
		*markers = append(*markers, watch.Marker(m))
		argv := append(append([]string(nil), w.Sender...), row.job(w.site, f, m).Args()...)
		p, err := w.board.Start(ctx, Command{Where: row.From, App: row.App, Argv: argv})
		if err != nil {
			return e, fmt.Errorf("cannot start the sender: %w", err)
		}
		senders = append(senders, &sender{Process: p})
	}
	if row.Event != None {
		for _, s := range senders {
			if err := s.started(ctx); err != nil {
				return e, err
			}
		}
		if err := w.happen(ctx, row); err != nil {
			return e, err
		}
		// A waiting hotplug sender ends by itself; stopping it early would
		// shorten the time in which it tries.
		if row.Event != HotPlug {
			for _, s := range senders {
				if err := s.Stop(); err != nil {
					return e, fmt.Errorf("cannot stop the sender: %w", err)
				}
			}
		}
	}
	for _, s := range senders {
		if err := s.finish(ctx); err != nil {
			return e, err
		}
		if s.results > 0 {
			e.results = append(e.results, s.last)
		} else {
			e.cut = true
		}
	}
	if e.cut && (row.Event == None || row.Event == HotPlug) {
		return e, errors.New("the sender ended without a result")
	}
	if row.Event == HotPlug {
		if err := w.board.Unplug(ctx, hotplugDevice); err != nil {
			return e, fmt.Errorf("cannot remove the new device: %w", err)
		}
	}
	after, aerr := w.board.Counters(ctx)
	// Counters of a handset that was restarted in between begin anew.
	e.counted = berr == nil && aerr == nil && row.Event != Restart && row.Event != KillInit && !e.cut
	e.before, e.after = before, after
	if e.counted && row.Event == None {
		w.last = &after
	}
	if row.Event == KillInit && !w.twin {
		// The next use of the handset finds it up again.
		if err := w.board.Restart(ctx); err != nil {
			return e, fmt.Errorf("cannot start the handset again: %w", err)
		}
		if err := w.board.WaitUp(ctx); err != nil {
			return e, fmt.Errorf("cannot wait for the handset: %w", err)
		}
	}
	return e, nil
}

// happen lets the row's event happen and waits until its effects are over.
func (w *world) happen(ctx context.Context, row Row) error {
	switch row.Event {
	case Kill:
		if err := w.board.KillDaemon(ctx, row.Daemon); err != nil {
			return fmt.Errorf("cannot kill %s: %w", row.Daemon, err)
		}
		if w.twin {
			// A stripped handset need not come up again.
			return sleep(ctx, orphanedSpan)
		}
		if err := w.board.WaitUp(ctx); err != nil {
			return fmt.Errorf("the handset did not recover from the death of %s: %w", row.Daemon, err)
		}
	case HotPlug:
		if err := w.board.HotPlug(ctx, hotplugDevice); err != nil {
			return fmt.Errorf("cannot plug in a device: %w", err)
		}
	case Restart:
		if err := w.board.Restart(ctx); err != nil {
			return fmt.Errorf("cannot restart the handset: %w", err)
		}
		if w.twin {
			return nil
		}
		if err := w.board.WaitUp(ctx); err != nil {
			return fmt.Errorf("the handset did not come up again: %w", err)
		}
	case KillInit:
		if err := w.board.KillInit(ctx); err != nil {
			return fmt.Errorf("cannot kill init: %w", err)
		}
		return sleep(ctx, orphanedSpan)
	}
	return nil
}

// sleep gives a sender time to send; nothing is concluded from its end.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// started waits for the line that says that the sender is at work.
func (s *sender) started(ctx context.Context) error {
	line, err := s.Line(ctx)
	if err != nil {
		return fmt.Errorf("the sender did not start: %w", err)
	}
	r, err := attack.ParseResult(line)
	if err != nil {
		return err
	}
	if !r.Started {
		// Refused before it could begin: that is its result.
		s.last, s.results = r, 1
	}
	return nil
}

// finish reads the sender's lines to their end.
func (s *sender) finish(ctx context.Context) error {
	for {
		line, err := s.Line(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot read the sender's result: %w", err)
		}
		r, err := attack.ParseResult(line)
		if err != nil {
			return err
		}
		if !r.Started {
			s.last, s.results = r, s.results+1
		}
	}
}
