package matrix

import (
	"errors"
	"fmt"
	"strings"
)

// acceptedHeading begins the table in docs/known-limits.md.
const acceptedHeading = "## Rows of the leak matrix that leak"

// Accept reads the rows that are known to leak, with the reason of each, from the
// text of docs/known-limits.md: the table under its heading, a row's ID in the
// first column. A document without that table is refused: it has been renamed.
func Accept(document string, daemons []string) (map[string]string, error) {
	_, part, found := strings.Cut(document, acceptedHeading+"\n")
	if !found {
		return nil, fmt.Errorf("cannot read the accepted rows: the document has no heading %q", acceptedHeading)
	}
	if end := strings.Index(part, "\n## "); end >= 0 {
		part = part[:end]
	}
	known := map[string]bool{}
	rows, _ := All(daemons)
	for _, r := range rows {
		known[r.ID()] = true
	}
	accepted := map[string]string{}
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
		id, reason := strings.Trim(strings.TrimSpace(cells[0]), "`"), strings.TrimSpace(cells[1])
		if id == "row" || strings.Trim(id, "-: ") == "" {
			table = true
			continue
		}
		if !known[id] {
			return nil, fmt.Errorf("cannot accept row %q: the matrix has no such row", id)
		}
		if reason == "" || accepted[id] != "" {
			return nil, fmt.Errorf("cannot accept row %q: it is there twice, or without a reason", id)
		}
		accepted[id] = reason
	}
	if !table {
		return nil, errors.New("cannot read the accepted rows: there is no table under the heading")
	}
	return accepted, nil
}
