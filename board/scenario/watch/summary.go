package watch

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"time"
)

// SizeCount is one bar of a size histogram.
type SizeCount struct {
	Size   int `json:"size"` // bytes on the wire, Ethernet header included
	Frames int `json:"frames"`
}

// ClassCount is what a stranger saw of one class in one direction.
type ClassCount struct {
	Class     string      `json:"class"` // "outside" for frames of no class
	Direction Direction   `json:"direction,omitempty"`
	Frames    int         `json:"frames"`
	Bytes     int64       `json:"bytes"`
	Sizes     []SizeCount `json:"sizes"`
}

// Summary is what a stranger saw. It is part of summary.json: fields are added,
// never renamed.
type Summary struct {
	Interfaces []string     `json:"interfaces"`
	Frames     int          `json:"frames"`
	Classes    []ClassCount `json:"classes"`
	// Outside counts the frames of no admitted class; Strange are the first.
	Outside int        `json:"outside"`
	Strange []Sighting `json:"strange,omitempty"`
	// MarkersSeen counts the attempts' markers found in any frame.
	MarkersSeen int `json:"markers_seen"`
	// Dropped counts frames that the capture itself lost, by interface: with
	// any, nothing is proven.
	Dropped map[string]uint64 `json:"dropped,omitempty"`
	// Truncated says that the plot's points, not the counts, were cut.
	Truncated bool `json:"truncated,omitempty"`
	// Ended says that the capture was read to a clean end.
	Ended bool `json:"ended"`
}

// Lost returns the frames that the capture lost on all interfaces.
func (s Summary) Lost() uint64 {
	var n uint64
	for _, d := range s.Dropped {
		n += d
	}
	return n
}

// Check returns what keeps the summary from proving that nothing but admitted
// classes was on the link; nil if nothing does.
func (s Summary) Check() error {
	var errs []error
	if !s.Ended {
		errs = append(errs, errors.New("the capture was not read to its end"))
	}
	if len(s.Interfaces) == 0 {
		errs = append(errs, errors.New("the capture has no interface"))
	}
	if s.Frames == 0 {
		errs = append(errs, errors.New("the capture is empty: it may not have been running"))
	}
	if s.Lost() > 0 {
		errs = append(errs, errors.New("the capture lost frames"))
	}
	if s.Outside > 0 {
		errs = append(errs, errors.New("frames outside the admitted classes"))
	}
	if s.MarkersSeen > 0 {
		errs = append(errs, errors.New("markers of attempts on the internet link"))
	}
	return errors.Join(errs...)
}

// Summary returns what was seen so far, in a stable order.
func (w *Watcher) Summary() Summary {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := Summary{Interfaces: slices.Clone(w.names), Frames: w.frames, Outside: w.outside,
		Classes: []ClassCount{}, Strange: slices.Clone(w.strange), Truncated: w.cut, Ended: w.done && w.err == nil}
	for name, n := range w.drops {
		if n > 0 {
			if s.Dropped == nil {
				s.Dropped = map[string]uint64{}
			}
			s.Dropped[name] = n
		}
	}
	for _, k := range w.marks.raw {
		s.MarkersSeen += k.seen
	}
	for key, c := range w.classes {
		cc := ClassCount{Class: cmp.Or(key.name, "outside"), Direction: key.dir, Frames: c.frames, Bytes: c.bytes}
		for size, n := range c.sizes {
			cc.Sizes = append(cc.Sizes, SizeCount{size, n})
		}
		slices.SortFunc(cc.Sizes, func(a, b SizeCount) int { return a.Size - b.Size })
		s.Classes = append(s.Classes, cc)
	}
	slices.SortFunc(s.Classes, func(a, b ClassCount) int {
		return cmp.Or(cmp.Compare(a.Class, b.Class), cmp.Compare(a.Direction, b.Direction))
	})
	return s
}

// Points returns the frames seen so far for a plot, oldest first, at most
// 200,000.
func (w *Watcher) Points() []Point {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.points)
}

// Shape describes the frames of one stream: with the constant shape of
// DESIGN.md §5 it has one size and one period.
type Shape struct {
	Frames int         `json:"frames"`
	Sizes  []SizeCount `json:"sizes"`
	// MainShare is the share of frames that have the most frequent size.
	MainSize  int     `json:"main_size"`
	MainShare float64 `json:"main_share"`
	// Period between frames of the main size, in milliseconds.
	PeriodMedianMS float64 `json:"period_median_ms"`
	PeriodP95MS    float64 `json:"period_p95_ms"`
	PeriodMaxMS    float64 `json:"period_max_ms"`
}

// ShapeOf measures the points that keep selects, which should be one class, one
// direction and one interface.
func ShapeOf(points []Point, keep func(Point) bool) Shape {
	sizes := map[int]int{}
	var chosen []Point
	for _, p := range points {
		if keep(p) {
			sizes[p.Size]++
			chosen = append(chosen, p)
		}
	}
	s := Shape{Frames: len(chosen)}
	for size, n := range sizes {
		s.Sizes = append(s.Sizes, SizeCount{size, n})
	}
	slices.SortFunc(s.Sizes, func(a, b SizeCount) int { return cmp.Or(b.Frames-a.Frames, a.Size-b.Size) })
	if len(s.Sizes) == 0 {
		return s
	}
	s.MainSize, s.MainShare = s.Sizes[0].Size, float64(s.Sizes[0].Frames)/float64(len(chosen))
	var gaps []float64
	var last time.Time
	for _, p := range chosen {
		if p.Size != s.MainSize {
			continue
		}
		if !last.IsZero() {
			gaps = append(gaps, p.At.Sub(last).Seconds()*1000)
		}
		last = p.At
	}
	slices.Sort(gaps)
	if n := len(gaps); n > 0 {
		s.PeriodMedianMS, s.PeriodMaxMS = gaps[n/2], gaps[n-1]
		s.PeriodP95MS = gaps[int(math.Ceil(0.95*float64(n)))-1]
	}
	return s
}
