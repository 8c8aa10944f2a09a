package sound

import (
	"errors"
	"math"
	"time"
)

// sincHalf is half the width of the interpolation filter, in input samples (of
// the lower of both rates).
const sincHalf = 24

// Resample returns the clip at another rate, by a Hann-windowed sinc that is cut
// at the lower of both Nyquist frequencies.
func Resample(c Clip, rate int) Clip {
	if rate == c.Rate || len(c.Samples) == 0 {
		return Clip{Rate: rate, Samples: append([]float64(nil), c.Samples...)}
	}
	step := float64(c.Rate) / float64(rate)
	cut := min(1, 1/step)
	half := sincHalf / cut
	out := make([]float64, int(math.Round(float64(len(c.Samples))/step)))
	for i := range out {
		at := float64(i) * step
		sum := 0.0
		for k := max(0, int(math.Ceil(at-half))); k <= min(len(c.Samples)-1, int(at+half)); k++ {
			d := float64(k) - at
			sum += c.Samples[k] * cut * sinc(d*cut) * (0.5 + 0.5*math.Cos(math.Pi*d/half))
		}
		out[i] = sum
	}
	return Clip{Rate: rate, Samples: out}
}

func sinc(x float64) float64 {
	if x == 0 {
		return 1
	}
	return math.Sin(math.Pi*x) / (math.Pi * x)
}

// Speech makes one clip of exactly the given length at 48 kHz from several
// recordings, each followed by a pause, again and again as long as there is
// room for a whole one; the rest is silence. The level is raised or lowered so
// that the highest sample is at half scale.
func Speech(clips []Clip, pause, length time.Duration) (Clip, error) {
	if len(clips) == 0 || length <= 0 || length > maxSeconds*time.Second || pause < 0 {
		return Clip{}, errors.New("cannot prepare speech: no recordings, or a length out of range")
	}
	out := Clip{Rate: Rate, Samples: make([]float64, int(length.Seconds()*Rate))}
	gap := int(pause.Seconds() * Rate)
	parts := make([][]float64, len(clips))
	for i, c := range clips {
		if c.Rate <= 0 {
			return Clip{}, errors.New("cannot prepare speech: a recording has no sample rate")
		}
		parts[i] = Resample(c, Rate).Samples
	}
	at, peak := gap, 0.0
	for n := 0; ; n++ {
		p := parts[n%len(parts)]
		if at+len(p) > len(out.Samples) || len(p)+gap == 0 {
			break
		}
		copy(out.Samples[at:], p)
		at += len(p) + gap
	}
	for _, s := range out.Samples {
		peak = max(peak, math.Abs(s))
	}
	if peak == 0 {
		return Clip{}, errors.New("cannot prepare speech: no recording fits in the length, or all are silent")
	}
	for i := range out.Samples {
		out.Samples[i] *= 0.5 / peak
	}
	return out, nil
}
