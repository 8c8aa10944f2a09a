package matrix

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// acceptedHeading begins the table in docs/known-limits.md.
const acceptedHeading = "## Rows of the leak matrix that leak"

// Acceptance is one line of the table: a row's ID, with * for any value of an
// axis, and why rows like it leak.
type Acceptance struct {
	Pattern string `json:"pattern"`
	Reason  string `json:"reason"`
}

// covers says whether a row is meant.
func (a Acceptance) covers(id string) bool {
	want, have := strings.Split(a.Pattern, "/"), strings.Split(id, "/")
	if len(want) != len(have) {
		return false
	}
	for i := range want {
		if want[i] != "*" && want[i] != have[i] {
			return false
		}
	}
	return true
}

// Accept reads the rows that are known to leak from the text of
// docs/known-limits.md: the table under its heading, an ID in the first column.
// A document without that table is refused: it has been renamed. So is a line
// that means no row.
func Accept(document string, daemons []string) ([]Acceptance, error) {
	_, part, found := strings.Cut(document, acceptedHeading+"\n")
	if !found {
		return nil, fmt.Errorf("cannot read the accepted rows: the document has no heading %q", acceptedHeading)
	}
	if end := strings.Index(part, "\n## "); end >= 0 {
		part = part[:end]
	}
	rows, _ := All(daemons)
	var accepted []Acceptance
	table := false
	for line := range strings.Lines(part) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) < 2 {
			return nil, fmt.Errorf("cannot read the accepted rows: %q is no row of a table", line)
		}
		a := Acceptance{strings.Trim(strings.TrimSpace(cells[0]), "`"), strings.TrimSpace(cells[1])}
		if a.Pattern == "row" || strings.Trim(a.Pattern, "-: ") == "" {
			table = true
			continue
		}
		switch {
		case a.Reason == "":
			return nil, fmt.Errorf("cannot accept row %q without a reason", a.Pattern)
		case slices.ContainsFunc(accepted, func(b Acceptance) bool { return a.Pattern == b.Pattern }):
			return nil, fmt.Errorf("cannot accept row %q twice", a.Pattern)
		case !slices.ContainsFunc(rows, func(r Row) bool { return a.covers(r.ID()) }):
			return nil, fmt.Errorf("cannot accept row %q: the matrix has no such row", a.Pattern)
		}
		accepted = append(accepted, a)
	}
	if !table {
		return nil, errors.New("cannot read the accepted rows: there is no table under the heading")
	}
	return accepted, nil
}

// acceptance returns the line that covers a row.
func acceptance(accepted []Acceptance, id string) (Acceptance, bool) {
	i := slices.IndexFunc(accepted, func(a Acceptance) bool { return a.covers(id) })
	if i < 0 {
		return Acceptance{}, false
	}
	return accepted[i], true
}
