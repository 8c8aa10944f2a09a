package scenario

import (
	"errors"
	"fmt"
	"slices"

	"rempart/board/scenario/watch"
)

// ReportVersion is the version of LeakReport's JSON. Fields are added, never
// renamed or given another meaning, within a version.
const ReportVersion = 1

// LeakReport is the result of the leak test, as `rempart-lab leaktest --json`
// prints it.
type LeakReport struct {
	Version int         `json:"version"`
	Passed  bool        `json:"passed"`
	Seconds float64     `json:"seconds"`
	Rows    []RowResult `json:"rows"`
	// Outside is what the stranger saw during the rows.
	Outside watch.Summary `json:"outside"`
	// Failures says in words what did not hold.
	Failures []string `json:"failures"`
}

// State is what a row shows.
type State string

// The states.
const (
	Held     State = "held"     // stopped here, and seen where nothing stops it
	Failed   State = "failed"   // leaked, or ended in a verdict that the row does not allow
	Unproven State = "unproven" // its twin did not leak, or had none
)

// RowResult is one row's end.
type RowResult struct {
	Name    string  `json:"name"`
	From    Where   `json:"from"`
	Kind    string  `json:"kind"`
	Family  string  `json:"family"`
	State   State   `json:"state"`
	Verdict Verdict `json:"verdict"`
	// Detail is the errno, the drop reason, or what went wrong.
	Detail string `json:"detail,omitempty"`
	// Sent is how many sends the handset's kernel accepted.
	Sent int `json:"sent"`
	// Seen is in how many frames on the internet link the marker was.
	Seen int `json:"seen"`
	// Strange counts frames of no admitted class during the row, whosever.
	Strange int `json:"strange"`
	// Layers stop the row.
	Layers []Layer `json:"layers"`
	// Twin is the same attempt without them.
	Twin TwinResult `json:"twin"`

	want []Verdict
}

// TwinResult is how the failing twin of a row ended; only leaked proves.
type TwinResult struct {
	Verdict  Verdict `json:"verdict,omitempty"`
	Detail   string  `json:"detail,omitempty"`
	Seen     int     `json:"seen"`
	Stripped []Layer `json:"stripped,omitempty"`
}

// settle gives the row its state.
func (r *RowResult) settle() {
	switch {
	case r.Seen > 0 || r.Strange > 0 || !slices.Contains(r.want, r.Verdict):
		r.State = Failed
	case r.Twin.Verdict != Leaked || r.Twin.Seen == 0:
		r.State = Unproven
	default:
		r.State = Held
	}
}

// finish settles all rows and the report.
func (l *LeakReport) finish(errs ...error) {
	l.Version, l.Failures = ReportVersion, []string{}
	for i := range l.Rows {
		r := &l.Rows[i]
		r.settle()
		switch {
		case r.State == Failed && r.Strange > 0 && r.Seen == 0:
			l.Failures = append(l.Failures, fmt.Sprintf("%s: %d frames outside the admitted classes", r.Name, r.Strange))
		case r.State == Failed:
			l.Failures = append(l.Failures, fmt.Sprintf("%s: %s (%s)", r.Name, r.Verdict, r.Detail))
		case r.State == Unproven:
			l.Failures = append(l.Failures, fmt.Sprintf("%s: unproven, the twin ended %q (%s)", r.Name, r.Twin.Verdict, r.Twin.Detail))
		}
	}
	if len(l.Rows) == 0 {
		l.Rows = []RowResult{}
		l.Failures = append(l.Failures, "no row was run")
	}
	for _, err := range append(errs, l.Outside.Check()) {
		if err != nil {
			l.Failures = append(l.Failures, err.Error())
		}
	}
	l.Passed = len(l.Failures) == 0
}

// Err returns what did not hold, nil when all did.
func (l *LeakReport) Err() error {
	if l.Passed {
		return nil
	}
	var errs []error
	for _, f := range l.Failures {
		errs = append(errs, errors.New(f))
	}
	return errors.Join(errs...)
}
