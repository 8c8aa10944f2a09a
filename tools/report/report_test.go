package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"rempart/board/scenario"
	"rempart/board/scenario/watch"
	"rempart/tools/sound"
)

func html(t *testing.T, s *Summary) string {
	t.Helper()
	var b bytes.Buffer
	if err := HTML(&b, s); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestAGoodRunPasses(t *testing.T) {
	s := sample()
	s.Finish()
	if !s.Passed || len(s.Failures) > 0 {
		t.Fatalf("failures %q", s.Failures)
	}
}

// TestEveryBrokenPromiseFails breaks the good run in one place at a time.
func TestEveryBrokenPromiseFails(t *testing.T) {
	for says, change := range map[string]func(*Summary){
		"disk full":                func(s *Summary) { s.Failures = []string{"disk full"} },
		`step "build" failed`:      func(s *Summary) { s.Steps[0].OK = false },
		"does not replay":          func(s *Summary) { s.Handsets[1].LogReplays = false },
		"predicted":                func(s *Summary) { s.Handsets[1].Predicted = false },
		"gate or floor":            func(s *Summary) { s.Handsets[0].Gate.Floor = false },
		"in force":                 func(s *Summary) { s.Handsets[0].Gate.InForce = false },
		"map entry 3 differs":      func(s *Summary) { s.Handsets[2].Gate.ReadBack = []string{"map entry 3 differs"} },
		`the tunnel is "waiting"`:  func(s *Summary) { s.Handsets[0].Tunnel.State = "waiting" },
		"doctor: gate: gone":       func(s *Summary) { s.Handsets[0].Doctor = []Finding{{Promise: "gate", Why: "gone"}} },
		`tunnel is "listening"`:    func(s *Summary) { s.Handsets[0].Tunnel.State = "listening" },
		"did not hear what b said": func(s *Summary) { s.Call.Ways[1].Unheard = true },
		`boot step "floor"`:        func(s *Summary) { s.Handsets[0].Boot[0].OK = false },
		"leak test: UDP leaked":    func(s *Summary) { s.Leaks.Passed, s.Leaks.Failures = false, []string{"UDP leaked"} },
		"leak test: not passed":    func(s *Summary) { s.Leaks.Passed = false },
		"authentication strings":   func(s *Summary) { s.Call.SASTo = "ZZZZ" },
		"no level":                 func(s *Summary) { s.Call.Level = "" },
		"heard nothing":            func(s *Summary) { s.Call.Ways[1].Received = 0 },
		"no audio":                 func(s *Summary) { s.Call.Ways = nil },
		"bound 80 ms":              func(s *Summary) { s.Call.Ways[0].OneWayMS = 81 },
		"outside: frames outside":  func(s *Summary) { s.Outside.Summary.Outside = 1 },
		"lost frames":              func(s *Summary) { s.Outside.Dropped = map[string]uint64{"a": 1} },
		"markers":                  func(s *Summary) { s.Outside.MarkersSeen = 1 },
		"beyond the bound":         func(s *Summary) { s.Statistics[0] = NewStatistic("boot", "s", []float64{2}, "p95", 1, false) },
	} {
		s := sample()
		change(s)
		s.Finish()
		if s.Passed || !strings.Contains(strings.Join(s.Failures, "\n"), says) {
			t.Errorf("passed %v with %q, want %q", s.Passed, s.Failures, says)
		}
		if page := html(t, s); !strings.Contains(page, "not kept") || strings.Contains(page, "Every promise") {
			t.Errorf("%s: the page does not say so", says)
		}
	}
}

func TestStatistics(t *testing.T) {
	var v []float64
	for i := range 20 {
		v = append(v, float64(20-i))
	}
	s := NewStatistic("x", "s", v, "p95", 19, false)
	if s.Median != 10.5 || s.P95 != 19 || s.Max != 20 || !s.OK || v[0] != 20 {
		t.Errorf("%+v", s)
	}
	if NewStatistic("x", "s", v, "max", 19, false).OK || NewStatistic("x", "s", nil, "max", 19, false).OK || NewStatistic("x", "s", v, "mean", 19, false).OK {
		t.Error("beyond the bound, without samples or on an unknown figure, and ok")
	}
	if least := NewStatistic("x", "", []float64{0.9, 0.95}, "median", 0.9, true); !least.OK || NewStatistic("x", "", []float64{0.8}, "median", 0.9, true).OK {
		t.Errorf("%+v", least)
	}
}

// TestThePageLoadsNothing: whoever opens the report is not told on.
func TestThePageLoadsNothing(t *testing.T) {
	s := sample()
	s.Finish()
	page := html(t, s)
	for _, bad := range []string{"http:", "https:", "src=", "href=", "url(", "<script", "<link", "<img", "@import", "javascript"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page holds %q", bad)
		}
	}
	if n := len(page); n > 400_000 {
		t.Errorf("the page is %d bytes", n)
	}
	for _, want := range []string{`lang="en"`, `name="viewport"`, "K7QM", "61.4 ms", "restricted", "0 frames outside", "4 of 4 attempts", "600 × 250 B", "wrong-cgroup 42", "as predicted"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not hold %q", want)
		}
	}
	if strings.Contains(page, "ZgotmplZ") || strings.Contains(page, "NaN") || strings.Contains(page, "Inf") {
		t.Error("the page holds a value that could not be written")
	}
}

func TestForeignTextIsText(t *testing.T) {
	s := sample()
	s.Handsets[0].Name = `<script>alert(1)</script>`
	s.Handsets[0].Boot[0].Name = `"/><script>`
	s.Leaks.Rows[0].Detail = "</table><b onmouseover=x>"
	s.Finish()
	if page := html(t, s); strings.Contains(page, "<script") || strings.Contains(page, "<b onmouseover") {
		t.Error("foreign text became markup")
	}
	var b bytes.Buffer
	s.Handsets[0].Name = "\x1b[2J\u009b1mgone\r\n"
	NewTerminal(&b).Board(s)
	if strings.ContainsAny(b.String(), "\x1b\u009b\r") {
		t.Error("foreign text became a terminal's command")
	}
}

// TestPlotsAreWellFormedAndSaidInWords: every SVG parses and has a description.
func TestPlotsAreWellFormedAndSaidInWords(t *testing.T) {
	s := sample()
	s.Finish()
	svgs := regexp.MustCompile(`(?s)<svg.*?</svg>`).FindAllString(html(t, s), -1)
	if len(svgs) != 3+1+2+2+2 {
		t.Errorf("%d plots", len(svgs))
	}
	for _, svg := range svgs {
		d := xml.NewDecoder(strings.NewReader(svg))
		for first := true; ; first = false {
			tok, err := d.Token()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%v in %.200s", err, svg)
			}
			if e, ok := tok.(xml.StartElement); ok && first {
				attr := map[string]string{}
				for _, a := range e.Attr {
					attr[a.Name.Local] = a.Value
				}
				if attr["role"] != "img" || len(attr["aria-label"]) < 10 {
					t.Errorf("a plot without words: %v", attr)
				}
			}
		}
	}
}

func TestAnEmptyRunMakesAPage(t *testing.T) {
	s := &Summary{Made: time.Unix(0, 0).UTC()}
	s.Finish()
	if page := html(t, s); !strings.Contains(page, "</html>") {
		t.Error("no page")
	}
	half := sample()
	half.Outside.Points, half.Outside.Shape, half.Call.Ways, half.Handsets[0].Boot = nil, nil, nil, nil
	half.Finish()
	if page := html(t, half); strings.Contains(page, "NaN") {
		t.Error("missing parts become numbers")
	}
}

func TestWriteMakesBothFiles(t *testing.T) {
	dir := t.TempDir()
	if Write(dir, sample()) == nil {
		t.Error("an unfinished summary was written")
	}
	s := sample()
	s.Finish()
	if err := Write(dir, s); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "summary.json"))
	if err != nil {
		t.Fatal(err)
	}
	var back map[string]any
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"version", "passed", "failures", "steps", "handsets", "leaks", "call", "outside", "statistics"} {
		if _, ok := back[key]; !ok {
			t.Errorf("summary.json has no %q", key)
		}
	}
	if o := back["outside"].(map[string]any); o["frames"] != 1212.0 || o["classes"] == nil {
		t.Errorf("outside: %v", o)
	}
	if _, err := os.Stat(filepath.Join(dir, "report.html")); err != nil {
		t.Error(err)
	}
	if Write(filepath.Join(dir, "nosuch"), s) == nil {
		t.Error("wrote into a folder that is not there")
	}
}

func TestBoardOnATerminalAndInAFile(t *testing.T) {
	s := sample()
	s.Finish()
	var b bytes.Buffer
	term := NewTerminal(&b)
	if err := term.Board(s); err != nil {
		t.Fatal(err)
	}
	plainText := b.String()
	for _, want := range []string{"a shows K7QM, b shows K7QM: the same", "61.4 ms from mouth to ear", "0 of 1212 frames outside", "4 of 4 attempts",
		"wrong-cgroup 42", "Every promise", "swtpm", "The gateway\n", "held      UDP from red "} {
		if !strings.Contains(plainText, want) {
			t.Errorf("the board does not say %q:\n%s", want, plainText)
		}
	}
	if strings.Contains(plainText, "\x1b") {
		t.Error("colour in a file")
	}
	b.Reset()
	term.color = true
	term.Board(s)
	if got := regexp.MustCompile(`\x1b\[[0-9]*m`).ReplaceAllString(b.String(), ""); got != plainText {
		t.Error("in colour the board says something else")
	}
	s = sample()
	s.Call.SASTo, s.Outside.Summary.Outside = "XXXX", 2
	s.Finish()
	b.Reset()
	NewTerminal(&b).Board(s)
	if !strings.Contains(b.String(), "DIFFERENT") || !strings.Contains(b.String(), "promises not kept") {
		t.Errorf("a bad run reads\n%s", b.String())
	}
}

func TestStepAndRowLines(t *testing.T) {
	var b bytes.Buffer
	term := NewTerminal(&b)
	term.Step(Step{"a", 900, 420, true, "tunnel to gateway"})
	term.Step(Step{"call", 2000, 10, false, "busy"})
	term.Row(scenario.RowResult{Name: "UDP from black, IPv4", State: scenario.Unproven, Verdict: scenario.Dropped, Detail: "wrong-cgroup"})
	for _, want := range []string{"   1.32 s  a          tunnel to gateway  (0.4 s)\n", "   2.01 s  call       FAILED  busy\n", "unproven  UDP from black", "dropped (wrong-cgroup)", "twin not run"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestPairsJoinBothFamilies(t *testing.T) {
	row := func(name string, v scenario.Verdict, s scenario.State, twin scenario.Verdict) scenario.RowResult {
		return scenario.RowResult{Name: name, Verdict: v, State: s, Twin: scenario.TwinResult{Verdict: twin, Seen: 1}}
	}
	both := row("kill -9 of keyd", scenario.Dropped, scenario.Held, scenario.Leaked)
	both.Family = "both"
	got := pairs([]scenario.RowResult{
		row("UDP from red, IPv4", scenario.Refused, scenario.Held, scenario.Leaked), both,
		row("UDP from red, IPv6", scenario.Leaked, scenario.Failed, scenario.Leaked),
		row("ICMP, IPv6", scenario.Dropped, scenario.Unproven, scenario.Dropped)})
	if len(got) != 3 || got[0].name != "UDP from red" || got[0].state() != scenario.Failed || got[0].twins() != "leaked" || !got[0].proven() {
		t.Errorf("%d pairs, the first %+v", len(got), got[0])
	}
	if got[1].rows[0] != got[1].rows[1] || got[1].state() != scenario.Held {
		t.Errorf("an attempt of both families at once: %+v", got[1])
	}
	if got[2].rows[0] != nil || got[2].state() != scenario.Unproven || got[2].proven() {
		t.Errorf("an attempt of one family: %+v", got[2])
	}
}

func TestAStatisticNeedsNoBound(t *testing.T) {
	one := NewStatistic("boot", "ms", []float64{742}, "max", 0, false)
	if v := strip(one); !one.OK || v.Value != "742 ms" || v.Limit != "" || strings.HasSuffix(v.Alt, ", ") {
		t.Errorf("%+v", v)
	}
	if v := strip(NewStatistic("boot", "ms", []float64{742, 800}, "max", 1000, false)); v.Value != "longest 800 ms" || v.Limit != "promised at most 1000 ms" {
		t.Errorf("%+v", v)
	}
	if NewStatistic("boot", "ms", nil, "max", 0, false).OK {
		t.Error("no sample, and ok")
	}
}

func TestScatterDrawsEqualDotsOnce(t *testing.T) {
	var points []watch.Point
	for i := range 50_000 {
		points = append(points, watch.Point{At: time.Unix(0, int64(i)*1e6), Class: "tunnel", Direction: watch.Out, Size: 250})
	}
	s := scatter(points)
	if len(s.Series) != 1 || s.Series[0].Frames != 50_000 || len(s.Series[0].Path) > 200_000 {
		t.Errorf("%d series, %d bytes of path", len(s.Series), len(s.Series[0].Path))
	}
	if one := scatter(points[:1]); one == nil || strings.Contains(one.Series[0].Path, "NaN") {
		t.Error("one frame makes no plot")
	}
}

func TestWaveMovesTheReceivedRecording(t *testing.T) {
	sent := sound.Clip{Rate: sound.Rate, Samples: make([]float64, 1000)}
	got := sound.Clip{Rate: sound.Rate, Samples: make([]float64, 1500)}
	sent.Samples[500], got.Samples[700] = 0.5, 0.5
	var w Way
	w.Wave(sent, got, sound.Alignment{Lag: 200}, 100)
	if len(w.SentWave) != 100 || w.SentWave[50].High != 0.5 || w.ReceivedWave[50].High != 0.5 || w.ReceivedWave[70].High != 0 {
		t.Errorf("%v", w.ReceivedWave[45:75])
	}
	w.Wave(sent, got, sound.Alignment{Lag: -5000}, 100)
	if w.ReceivedWave[0] != (Extent{}) {
		t.Error("nothing received, something drawn")
	}
}

func TestAxisTicksAreRound(t *testing.T) {
	a := axis{0, 364, 100, 600}
	for _, tick := range a.ticks(6, "ms") {
		if !regexp.MustCompile(`^\d+00 ms$|^0 ms$|^\d*50 ms$`).MatchString(tick.Label) || tick.At < 100 || tick.At > 600 {
			t.Errorf("tick %+v", tick)
		}
	}
	if (axis{1, 1, 0, 9}).ticks(5, "") != nil || math.IsNaN((axis{1, 1, 0, 9}).at(1)) {
		t.Error("an empty axis")
	}
}
