package report

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"

	"rempart/board/scenario"
	"rempart/board/scenario/watch"
)

//go:embed page.html.tmpl page.css
var files embed.FS

// page is what the template draws.
type page struct {
	*Summary
	CSS       template.CSS
	Heading   string
	Timelines []Timeline
	LeakCount string
	Scatter   *Scatter
	Ways      []wayView
	Dial      *Gauge
	Strips    []Strip
}

type wayView struct {
	Way
	Latency Gauge
	Waves   *Waves
}

// HTML writes the page.
func HTML(w io.Writer, s *Summary) error {
	css, err := files.ReadFile("page.css")
	if err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	t, err := template.New("page.html.tmpl").Funcs(template.FuncMap{
		"title": title, "vault": vault, "tunnel": tunnelLine, "tunnelGood": Handset.tunnelGood,
		"seconds": func(ms float64) string { return fmt.Sprintf("%.2f s", ms/1000) },
		"number":  number, "join": strings.Join, "mark": mark, "layers": layers, "sizes": sizes, "drops": drops,
		"percent": func(v float64) string { return number(100*v) + " %" },
		"short":   func(s string) string { return s[:min(len(s), 16)] },
		"class":   func(v any) string { return verdictClass(fmt.Sprint(v)) },
	}).ParseFS(files, "page.html.tmpl")
	if err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, view(s, template.CSS(css))); err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	if _, err := w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	return nil
}

func view(s *Summary, css template.CSS) page {
	p := page{Summary: s, CSS: css, Heading: s.heading()}
	for _, h := range s.Handsets {
		if len(h.Boot) > 0 {
			p.Timelines = append(p.Timelines, timeline(h))
		}
	}
	if s.Leaks != nil {
		p.LeakCount = LeakLine(s.Leaks)
	}
	if s.Outside != nil {
		p.Scatter = scatter(s.Outside.Points)
	}
	if s.Call != nil {
		for _, w := range s.Call.Ways {
			p.Ways = append(p.Ways, wayView{w, gauge("one way, mouth to ear", w.OneWayMS, w.BoundMS, "ms"), waves(w)})
		}
	}
	for _, st := range s.Statistics {
		p.Strips = append(p.Strips, strip(st))
	}
	return p
}

func (s *Summary) heading() string {
	if s.Title != "" {
		return s.Title
	}
	return "Rempart: the first secure call"
}

// mark is the word for a promise kept or not.
func mark(ok bool) string {
	if ok {
		return "yes"
	}
	return "NO"
}

// verdictClass colours a word that stands there in full.
func verdictClass(v string) string {
	switch v {
	case string(scenario.Held), string(scenario.Refused), string(scenario.Dropped), string(scenario.Tunnelled), "yes", "up", "open", "capped":
		return "good"
	}
	return "bad"
}

func layers(l []scenario.Layer) string {
	var s []string
	for _, x := range l {
		s = append(s, string(x))
	}
	return strings.Join(s, ", ")
}

// sizes is a size histogram in words, the most frequent first.
func sizes(c watch.ClassCount) string {
	all := slices.Clone(c.Sizes)
	slices.SortStableFunc(all, func(a, b watch.SizeCount) int { return b.Frames - a.Frames })
	var s []string
	for i, x := range all {
		if i == 6 {
			s = append(s, fmt.Sprintf("and %d more sizes", len(all)-i))
			break
		}
		s = append(s, fmt.Sprintf("%d × %d B", x.Frames, x.Size))
	}
	return strings.Join(s, ", ")
}

func drops(d map[string]uint64) string {
	var s []string
	for k, n := range d {
		if n > 0 {
			s = append(s, fmt.Sprintf("%s %d", k, n))
		}
	}
	slices.Sort(s)
	if len(s) == 0 {
		return "none"
	}
	return strings.Join(s, ", ")
}

// LeakLine is the leak test in one line.
func LeakLine(l *scenario.LeakReport) string {
	held, proven := 0, 0
	for _, r := range l.Rows {
		if r.State == scenario.Held {
			held++
		}
		if r.Twin.Verdict == scenario.Leaked {
			proven++
		}
	}
	return fmt.Sprintf("%d of %d attempts stopped; %d of %d seen to leak where the layers that stop them were removed", held, len(l.Rows), proven, len(l.Rows))
}
