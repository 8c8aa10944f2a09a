package main

import (
	"fmt"
	"math"
	"slices"
)

// percentile returns the p-th percentile (0 < p <= 100) by nearest rank: the
// smallest sample that at least p percent of all samples do not exceed. It is
// always one of the samples; without any it is NaN.
func percentile(samples []float64, p float64) float64 {
	if len(samples) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(samples))
	rank := int(math.Ceil(p * float64(len(sorted)) / 100)) // in this order: whole percents stay exact
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// statistic names what a bound is about.
type statistic string

const (
	p50     statistic = "p50"
	p95     statistic = "p95"
	largest statistic = "max"
)

// of returns the statistic of samples.
func (s statistic) of(samples []float64) float64 {
	switch s {
	case p50:
		return percentile(samples, 50)
	case p95:
		return percentile(samples, 95)
	}
	return percentile(samples, 100)
}

// bound is what a figure must keep. The zero value bounds nothing: the figure
// is told and not judged.
type bound struct {
	Of      statistic `json:"of,omitempty"`
	AtLeast bool      `json:"at_least,omitempty"` // otherwise at most
	Limit   float64   `json:"limit,omitempty"`
}

func (b bound) String() string {
	switch {
	case b.Of == "":
		return "-"
	case b.AtLeast:
		return fmt.Sprintf("%s ≥ %g", b.Of, b.Limit)
	}
	return fmt.Sprintf("%s ≤ %g", b.Of, b.Limit)
}

// figure is one measured quantity: its samples in the order of the runs, and
// its bound. The statistics are filled in by judged.
type figure struct {
	What    string    `json:"what"`
	Unit    string    `json:"unit"`
	Samples []float64 `json:"samples"`
	P50     float64   `json:"p50"`
	P95     float64   `json:"p95"`
	Min     float64   `json:"min"`
	Max     float64   `json:"max"`
	Bound   bound     `json:"bound,omitzero"`
	Kept    bool      `json:"kept"`
}

// judged returns the figure with its statistics and verdict. A bound without
// samples is not kept: what was not measured is not shown.
func (f figure) judged() figure {
	if len(f.Samples) == 0 {
		f.Samples, f.Kept = []float64{}, f.Bound.Of == ""
		return f
	}
	f.P50, f.P95 = p50.of(f.Samples), p95.of(f.Samples)
	f.Min, f.Max = slices.Min(f.Samples), slices.Max(f.Samples)
	value := f.Bound.Of.of(f.Samples)
	switch {
	case f.Bound.Of == "":
		f.Kept = true
	case f.Bound.AtLeast:
		f.Kept = value >= f.Bound.Limit
	default:
		f.Kept = value <= f.Bound.Limit
	}
	return f
}

// ratios divides sample by sample: pairs that were measured next to each other.
func ratios(ours, theirs []float64) []float64 {
	out := make([]float64, min(len(ours), len(theirs)))
	for i := range out {
		out[i] = ours[i] / theirs[i]
	}
	return out
}
