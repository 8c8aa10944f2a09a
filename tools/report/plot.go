package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"rempart/board/scenario/watch"
)

// The plots are values with positions already computed; the page's template
// only draws them. Units are those of the SVG's viewBox.

const plotWidth = 720

// axis maps values to positions.
type axis struct{ from, to, low, high float64 }

func (a axis) at(v float64) float64 {
	if a.to == a.from {
		return a.low
	}
	return a.low + (v-a.from)/(a.to-a.from)*(a.high-a.low)
}

// Tick is one labelled mark of an axis.
type Tick struct {
	At    float64
	Label string
}

// ticks returns about n round marks.
func (a axis) ticks(n int, unit string) []Tick {
	span := a.to - a.from
	if span <= 0 {
		return nil
	}
	step := math.Pow(10, math.Floor(math.Log10(span/float64(n))))
	for _, m := range []float64{1, 2, 5, 10} {
		if span/(step*m) <= float64(n) {
			step *= m
			break
		}
	}
	var out []Tick
	for v := math.Ceil(a.from/step) * step; v <= a.to+step/1e6; v += step {
		label := fmt.Sprintf("%.6g", math.Round(v/step)*step)
		out = append(out, Tick{round(a.at(v)), strings.TrimSpace(label + " " + unit)})
	}
	return out
}

func round(v float64) float64 { return math.Round(v*10) / 10 }

// Timeline is the boot of one handset.
type Timeline struct {
	Name   string
	Height float64
	Bars   []Bar
	Ticks  []Tick
	Alt    string
}

// Bar is one step of a timeline.
type Bar struct {
	Y, X, Width float64
	Label, Time string
	Bad         bool
}

const (
	labelWidth = 190
	timeWidth  = 90
	barHeight  = 20
)

func timeline(h Handset) Timeline {
	end := 0.0
	for _, b := range h.Boot {
		end = max(end, b.Start+b.Took)
	}
	a := axis{0, end, labelWidth, plotWidth - timeWidth}
	t := Timeline{Name: h.Name, Ticks: a.ticks(6, "ms")}
	var said []string
	for i, b := range h.Boot {
		t.Bars = append(t.Bars, Bar{Y: float64(i*barHeight) + 4, X: round(a.at(b.Start)), Width: max(2, round(a.at(b.Start+b.Took)-a.at(b.Start))),
			Label: b.Name, Time: number(b.Start+b.Took) + " ms", Bad: !b.OK})
		said = append(said, fmt.Sprintf("%s done at %s ms", b.Name, number(b.Start+b.Took)))
	}
	t.Height = float64(len(h.Boot)*barHeight) + 26
	t.Alt = "Boot of " + h.Name + ": " + strings.Join(said, ", ")
	return t
}

// Scatter is the plot of frame sizes over time, in two panels: what left the
// handsets (with everything that is of no class) above what came to them.
type Scatter struct {
	Panels []Panel
	Series []Series // of all panels, for the key
	XTicks []Tick
	Alt    string
	Height float64
}

// Panel is one half of a Scatter.
type Panel struct {
	Title  string
	Y      float64 // of the title
	YTicks []Tick
	Series []Series
}

// Series is one class and direction.
type Series struct {
	Name, Class string
	Frames      int
	Path        string // one small square per dot, equal dots once
}

const (
	scatterLeft   = 56
	panelTop      = 22 // room for the title
	panelHeight   = 150
	scatterHeight = 2*(panelTop+panelHeight) + 26
)

// scatter plots the points; equal positions are drawn once, so that ten
// thousand frames of a constant stream stay a small page.
func scatter(points []watch.Point) *Scatter {
	if len(points) == 0 {
		return nil
	}
	first, last, most := points[0].At, points[0].At, 100
	for _, p := range points {
		if p.At.Before(first) {
			first = p.At
		}
		if p.At.After(last) {
			last = p.At
		}
		most = max(most, p.Size)
	}
	x := axis{0, max(last.Sub(first).Seconds(), 0.001), scatterLeft, plotWidth - 12}
	var panels [2]Panel
	var y [2]axis
	for i, title := range []string{"handset to gateway, and all else", "gateway to handset"} {
		top := float64(i * (panelTop + panelHeight))
		y[i] = axis{0, float64(most) * 1.1, top + panelTop + panelHeight, top + panelTop}
		panels[i] = Panel{Title: "bytes, " + title, Y: top + 15, YTicks: y[i].ticks(4, "")}
	}
	type key struct {
		panel       int
		name, class string
	}
	paths, counts, drawn := map[key]*strings.Builder{}, map[key]int{}, map[string]bool{}
	for _, p := range points {
		k := key{0, seriesName(p), cssClass(p)}
		if k.class == "in" {
			k.panel = 1
		}
		if paths[k] == nil {
			paths[k] = &strings.Builder{}
		}
		counts[k]++
		dot := fmt.Sprintf("M%g %gh3v3h-3z", round(x.at(p.At.Sub(first).Seconds())-1.5), round(y[k.panel].at(float64(p.Size))-1.5))
		if !drawn[k.name+dot] {
			drawn[k.name+dot] = true
			paths[k].WriteString(dot)
		}
	}
	s := &Scatter{XTicks: x.ticks(7, "s"), Height: scatterHeight}
	byFrames := func(a, b Series) int { return cmp.Or(b.Frames-a.Frames, cmp.Compare(a.Name, b.Name)) }
	for k, b := range paths {
		se := Series{Name: k.name, Class: k.class, Frames: counts[k], Path: b.String()}
		s.Series = append(s.Series, se)
		panels[k.panel].Series = append(panels[k.panel].Series, se)
	}
	slices.SortFunc(s.Series, byFrames)
	for i := range panels {
		slices.SortFunc(panels[i].Series, byFrames)
	}
	s.Panels = panels[:]
	var said []string
	for _, se := range s.Series {
		said = append(said, fmt.Sprintf("%d frames of %s", se.Frames, se.Name))
	}
	s.Alt = fmt.Sprintf("Frame sizes over %s: %s", last.Sub(first).Round(time.Millisecond), strings.Join(said, ", "))
	return s
}

func seriesName(p watch.Point) string {
	switch p.Class {
	case "":
		return "outside every class"
	}
	if p.Direction == watch.Out {
		return p.Class + ", handset to gateway"
	}
	return p.Class + ", gateway to handset"
}

func cssClass(p watch.Point) string {
	switch {
	case p.Class == "":
		return "bad"
	case p.Direction == watch.Out:
		return "out"
	}
	return "in"
}

// Waves are the two aligned waveforms of a way.
type Waves struct {
	Sent, Received string
	Ticks          []Tick
	Alt            string
}

// waveMargin keeps the first and last label inside the picture.
const waveMargin = 16

func waves(w Way) *Waves {
	if len(w.SentWave) == 0 {
		return nil
	}
	x := axis{0, w.WaveSeconds, waveMargin, plotWidth - waveMargin}
	return &Waves{Sent: outline(w.SentWave, 58, 36), Received: outline(w.ReceivedWave, 156, 36), Ticks: x.ticks(8, "s"),
		Alt: fmt.Sprintf("Speech sent by %s above the speech that %s received, aligned", w.From, w.To)}
}

// outline is a closed path around the extents, scaled to the highest.
func outline(e []Extent, middle, half float64) string {
	most := 1e-6
	for _, v := range e {
		most = max(most, math.Abs(v.Low), math.Abs(v.High))
	}
	a := axis{0, float64(max(1, len(e)-1)), waveMargin, plotWidth - waveMargin}
	var b strings.Builder
	for i, v := range e {
		fmt.Fprintf(&b, "%s%g %g", map[bool]string{true: "M", false: "L"}[i == 0], round(a.at(float64(i))), round(middle-half*v.High/most))
	}
	for i := len(e) - 1; i >= 0; i-- {
		fmt.Fprintf(&b, "L%g %g", round(a.at(float64(i))), round(middle-half*e[i].Low/most+0.4))
	}
	return b.String() + "Z"
}

// Gauge is a figure against its bound.
type Gauge struct {
	Label, Value, Limit string
	Width, BoundAt      float64
	Bad                 bool
	Alt                 string
}

func gauge(label string, value, bound float64, unit string) Gauge {
	a := axis{0, max(value, bound) * 1.15, 0, plotWidth}
	g := Gauge{Label: label, Value: number(value) + " " + unit, Width: round(max(2, a.at(value))), Alt: label + " " + number(value) + " " + unit}
	if bound > 0 {
		g.BoundAt, g.Limit, g.Bad = round(a.at(bound)), "promised: at most "+number(bound)+" "+unit, value > bound
		g.Alt += ", " + g.Limit
	}
	return g
}

// Strip is the samples of one statistic as dots on a line.
type Strip struct {
	Statistic
	Dots            []float64
	BoundAt, FigAt  float64
	Ticks           []Tick
	Value, Limit, N string
	Alt             string
}

// measure is a figure with its unit, if it has one.
func measure(v float64, unit string) string { return strings.TrimSpace(number(v) + " " + unit) }

// figureName says which figure of several samples it is.
func figureName(s Statistic) string {
	switch {
	case len(s.Samples) == 1:
		return ""
	case s.On == "max":
		return "longest "
	case s.On == "p95":
		return "95th percentile "
	}
	return s.On + " "
}

func strip(s Statistic) Strip {
	low, high := 0.0, s.Bound
	for _, v := range s.Samples {
		high = max(high, v)
	}
	a := axis{low, high * 1.1, 10, plotWidth - 10}
	o := Strip{Statistic: s, BoundAt: round(a.at(s.Bound)), FigAt: round(a.at(s.figure())), Ticks: a.ticks(6, s.Unit),
		Value: figureName(s) + measure(s.figure(), s.Unit), N: fmt.Sprint(len(s.Samples))}
	if s.Bound > 0 {
		o.Limit = map[bool]string{true: "promised at least ", false: "promised at most "}[s.Least] + measure(s.Bound, s.Unit)
	}
	for _, v := range s.Samples {
		o.Dots = append(o.Dots, round(a.at(v)))
	}
	o.Alt = fmt.Sprintf("%s: %s over %s samples", s.Name, o.Value, o.N)
	if o.Limit != "" {
		o.Alt += ", " + o.Limit
	}
	return o
}
