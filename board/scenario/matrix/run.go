package matrix

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"rempart/board/scenario/hostile"
)

// Run runs the matrix.
type Run struct {
	// Board is the handset and Twin its throwaway twin, each in a world of its
	// own. Required.
	Board Board
	Twin  Twin
	// Rows to try, of [All]. Required.
	Rows []Row
	// Alone are the rows that each layer is tried against alone; nil for none.
	Alone []Row
	// Guest runs the attack table that needs another kernel, after the rest; nil
	// leaves it out. A row of it that did not come back ran nowhere.
	Guest func(context.Context) ([]hostile.Row, error)
	// Accepted are rows that are known to leak, with the reason.
	Accepted []Acceptance
	// Picked says that the rows were picked by hand: then accepted rows that did
	// not leak are no fault.
	Picked bool
	// Seed and Pairwise are told in the report.
	Seed     uint64
	Pairwise bool
	// Progress gets a line as each state ends; nil is silent.
	Progress func(string)
}

// Matrix tries every row and its twin. The report is complete also when rows
// fail, and says which; the error is for a matrix that could not be started.
func (m *Run) Matrix(ctx context.Context) (*Report, error) {
	began := time.Now()
	site := m.Board.Site()
	daemons := site.Daemons
	all, excluded := All(daemons)
	for _, r := range m.Rows {
		if !slices.Contains(all, r) {
			return nil, fmt.Errorf("cannot try row %s: it is none of the matrix", r.ID())
		}
	}
	report := &Report{Seed: m.Seed, Pairwise: m.Pairwise, Of: len(all), Axes: Axes(daemons), Excluded: excluded, Alone: []Alone{}}
	for _, r := range m.Rows {
		report.Rows = append(report.Rows, Result{ID: r.ID(), Row: r, Layers: stops(m.Twin.Layers(), r)})
	}
	handset, err := open(ctx, m.Board)
	if err != nil {
		return nil, fmt.Errorf("cannot watch the handset: %w", err)
	}
	twin, err := open(ctx, m.Twin)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot watch the twin: %w", err), handset.close())
	}
	// The twin is in a world of its own: it runs beside the handset.
	twins := make(chan []error)
	go func() {
		errs := m.states(ctx, twin, report, func(r *Result) *Try { return &r.Twin }, "twin    ")
		report.Alone = m.alone(ctx, twin, &errs)
		twins <- errs
	}()
	errs := m.states(ctx, handset, report, func(r *Result) *Try { return &r.Here }, "handset ")
	errs = append(errs, handset.end(ctx))
	// What a crowd of the twin said is said by its rows.
	twinErrs := <-twins
	// So is what its capture lacks: a frame of a twin that was not seen proves nothing.
	twinErrs = append(twinErrs, twin.end(ctx))
	for i := range report.Alone {
		a := &report.Alone[i]
		a.Holds = a.Try.Seen == 0
	}
	for of, l := range map[string]*lane{ofHandset: handset, ofTwin: twin} {
		s := l.watcher.Summary()
		report.Captures = append(report.Captures, Captured{Of: of, File: l.board.File(), Frames: s.Frames, Outside: s.Outside})
	}
	slices.SortFunc(report.Captures, func(a, b Captured) int { return cmp.Compare(a.Of, b.Of) })
	if m.Guest != nil {
		errs = append(errs, m.guest(ctx, report))
	}
	report.picked = m.Picked
	report.finish(m.Accepted, errs...)
	if !report.Passed {
		for _, err := range twinErrs {
			if err != nil {
				report.Failures = append(report.Failures, "twin: "+err.Error())
			}
		}
	}
	report.Seconds = time.Since(began).Seconds()
	return report, nil
}

// guest runs the attack table under another kernel.
func (m *Run) guest(ctx context.Context, report *Report) error {
	began := time.Now()
	rows, err := m.Guest(ctx)
	report.Guest = rows
	var errs []error
	for _, c := range hostile.Cells() {
		if !slices.ContainsFunc(rows, func(r hostile.Row) bool {
			return r.Kind == c.Kind && r.Privilege == c.Privilege && r.Family == c.Family
		}) {
			errs = append(errs, fmt.Errorf("%s as %s over IPv%d: ran nowhere; again: rempart-lab hostile --kinds %s", c.Kind, c.Privilege, c.Family, c.Kind))
		}
	}
	m.say("guest   %-16s %4d rows  (%.1f s)", "attack table", len(rows), time.Since(began).Seconds())
	return errors.Join(append(errs, err)...)
}

// states leads a lane through the states of the report's rows.
func (m *Run) states(ctx context.Context, l *lane, report *Report, half func(*Result) *Try, who string) []error {
	var errs []error
	for _, s := range States(m.Board.Site().Daemons) {
		var part []attempt
		for i := range report.Rows {
			if report.Rows[i].State == s {
				part = append(part, attempt{report.Rows[i].Row, half(&report.Rows[i])})
			}
		}
		if len(part) == 0 {
			continue
		}
		began := time.Now()
		errs = append(errs, l.state(ctx, s, part, nil)...)
		m.say(who+"%-16s %4d rows, %4d seen outside  (%.1f s)", s, len(part), leaked(part), time.Since(began).Seconds())
	}
	return errs
}

// alone tries each layer with all others removed.
func (m *Run) alone(ctx context.Context, l *lane, errs *[]error) []Alone {
	out := []Alone{}
	if len(m.Alone) == 0 {
		return out
	}
	for _, layer := range m.Twin.Layers() {
		began := time.Now()
		rows := slices.DeleteFunc(slices.Clone(m.Alone), func(r Row) bool { return !Applies(layer, r) })
		part := make([]Alone, len(rows))
		var all []attempt
		for i, r := range rows {
			part[i] = Alone{Layer: layer, ID: r.ID(), Sender: r.Sender, Place: r.Place, Expected: Holds(layer, r)}
			all = append(all, attempt{r, &part[i].Try})
		}
		*errs = append(*errs, l.state(ctx, Connected, all, Keeps(layer))...)
		m.say("alone   %-16s %4d rows, %4d seen outside  (%.1f s)", layer, len(all), leaked(all), time.Since(began).Seconds())
		out = append(out, part...)
	}
	return out
}

func leaked(all []attempt) (n int) {
	for _, a := range all {
		if a.try.Seen > 0 {
			n++
		}
	}
	return n
}

func (m *Run) say(format string, args ...any) {
	if m.Progress != nil {
		m.Progress(fmt.Sprintf(format, args...))
	}
}
