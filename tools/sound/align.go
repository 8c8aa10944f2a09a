package sound

import (
	"errors"
	"fmt"
	"math"
)

// Alignment says where the received recording lies in the sent one.
type Alignment struct {
	// Lag is received index minus sent index of the same sound, in samples at
	// 48 kHz. Negative when the received file begins in the middle of the sent.
	Lag int
	// Confidence is the normalised correlation at that lag, 0 … 1, over the
	// stretch where both overlap.
	Confidence float64
}

// minConfidence is what a lag needs to be believed: what the product's codec
// leaves of noise-like speech reaches 0.7 (opus_test.go), unrelated recordings
// stay below 0.2.
const minConfidence = 0.4

// ErrUnrelated is returned when the received recording does not hold the sent.
var ErrUnrelated = errors.New("the received recording does not hold the sent one")

// Align finds the lag by cross-correlation. Both clips must be at 48 kHz.
func Align(sent, received Clip) (Alignment, error) {
	if sent.Rate != Rate || received.Rate != Rate {
		return Alignment{}, fmt.Errorf("cannot align recordings of %d and %d samples per second, expected %d", sent.Rate, received.Rate, Rate)
	}
	if len(sent.Samples) == 0 || len(received.Samples) == 0 {
		return Alignment{}, errors.New("cannot align an empty recording")
	}
	c := correlate(sent.Samples, received.Samples)
	best := 0
	for i, v := range c {
		if v > c[best] {
			best = i
		}
	}
	a := Alignment{Lag: best - len(sent.Samples) + 1}
	s, r := overlap(sent.Samples, received.Samples, a.Lag)
	if e := energy(s) * energy(r); e > 0 {
		a.Confidence = max(0, c[best]/math.Sqrt(e))
	}
	if a.Confidence < minConfidence {
		return a, fmt.Errorf("cannot align recordings: correlation %.2f: %w", a.Confidence, ErrUnrelated)
	}
	return a, nil
}

// overlap returns the parts of both that are the same sound at the lag.
func overlap(sent, received []float64, lag int) (s, r []float64) {
	from, to := max(0, -lag), min(len(sent), len(received)-lag)
	if from >= to {
		return nil, nil
	}
	return sent[from:to], received[from+lag : to+lag]
}

func energy(x []float64) float64 {
	e := 0.0
	for _, v := range x {
		e += v * v
	}
	return e
}

// Latency returns the one-way latency in milliseconds, mouth to ear: from the
// moment a sample was read at the microphone to the moment it was played.
// firstRead and firstPlayed are CLOCK_MONOTONIC nanoseconds of the first sample
// of the sent and of the received file, on one machine.
func Latency(a Alignment, firstRead, firstPlayed int64) float64 {
	return float64(firstPlayed-firstRead)/1e6 + float64(a.Lag)*1000/Rate
}

// Same counts at a lag how many samples of both are equal at 16 bits, of how
// many that overlap: for comparing a recording with a local decode.
func Same(reference, received Clip, lag int) (equal, compared int) {
	s, r := overlap(reference.Samples, received.Samples, lag)
	for i := range s {
		if math.Round(s[i]*32768) == math.Round(r[i]*32768) {
			equal++
		}
	}
	return equal, len(s)
}
