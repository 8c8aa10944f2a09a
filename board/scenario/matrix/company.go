package matrix

import (
	"context"
	"errors"
	"fmt"
	"io"

	"rempart/board/scenario"
	"rempart/board/scenario/attack"
)

// company is the crowds of one moment: one for each place and each kind of
// sender's rights, since a process is in one place.
type company struct {
	ctx      context.Context
	board    Board
	byMarker map[string]int
	out      []told
	parts    []scenario.Process
	begun    []bool // the part has said that it is ready
}

// start runs the jobs of the attempts, which stand in the same order.
func (c *company) start(all []attempt, jobs []attack.Job) error {
	type where struct {
		place Place
		as    As
	}
	var order []where
	parts := map[where][]attack.Job{}
	for i, a := range all {
		// A person's process and root's are told apart by the job alone.
		w := where{a.row.Place, a.row.As}
		if w.as == User {
			w.as = Root
		}
		if parts[w] == nil {
			order = append(order, w)
		}
		parts[w] = append(parts[w], jobs[i])
	}
	for _, w := range order {
		p, err := c.board.Start(c.ctx, Crowd{Place: w.place, As: w.as, Jobs: parts[w]})
		if err != nil {
			return fmt.Errorf("cannot start the senders in %s: %w", w.place, err)
		}
		c.parts, c.begun = append(c.parts, p), append(c.begun, false)
	}
	return nil
}

// ready waits until every sender is at work, or over.
func (c *company) ready() error {
	for i, p := range c.parts {
		for !c.begun[i] {
			if err := c.line(i, p); err != nil {
				return fmt.Errorf("the senders did not start: %w", err)
			}
		}
	}
	return nil
}

func (c *company) stop() error {
	var errs []error
	for _, p := range c.parts {
		errs = append(errs, p.Stop())
	}
	return errors.Join(errs...)
}

// finish reads the senders' lines to their end.
func (c *company) finish() error {
	for i, p := range c.parts {
		for {
			err := c.line(i, p)
			if errors.Is(err, io.EOF) {
				if said := notEOF(err); said != nil {
					return said
				}
				break
			}
			if err != nil {
				return fmt.Errorf("cannot read the senders' results: %w", err)
			}
		}
	}
	return nil
}

// notEOF is what was joined to an io.EOF: what the process said on its standard error.
func notEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

func (c *company) line(i int, p scenario.Process) error {
	text, err := p.Line(c.ctx)
	if err != nil {
		return err
	}
	l, err := attack.ParseLine(text)
	if err != nil {
		return err
	}
	if l.Ready {
		c.begun[i] = true
		return nil
	}
	at, ok := c.byMarker[l.Marker]
	if !ok {
		return fmt.Errorf("a result for an attempt that nobody made: %q", l.Marker)
	}
	c.out[at].result = l.Result
	return nil
}

func (c *company) close() {
	for _, p := range c.parts {
		_ = p.Close() // its lines have said how it ended
	}
}
