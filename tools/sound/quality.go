package sound

import (
	"errors"
	"math"
)

// Quality is what a call did to the speech, over the stretch that was received.
type Quality struct {
	// SentLevel and ReceivedLevel in dB below full scale (RMS of the active
	// frames).
	SentLevel     float64 `json:"sent_level_dbfs"`
	ReceivedLevel float64 `json:"received_level_dbfs"`
	// SNR of the waveform after alignment and one gain, in dB. A codec that
	// rebuilds the spectrum and not the waveform is rated low by it.
	SNR float64 `json:"snr_db"`
	// SegmentalSNR is the mean over active 20 ms frames, each limited to
	// -10 … 35 dB.
	SegmentalSNR float64 `json:"segmental_snr_db"`
	// SpectralSNR is the frequency-weighted segmental SNR over 24 bands of
	// 100 Hz … 8 kHz, compared by magnitude, in dB, limited to -10 … 35
	// (after Hu and Loizou, 2008).
	SpectralSNR float64 `json:"spectral_snr_db"`
	// Score is SpectralSNR on a line from 0 (-10 dB) to 100 (35 dB). It is a
	// figure for comparing runs, not an opinion score: not PESQ, not POLQA.
	Score float64 `json:"score"`
	// Active counts the 20 ms frames with speech in what was sent, Gaps those
	// of them that arrived as silence.
	Active int `json:"active_frames"`
	Gaps   int `json:"gap_frames"`
}

const (
	frameLen   = Rate / 50 // 20 ms
	window     = 2048      // 43 ms, for the spectral comparison
	floorDB    = -10
	ceilingDB  = 35
	activeDown = 40 // dB below the loudest frame: quieter frames are not speech
	gapDown    = 30 // dB below the expected level: a frame that was lost
)

// Measure compares both recordings at the alignment.
func Measure(sent, received Clip, a Alignment) (Quality, error) {
	s, r := overlap(sent.Samples, received.Samples, a.Lag)
	if len(s) < 10*frameLen {
		return Quality{}, errors.New("cannot measure quality: less than 200 ms of both recordings overlap")
	}
	cross := 0.0
	for i := range s {
		cross += s[i] * r[i]
	}
	es := energy(s)
	if es == 0 || cross <= 0 {
		return Quality{}, errors.New("cannot measure quality: silence")
	}
	gain := cross / es
	loudest := 0.0
	for at := 0; at+frameLen <= len(s); at += frameLen {
		loudest = max(loudest, energy(s[at:at+frameLen]))
	}
	q := Quality{}
	var sumSeg, sumSpec, sentE, recvE, noiseE float64
	specs := 0
	bands := bandEdges()
	for at := 0; at+frameLen <= len(s); at += frameLen {
		fs, fr := s[at:at+frameLen], r[at:at+frameLen]
		noise := difference(fs, fr, gain)
		noiseE += noise
		e := energy(fs)
		if e < loudest*math.Pow(10, -activeDown/10.0) {
			continue
		}
		q.Active++
		sentE += e
		recvE += energy(fr)
		expected := gain * gain * e
		if energy(fr) < expected*math.Pow(10, -gapDown/10.0) {
			q.Gaps++
		}
		sumSeg += limited(expected, noise)
		if at+window <= len(s) {
			sumSpec += spectral(s[at:at+window], r[at:at+window], gain, bands)
			specs++
		}
	}
	if q.Active == 0 || specs == 0 {
		return Quality{}, errors.New("cannot measure quality: no speech")
	}
	n := float64(q.Active * frameLen)
	q.SentLevel, q.ReceivedLevel = db(sentE/n), db(recvE/n)
	q.SNR = max(floorDB, min(100, db(gain*gain*es)-db(noiseE)))
	q.SegmentalSNR = sumSeg / float64(q.Active)
	q.SpectralSNR = sumSpec / float64(specs)
	q.Score = 100 * (q.SpectralSNR - floorDB) / (ceilingDB - floorDB)
	return q, nil
}

func difference(s, r []float64, gain float64) float64 {
	d := 0.0
	for i := range s {
		x := r[i] - gain*s[i]
		d += x * x
	}
	return d
}

func db(power float64) float64 { return 10 * math.Log10(max(power, 1e-15)) }

// limited is a ratio in dB within the floor and the ceiling of a segmental SNR.
func limited(signal, noise float64) float64 {
	return max(floorDB, min(ceilingDB, db(signal)-db(noise)))
}

// bandEdges are 25 edges of 24 bands, in bins of the window, equally wide on
// the mel scale.
func bandEdges() []int {
	mel := func(hz float64) float64 { return 2595 * math.Log10(1+hz/700) }
	low, high := mel(100), mel(8000)
	edges := make([]int, 25)
	for i := range edges {
		hz := 700 * (math.Pow(10, (low+(high-low)*float64(i)/24)/2595) - 1)
		edges[i] = int(math.Round(hz * window / Rate))
	}
	return edges
}

// spectral is the frequency-weighted SNR of one window.
func spectral(s, r []float64, gain float64, edges []int) float64 {
	z := make([]complex128, window)
	for i := range z {
		w := 0.5 - 0.5*math.Cos(2*math.Pi*float64(i)/window)
		z[i] = complex(gain*s[i]*w, r[i]*w)
	}
	fft(z, false)
	var sum, weights float64
	for b := range len(edges) - 1 {
		var x, y float64
		for k := edges[b]; k < max(edges[b+1], edges[b]+1); k++ {
			p, q := z[k], z[window-k]
			// Both real spectra out of the one complex transform.
			xs := complex(real(p)+real(q), imag(p)-imag(q)) / 2
			ys := complex(imag(p)+imag(q), real(q)-real(p)) / 2
			x += real(xs)*real(xs) + imag(xs)*imag(xs)
			y += real(ys)*real(ys) + imag(ys)*imag(ys)
		}
		x, y = math.Sqrt(x), math.Sqrt(y)
		weight := math.Pow(x, 0.2)
		sum += weight * limited(x*x, (x-y)*(x-y))
		weights += weight
	}
	if weights == 0 {
		return floorDB
	}
	return sum / weights
}
