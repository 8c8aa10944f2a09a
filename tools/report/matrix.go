package report

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"rempart/board/scenario/matrix"
	"rempart/internal/atomicfile"
)

//go:embed matrix.html.tmpl matrix.css page.css
var matrixFiles embed.FS

// matrixPage is what the template of the leak matrix draws.
type matrixPage struct {
	*matrix.Report
	CSS                         template.CSS
	Heading                     string
	FirstFailures, MoreFailures []string
	Held, NotHeld, Known        int
	Frames                      int
	Ran                         []string
	States                      []string
	Grid                        []gridRow
	Layers                      matrix.AloneTable
	ByState                     []stateRows
}

type gridRow struct {
	Name, What string
	Cells      []gridCell
}

type gridCell struct{ Class, Text, Title string }

type stateRows struct {
	State string
	Rows  []matrix.Result
}

// shownFailures is how many failures the page says at once.
const shownFailures = 12

// MatrixHTML writes the page of the leak matrix.
func MatrixHTML(w io.Writer, m *matrix.Report) error {
	t, err := template.New("matrix.html.tmpl").Funcs(template.FuncMap{
		"join": strings.Join, "base": filepath.Base, "try": tryText, "alone": aloneClass,
		"seconds": func(s float64) string { return fmt.Sprintf("%.0f s", s) },
	}).ParseFS(matrixFiles, "matrix.html.tmpl")
	if err != nil {
		return fmt.Errorf("cannot write the matrix: %w", err)
	}
	var css []byte
	for _, name := range []string{"page.css", "matrix.css"} {
		text, err := matrixFiles.ReadFile(name)
		if err != nil {
			return fmt.Errorf("cannot write the matrix: %w", err)
		}
		css = append(css, text...)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, matrixView(m, template.CSS(css))); err != nil {
		return fmt.Errorf("cannot write the matrix: %w", err)
	}
	if _, err := w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("cannot write the matrix: %w", err)
	}
	return nil
}

func matrixView(m *matrix.Report, css template.CSS) matrixPage {
	n := m.Counts()
	p := matrixPage{Report: m, CSS: css, Heading: "Leak matrix: nothing left", Held: n[matrix.Held], Known: n[matrix.Accepted],
		States: m.Axes[0].Values, Layers: m.AloneTable()}
	p.NotHeld = len(m.Rows) - p.Held - p.Known
	switch {
	case !m.Passed:
		p.Heading = "Leak matrix: not passed"
	case p.Known > 0:
		p.Heading = "Leak matrix: nothing left but what is accepted"
	}
	cut := min(len(m.Failures), shownFailures)
	p.FirstFailures, p.MoreFailures = m.Failures[:cut], m.Failures[cut:]
	for _, c := range m.Captures {
		p.Frames += c.Frames
	}
	byState := map[string][]matrix.Result{}
	for _, r := range m.Rows {
		byState[string(r.State)] = append(byState[string(r.State)], r)
		if r.Here.Ran != "" && !slices.Contains(p.Ran, r.Here.Ran) {
			p.Ran = append(p.Ran, r.Here.Ran)
		}
	}
	for _, s := range p.States {
		if rows := byState[s]; len(rows) > 0 {
			p.ByState = append(p.ByState, stateRows{s, rows})
		}
	}
	cells := m.Cells()
	for _, s := range matrix.Senders() {
		row := gridRow{Name: s.Name, What: s.What}
		for _, state := range p.States {
			row.Cells = append(row.Cells, cellView(state, s.Name, cells[matrix.CellKey{State: state, Sender: s.Name}]))
		}
		p.Grid = append(p.Grid, row)
	}
	return p
}

func cellView(state, sender string, c matrix.Cell) gridCell {
	at := sender + " while " + state
	switch {
	case c.Rows == 0:
		return gridCell{"none", "·", at + ": no row in this run"}
	case c.Good < c.Rows:
		return gridCell{string(c.Worst), fmt.Sprintf("%d", c.Rows-c.Good), fmt.Sprintf("%s: %d of %d rows %s", at, c.Rows-c.Good, c.Rows, c.Worst)}
	}
	return gridCell{string(c.Worst), fmt.Sprintf("%d", c.Rows), fmt.Sprintf("%s: %d rows held", at, c.Rows)}
}

func aloneClass(c matrix.AloneCell) string {
	switch {
	case c.Wrong:
		return "wrong"
	case c.Word == "holds":
		return "holds"
	case c.Word == "leaks":
		return "leaks"
	case c.Word == "in part":
		return "part"
	}
	return "none"
}

// tryText is one attempt's end in a few words.
func tryText(t matrix.Try) string {
	s := string(t.Verdict)
	if t.Detail != "" {
		s += " (" + t.Detail + ")"
	}
	if t.Frame > 0 {
		s += fmt.Sprintf(", first in frame %d", t.Frame)
	}
	return s
}

// WriteMatrix writes matrix.json and matrix.html into the folder, which must exist.
func WriteMatrix(dir string, m *matrix.Report) error {
	b, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return fmt.Errorf("cannot write the matrix: %w", err)
	}
	var page bytes.Buffer
	if err := MatrixHTML(&page, m); err != nil {
		return err
	}
	for name, data := range map[string][]byte{"matrix.json": append(b, '\n'), "matrix.html": page.Bytes()} {
		if err := atomicfile.Write(filepath.Join(dir, name), data, 0o644); err != nil {
			return fmt.Errorf("cannot write the matrix: %w", err)
		}
	}
	return nil
}
