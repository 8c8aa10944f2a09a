package matrix

import (
	"errors"
	"fmt"

	"rempart/board/scenario"
	"rempart/board/scenario/hostile"
)

// ReportVersion is the version of Report's JSON. Fields are added, never renamed
// or given another meaning, within a version.
const ReportVersion = 1

// Status is what a row shows.
type Status string

// The statuses.
const (
	Held     Status = "held"     // stopped here, and seen where nothing stops it
	Failed   Status = "failed"   // leaked, or ended in a verdict that proves nothing
	Unproven Status = "unproven" // its twin did not leak
	Accepted Status = "accepted" // leaks, as docs/known-limits.md says that it does
	Nowhere  Status = "nowhere"  // no kernel at hand could run it
)

// good says that a row needs no one's attention.
func (s Status) good() bool { return s == Held || s == Accepted }

// Result is one row's end.
type Result struct {
	ID string `json:"id"`
	Row
	Status Status `json:"status"`
	// Layers stop the row, each of them alone.
	Layers []scenario.Layer `json:"layers"`
	Here   Try              `json:"here"`
	Twin   Try              `json:"twin"`
	// Reason is that of an accepted row.
	Reason string `json:"reason,omitempty"`
}

// settle gives the row its status.
func (r *Result) settle(accepted []Acceptance) {
	a, known := acceptance(accepted, r.ID)
	switch {
	case r.Here.Seen > 0 && known:
		r.Status, r.Reason = Accepted, a.Reason
	case r.Here.Ran == "" || r.Twin.lacks() && r.Here.Seen == 0:
		r.Status = Nowhere
	case r.Here.Seen > 0 || r.Here.Verdict == scenario.Leaked || r.Here.Verdict == scenario.Broken || r.Here.Verdict == "":
		r.Status = Failed
	case r.Twin.Seen == 0:
		r.Status = Unproven
	default:
		r.Status = Held
	}
}

// problem says what is wrong with a row that is not good, and where to look.
func (r *Result) problem(handset, twin string) string {
	at := func(t Try, file string) string {
		text := fmt.Sprintf("%s (%s), marker %s", t.Verdict, t.Detail, t.Marker)
		if t.Frame > 0 {
			text += fmt.Sprintf(", frame %d of %s: %s", t.Frame, file, t.What)
		}
		return text
	}
	again := fmt.Sprintf("; again: rempart-lab leakmatrix --row %s", r.ID)
	switch r.Status {
	case Failed:
		return fmt.Sprintf("%s: %s%s", r.ID, at(r.Here, handset), again)
	case Unproven:
		return fmt.Sprintf("%s: unproven, its twin ended %s%s", r.ID, at(r.Twin, twin), again)
	case Nowhere:
		return fmt.Sprintf("%s: ran nowhere, this kernel does not have it (%s)%s", r.ID, r.Twin.Detail, again)
	}
	return ""
}

// Alone is one layer with all others removed, against one way to send.
type Alone struct {
	Layer  scenario.Layer `json:"layer"`
	ID     string         `json:"id"`
	Sender string         `json:"sender"`
	Place  Place          `json:"place"`
	// Holds is whether nothing was seen outside; Expected, what [Holds] says.
	Holds    bool `json:"holds"`
	Expected bool `json:"expected"`
	Try      Try  `json:"try"`
}

// Captured is one continuous capture.
type Captured struct {
	Of     string `json:"of"` // "handset" or "twin"
	File   string `json:"file"`
	Frames int    `json:"frames"`
	// Outside counts frames of no admitted class: none for the handset, the
	// leaks for a twin.
	Outside int `json:"outside"`
}

// Whose capture it is.
const (
	ofHandset = "handset"
	ofTwin    = "twin"
)

// Report is the result of the matrix.
type Report struct {
	Version int     `json:"version"`
	Passed  bool    `json:"passed"`
	Seconds float64 `json:"seconds"`
	// Seed and Of say of which rows these are a part: Of is how many make sense.
	Seed     uint64   `json:"seed"`
	Pairwise bool     `json:"pairwise"`
	Of       int      `json:"of"`
	Axes     []Axis   `json:"axes"`
	Excluded []Rule   `json:"excluded"`
	Rows     []Result `json:"rows"`
	Alone    []Alone  `json:"alone"`
	// Guest are the rows that another kernel ran: the attack table of kernel
	// tunnels, redirects and thefts. A part of the matrix has none.
	Guest    []hostile.Row `json:"guest,omitempty"`
	Captures []Captured    `json:"captures"`
	Failures []string      `json:"failures"`

	picked bool // the rows were picked by hand
}

// Counts returns how many rows have each status.
func (r *Report) Counts() map[Status]int {
	n := map[Status]int{}
	for _, row := range r.Rows {
		n[row.Status]++
	}
	return n
}

// finish settles all rows and the report.
func (r *Report) finish(accepted []Acceptance, errs ...error) {
	r.Version, r.Failures = ReportVersion, []string{}
	files := map[string]string{}
	for _, c := range r.Captures {
		files[c.Of] = c.File
	}
	for i := range r.Rows {
		row := &r.Rows[i]
		row.settle(accepted)
		if !row.Status.good() {
			r.Failures = append(r.Failures, row.problem(files[ofHandset], files[ofTwin]))
		}
	}
	for _, a := range accepted {
		if !r.picked && r.struck(a) {
			r.Failures = append(r.Failures, fmt.Sprintf("%s: is among the accepted rows and did not leak: strike it from docs/known-limits.md", a.Pattern))
		}
	}
	for _, a := range r.Alone {
		if a.Holds != a.Expected || a.Try.Verdict == scenario.Broken {
			word := map[bool]string{true: "to hold", false: "to leak"}
			r.Failures = append(r.Failures, fmt.Sprintf("%s alone, %s: expected %s, and it ended %s (%s), marker %s", a.Layer, a.ID, word[a.Expected],
				a.Try.Verdict, a.Try.Detail, a.Try.Marker))
		}
	}
	for _, g := range r.Guest {
		if !g.Held {
			r.Failures = append(r.Failures, fmt.Sprintf("%s in %s: %s; again: rempart-lab hostile --kinds %s", g.Name, g.Where, g.Why, g.Kind))
		}
	}
	if len(r.Rows) == 0 {
		r.Rows = []Result{}
		r.Failures = append(r.Failures, "no row was run")
	}
	for _, err := range errs {
		if err != nil {
			r.Failures = append(r.Failures, err.Error())
		}
	}
	r.Passed = len(r.Failures) == 0
}

// struck says that rows which an acceptance covers were tried, and none leaked.
func (r *Report) struck(a Acceptance) bool {
	tried := false
	for _, row := range r.Rows {
		if !a.covers(row.ID) || row.Here.Ran == "" {
			continue
		}
		if row.Here.Seen > 0 {
			return false
		}
		tried = true
	}
	return tried
}

// Err returns what did not hold, nil when all did.
func (r *Report) Err() error {
	if r.Passed {
		return nil
	}
	var errs []error
	for _, f := range r.Failures {
		errs = append(errs, errors.New(f))
	}
	return errors.Join(errs...)
}
