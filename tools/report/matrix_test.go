package report

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"rempart/board/scenario"
	"rempart/board/scenario/matrix"
)

var daemons = []string{"egressd", "watchd", "tunneld", "voiced", "keyd"}

// sampleMatrix is a report with a row of every status.
func sampleMatrix() *matrix.Report {
	all, excluded := matrix.All(daemons)
	m := &matrix.Report{Version: matrix.ReportVersion, Of: len(all), Seconds: 61.4, Seed: 1, Pairwise: true, Axes: matrix.Axes(daemons), Excluded: excluded,
		Captures: []matrix.Captured{{Of: "handset", File: "/out/handset.pcapng", Frames: 90}, {Of: "twin", File: "/out/twin.pcapng", Frames: 10, Outside: 7}},
		Failures: []string{`connected/udp/4/red/app/radio: leaked <script>`}}
	for i, status := range []matrix.Status{matrix.Held, matrix.Failed, matrix.Unproven, matrix.Accepted, matrix.Nowhere} {
		r := all[len(all)/5*i]
		m.Rows = append(m.Rows, matrix.Result{ID: r.ID(), Row: r, Status: status, Here: matrix.Try{Verdict: scenario.Refused, Detail: "EPERM", Ran: "netns, Linux 6.12"},
			Twin: matrix.Try{Verdict: scenario.Leaked, Seen: 3, Frame: 17, Ran: "netns, Linux 6.12"}})
	}
	for _, l := range []scenario.Layer{scenario.Gate, scenario.Guard} {
		m.Alone = append(m.Alone, matrix.Alone{Layer: l, Sender: "udp", Place: matrix.Black, Holds: l == scenario.Gate, Expected: true})
	}
	return m
}

func TestMatrixPageShowsEveryStateSenderAndReason(t *testing.T) {
	m := sampleMatrix()
	var b bytes.Buffer
	if err := MatrixHTML(&b, m); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	var want []string
	for _, a := range m.Axes[:2] {
		want = append(want, a.Values...)
	}
	for _, r := range m.Excluded {
		want = append(want, strings.ReplaceAll(r.Reason, "'", "&#39;"))
	}
	for _, r := range m.Rows {
		want = append(want, r.ID, "s-"+string(r.Status))
	}
	for _, w := range append(want, "first in frame 17", "netns, Linux 6.12", "handset.pcapng", "leaked &lt;script&gt;", `class="wrong"`, `class="holds"`, "not passed") {
		if !strings.Contains(text, w) {
			t.Errorf("the page lacks %q", w)
		}
	}
	for _, foreign := range []string{"http://", "https://", "<script", "url("} {
		if strings.Contains(text, foreign) {
			t.Errorf("the page has %q", foreign)
		}
	}
}

func TestMatrixFitsATerminal(t *testing.T) {
	m := sampleMatrix()
	m.Failures = nil
	var b bytes.Buffer
	if err := NewTerminal(&b).Matrix(m); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 120 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	for _, w := range []string{"!1", "udp, black", "1 held, 1 accepted, 1 failed, 1 unproven, 1 ran nowhere", "killed-egressd"} {
		if !strings.Contains(b.String(), w) {
			t.Errorf("%q is not in\n%s", w, b.String())
		}
	}
}

func TestMatrixFilesReadBack(t *testing.T) {
	dir := t.TempDir()
	m := sampleMatrix()
	if err := WriteMatrix(dir, m); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "matrix.json"))
	if err != nil {
		t.Fatal(err)
	}
	var back matrix.Report
	if err := json.Unmarshal(b, &back); err != nil || len(back.Rows) != len(m.Rows) || back.Rows[1].ID != m.Rows[1].ID {
		t.Errorf("%v: %+v", err, back.Rows)
	}
	if _, err := os.Stat(filepath.Join(dir, "matrix.html")); err != nil {
		t.Error(err)
	}
	if err := WriteMatrix(filepath.Join(dir, "missing"), m); err == nil {
		t.Error("wrote into a folder that is not there")
	}
}

func TestStatesHaveAbbreviationsOfTheirOwn(t *testing.T) {
	states := sampleMatrix().Axes[0].Values
	used := map[string]string{}
	for s, a := range abbreviations(states) {
		if used[a] != "" || len(a) == 0 || len(a) > 3 {
			t.Errorf("%s and %s are both %q", s, used[a], a)
		}
		used[a] = s
	}
}
