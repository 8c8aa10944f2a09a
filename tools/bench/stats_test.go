package main

import (
	"math"
	"slices"
	"testing"
)

// upTo returns 1 … n, largest first: the order of the runs is no order.
func upTo(n int) []float64 {
	var s []float64
	for i := n; i > 0; i-- {
		s = append(s, float64(i))
	}
	return s
}

func TestPercentileIsNearestRank(t *testing.T) {
	book := []float64{35, 20, 15, 50, 40}
	for _, c := range []struct {
		samples []float64
		p, want float64
	}{
		{book, 5, 15}, {book, 30, 20}, {book, 40, 20}, {book, 50, 35}, {book, 100, 50},
		{upTo(20), 95, 19}, {upTo(20), 95.1, 20}, {upTo(20), 50, 10}, {upTo(20), 100, 20},
		{upTo(10), 50, 5}, {upTo(10), 95, 10}, {upTo(10), 1, 1},
		{[]float64{7}, 50, 7}, {[]float64{7}, 95, 7}, {[]float64{7}, 0.001, 7},
		{[]float64{2, 2, 2, 9}, 75, 2}, {[]float64{2, 2, 2, 9}, 76, 9},
	} {
		if got := percentile(c.samples, c.p); got != c.want {
			t.Errorf("p%g of %v is %g, want %g", c.p, c.samples, got, c.want)
		}
	}
	if got := percentile(nil, 50); !math.IsNaN(got) {
		t.Errorf("p50 of nothing is %g", got)
	}
}

// TestPercentileKeepsTheOrder: raw samples are kept in the order of the runs.
func TestPercentileKeepsTheOrder(t *testing.T) {
	s := []float64{3, 1, 2}
	percentile(s, 50)
	if !slices.Equal(s, []float64{3, 1, 2}) {
		t.Errorf("the samples became %v", s)
	}
}

// TestPercentileIsASampleThatEnoughDoNotExceed walks the definition.
func TestPercentileIsASampleThatEnoughDoNotExceed(t *testing.T) {
	for n := 1; n <= 40; n++ {
		for p := 1.0; p <= 100; p++ {
			got, below := percentile(upTo(n), p), 0.0
			for _, v := range upTo(n) {
				if v <= got {
					below++
				}
			}
			if below/float64(n)*100 < p-1e-9 || (below-1)/float64(n)*100 >= p {
				t.Errorf("p%g of 1 … %d is %g", p, n, got)
			}
		}
	}
}

func TestVerdictAtTheBound(t *testing.T) {
	over := math.Nextafter(1000, 2000)
	for _, c := range []struct {
		what    string
		samples []float64
		bound   bound
		kept    bool
	}{
		{"no bound", []float64{1e9}, bound{}, true},
		{"no bound, no samples", nil, bound{}, true},
		{"no samples", nil, bound{Of: p95, Limit: 1000}, false},
		{"no samples of a floor", nil, bound{p50, true, 0.9}, false},
		{"at", []float64{1000}, bound{Of: p95, Limit: 1000}, true},
		{"over", []float64{over}, bound{Of: p95, Limit: 1000}, false},
		{"one of twenty over p95", append(upTo(19), 2000), bound{Of: p95, Limit: 1000}, true},
		{"two of twenty over p95", append(upTo(18), 2000, 2000), bound{Of: p95, Limit: 1000}, false},
		{"one over max", append(upTo(19), 2000), bound{Of: largest, Limit: 1000}, false},
		{"none outside", []float64{0}, bound{Of: largest}, true},
		{"one outside", []float64{1}, bound{Of: largest}, false},
		{"ratio at", []float64{0.9, 0.5, 2}, bound{p50, true, 0.9}, true},
		{"ratio under", []float64{0.89, 0.5, 2}, bound{p50, true, 0.9}, false},
		{"lower middle counts", []float64{0.8, 1}, bound{p50, true, 0.9}, false},
		{"frames seen", []float64{1}, bound{largest, true, 1}, true},
		{"none seen", []float64{0}, bound{largest, true, 1}, false},
		{"NaN", []float64{math.NaN()}, bound{p50, true, 0.9}, false},
		{"NaN of a ceiling", []float64{math.NaN()}, bound{Of: largest, Limit: 1}, false},
	} {
		if f := (figure{What: c.what, Samples: c.samples, Bound: c.bound}).judged(); f.Kept != c.kept {
			t.Errorf("%s: kept is %v of %+v", c.what, f.Kept, f)
		}
	}
}

func TestFigureHasItsStatistics(t *testing.T) {
	f := figure{Samples: upTo(20)}.judged()
	if f.P50 != 10 || f.P95 != 19 || f.Min != 1 || f.Max != 20 || len(f.Samples) != 20 || f.Samples[0] != 20 {
		t.Errorf("got %+v", f)
	}
}

func TestBoundInWords(t *testing.T) {
	for want, b := range map[string]bound{
		"-": {}, "p95 ≤ 1000": {Of: p95, Limit: 1000}, "p50 ≥ 0.9": {p50, true, 0.9}, "max ≤ 0": {Of: largest},
	} {
		if b.String() != want {
			t.Errorf("%+v is %q, want %q", b, b, want)
		}
	}
}

func TestRatiosAreOfPairs(t *testing.T) {
	if got := ratios([]float64{9, 10, 30}, []float64{10, 10, 20, 5}); !slices.Equal(got, []float64{0.9, 1, 1.5}) {
		t.Errorf("got %v", got)
	}
	if got := ratios(nil, []float64{1}); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}
