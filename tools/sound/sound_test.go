package sound

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rempart/internal/proof"
)

// voiceLike is noise with the rhythm and colour of speech: bursts of syllables
// of low-passed noise, silence between words.
func voiceLike(seconds float64, seed uint64) Clip {
	r := rand.New(rand.NewPCG(seed, 7))
	c := Clip{Rate: Rate, Samples: make([]float64, int(seconds*Rate))}
	low := 0.0
	for i := range c.Samples {
		t := float64(i) / Rate
		low += 0.15 * (r.NormFloat64() - low)
		if math.Mod(t, 1.1) < 0.7 {
			c.Samples[i] = 0.5 * low * math.Abs(math.Sin(2*math.Pi*3.1*t))
		}
	}
	return c
}

// through delays the clip by n samples, scales it and adds noise.
func through(c Clip, n int, gain, noise float64) Clip {
	r := rand.New(rand.NewPCG(3, 4))
	out := Clip{Rate: c.Rate, Samples: make([]float64, max(0, len(c.Samples)+n))}
	for i := range out.Samples {
		if k := i - n; k >= 0 && k < len(c.Samples) {
			out.Samples[i] = gain * c.Samples[k]
		}
		out.Samples[i] += noise * r.NormFloat64()
	}
	return out
}

func TestFFTAgreesWithTheDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 2, 8, 64} {
		x := make([]complex128, n)
		for i := range x {
			x[i] = complex(r.Float64(), r.Float64())
		}
		got := append([]complex128(nil), x...)
		fft(got, false)
		for k := range x {
			var want complex128
			for i, v := range x {
				s, c := math.Sincos(-2 * math.Pi * float64(i*k) / float64(n))
				want += v * complex(c, s)
			}
			if d := got[k] - want; math.Hypot(real(d), imag(d)) > 1e-9 {
				t.Fatalf("n=%d, bin %d: %v, want %v", n, k, got[k], want)
			}
		}
		fft(got, true)
		for i := range x {
			if d := got[i]/complex(float64(n), 0) - x[i]; math.Hypot(real(d), imag(d)) > 1e-9 {
				t.Fatalf("n=%d: the inverse is none", n)
			}
		}
	}
}

func TestCorrelateAgreesWithTheDefinition(t *testing.T) {
	a, b := []float64{1, -2, 3}, []float64{0.5, 1, -2, 3, 1}
	got := correlate(a, b)
	for i, v := range got {
		lag, want := i-len(a)+1, 0.0
		for k := range a {
			if j := k + lag; j >= 0 && j < len(b) {
				want += a[k] * b[j]
			}
		}
		if math.Abs(v-want) > 1e-9 {
			t.Errorf("lag %d: %g, want %g", lag, v, want)
		}
	}
}

func TestAlignFindsTheDelay(t *testing.T) {
	sent := voiceLike(1.5, 1)
	for _, c := range []struct {
		lag         int
		gain, noise float64
	}{{0, 1, 0}, {1, 1, 0}, {2880, 0.3, 0.002}, {48000, 1, 0.02}, {-12000, 0.8, 0.001}} {
		a, err := Align(sent, through(sent, c.lag, c.gain, c.noise))
		if err != nil || a.Lag != c.lag || a.Confidence > 1.0001 {
			t.Errorf("%+v: %+v, %v", c, a, err)
		}
	}
}

func TestAlignRefusesAnotherRecording(t *testing.T) {
	if a, err := Align(voiceLike(1.5, 1), voiceLike(1.5, 99)); !errors.Is(err, ErrUnrelated) {
		t.Errorf("%+v, %v", a, err)
	}
	silent := Clip{Rate: Rate, Samples: make([]float64, Rate)}
	if _, err := Align(voiceLike(1, 1), silent); !errors.Is(err, ErrUnrelated) {
		t.Errorf("silence: %v", err)
	}
	if _, err := Align(voiceLike(1, 1), Clip{Rate: 8000, Samples: make([]float64, 10)}); err == nil {
		t.Error("another rate was aligned")
	}
	if _, err := Align(Clip{Rate: Rate}, silent); err == nil {
		t.Error("nothing was aligned")
	}
}

func TestLatencyJoinsStampsAndLag(t *testing.T) {
	// Played 100 ms after reading began, and the received file's first sound is
	// 40 ms before the sent file's: the jitter buffer started with the stream.
	if ms := Latency(Alignment{Lag: -1920}, 5e9, 5.1e9); math.Abs(ms-60) > 1e-9 {
		t.Errorf("%g ms, want 60", ms)
	}
	sent := voiceLike(1.5, 1)
	a, err := Align(sent, through(sent, 960, 1, 0))
	if err != nil || math.Abs(Latency(a, 1e9, 1.03e9)-50) > 1e-6 {
		t.Errorf("%g ms, %v; want 50", Latency(a, 1e9, 1.03e9), err)
	}
}

func TestQualityFollowsTheNoise(t *testing.T) {
	sent, last := voiceLike(3, 1), 101.0
	for _, noise := range []float64{0, 0.001, 0.01, 0.05} {
		q, err := Measure(sent, through(sent, 500, 0.7, noise), Alignment{Lag: 500})
		if err != nil {
			t.Fatal(err)
		}
		if q.Score >= last || q.Score < 0 || q.Gaps != 0 {
			t.Errorf("noise %g: %+v, not below %g", noise, q, last)
		}
		last = q.Score
		if noise == 0 && (q.Score < 99 || q.SNR < 60) {
			t.Errorf("a perfect copy: %+v", q)
		}
		if noise == 0 && math.Abs(q.ReceivedLevel-q.SentLevel-20*math.Log10(0.7)) > 0.1 {
			t.Errorf("levels %g and %g", q.SentLevel, q.ReceivedLevel)
		}
	}
}

func TestSNRIsWhatWasMixed(t *testing.T) {
	sent := voiceLike(3, 1)
	power := energy(sent.Samples) / float64(len(sent.Samples))
	noise := math.Sqrt(power / 100) // 20 dB
	q, err := Measure(sent, through(sent, 0, 1, noise), Alignment{})
	if err != nil || math.Abs(q.SNR-20) > 0.5 {
		t.Errorf("%+v, %v; want 20 dB", q, err)
	}
}

func TestGapsAreCounted(t *testing.T) {
	sent := voiceLike(3, 1)
	got := through(sent, 0, 1, 0)
	for at := frameLen * 5; at+frameLen <= len(got.Samples); at += frameLen * 20 {
		clear(got.Samples[at : at+frameLen])
	}
	q, err := Measure(sent, got, Alignment{})
	if share := float64(q.Gaps) / float64(q.Active); err != nil || share < 0.03 || share > 0.07 {
		t.Errorf("%+v, %v; want about 5 %% of gaps", q, err)
	}
}

func TestMeasureRefusesTooLittle(t *testing.T) {
	c := voiceLike(1, 1)
	if _, err := Measure(c, c, Alignment{Lag: Rate}); err == nil {
		t.Error("measured without overlap")
	}
	silent := Clip{Rate: Rate, Samples: make([]float64, Rate)}
	if _, err := Measure(silent, c, Alignment{}); err == nil {
		t.Error("measured silence")
	}
}

func TestSameComparesSamples(t *testing.T) {
	a := voiceLike(1, 1)
	b := through(a, 100, 1, 0)
	if equal, n := Same(a, b, 100); equal != n || n != Rate {
		t.Errorf("%d of %d equal", equal, n)
	}
	b.Samples[200] += 0.1
	if equal, n := Same(a, b, 100); equal != n-1 {
		t.Errorf("%d of %d equal after one change", equal, n)
	}
	if _, n := Same(a, b, 10*Rate); n != 0 {
		t.Error("compared without overlap")
	}
}

func TestWAVIsReadAsWritten(t *testing.T) {
	want := voiceLike(0.5, 1)
	var b bytes.Buffer
	if err := WriteWAV(&b, want); err != nil {
		t.Fatal(err)
	}
	got, err := ReadWAV(bytes.NewReader(b.Bytes()))
	if err != nil || got.Rate != Rate || len(got.Samples) != len(want.Samples) || got.Length() != 500*time.Millisecond {
		t.Fatalf("%d samples at %d, %v", len(got.Samples), got.Rate, err)
	}
	for i := range want.Samples {
		if math.Abs(got.Samples[i]-want.Samples[i]) > 1.0/32768 {
			t.Fatalf("sample %d: %g, want %g", i, got.Samples[i], want.Samples[i])
		}
	}
	var again bytes.Buffer
	if WriteWAV(&again, got); !bytes.Equal(again.Bytes(), b.Bytes()) {
		t.Error("reading and writing changes the file")
	}
	loud := Clip{Rate: Rate, Samples: []float64{2, -2}}
	b.Reset()
	WriteWAV(&b, loud)
	if got, _ := ReadWAV(&b); got.Samples[0] < 0.99 || got.Samples[1] != -1 {
		t.Errorf("clipping wraps round: %v", got.Samples)
	}
}

func TestOtherFilesAreRefused(t *testing.T) {
	var b bytes.Buffer
	WriteWAV(&b, voiceLike(0.1, 1))
	good := b.Bytes()
	change := func(at int, to ...byte) []byte { c := bytes.Clone(good); copy(c[at:], to); return c }
	for name, file := range map[string][]byte{
		"nothing":       nil,
		"MP3":           []byte("ID3\x04 and so on and so on"),
		"float samples": change(20, 3),
		"24 bits":       change(34, 24),
		"six channels":  change(22, 6),
		"no channel":    change(22, 0),
		"4 kHz":         change(24, 0xa0, 0x0f, 0, 0),
		"cut":           good[:1000],
		"huge chunk":    change(40, 0xff, 0xff, 0xff, 0x7f),
		"no samples":    good[:36],
		"no format":     append(append([]byte("RIFF\x00\x00\x00\x00WAVE"), "data"...), 0, 0, 0, 0),
	} {
		var fe *FormatError
		if c, err := ReadWAV(bytes.NewReader(file)); !errors.As(err, &fe) {
			t.Errorf("%s: %d samples, %v", name, len(c.Samples), err)
		}
	}
}

func TestTheMicrophoneTakesOneFormat(t *testing.T) {
	mono := voiceLike(0.1, 1)
	var good, slow bytes.Buffer
	if err := errors.Join(WriteWAV(&good, mono), WriteWAV(&slow, Clip{Rate: 16000, Samples: mono.Samples})); err != nil {
		t.Fatal(err)
	}
	if c, err := ReadMicrophone(bytes.NewReader(good.Bytes())); err != nil || len(c.Samples) != len(mono.Samples) {
		t.Errorf("the right format: %d samples, %v", len(c.Samples), err)
	}
	stereo := bytes.Clone(good.Bytes())
	binary.LittleEndian.PutUint16(stereo[22:], 2)
	for says, file := range map[string][]byte{"mono, 16000": slow.Bytes(), "stereo, 48000": stereo, "no WAV file": []byte("ID3 and then music")} {
		_, err := ReadMicrophone(bytes.NewReader(file))
		if f, ok := errors.AsType[*FormatError](err); !ok || !strings.Contains(f.Got, says) || !strings.Contains(err.Error(), "expected 16-bit PCM, mono, 48,000") {
			t.Errorf("%v, want %q and what was expected", err, says)
		}
	}
}

func TestStereoAndExtensibleAreRead(t *testing.T) {
	f := binary.LittleEndian.AppendUint16(nil, 0xFFFE)
	f = append(f, 2, 0)
	f = binary.LittleEndian.AppendUint32(f, 44100)
	f = append(f, 0, 0, 0, 0, 4, 0, 16, 0, 22, 0, 16, 0, 3, 0, 0, 0, 1, 0)
	f = append(f, pcmGUID...)
	file := append([]byte("RIFF\x00\x00\x00\x00WAVEfmt \x28\x00\x00\x00"), f...)
	file = append(file, "LIST\x03\x00\x00\x00abc\x00data\x04\x00\x00\x00\x00\x40\x00\x00"...)
	c, err := ReadWAV(bytes.NewReader(file))
	if err != nil || c.Rate != 44100 || len(c.Samples) != 1 || c.Samples[0] != 0.25 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestResampleKeepsATone(t *testing.T) {
	for _, from := range []int{8000, 44100, 96000} {
		c := Clip{Rate: from, Samples: make([]float64, from)}
		for i := range c.Samples {
			c.Samples[i] = math.Sin(2 * math.Pi * 1000 * float64(i) / float64(from))
		}
		got := Resample(c, Rate)
		if len(got.Samples) != Rate {
			t.Fatalf("%d samples of one second", len(got.Samples))
		}
		for i := Rate / 4; i < 3*Rate/4; i++ {
			if want := math.Sin(2 * math.Pi * 1000 * float64(i) / Rate); math.Abs(got.Samples[i]-want) > 0.02 {
				t.Fatalf("from %d, sample %d: %g, want %g", from, i, got.Samples[i], want)
			}
		}
	}
}

func TestSpeechFillsItsLength(t *testing.T) {
	word := voiceLike(0.6, 1)
	c, err := Speech([]Clip{word, Resample(word, 16000)}, 200*time.Millisecond, 3*time.Second)
	if err != nil || c.Length() != 3*time.Second {
		t.Fatalf("%v long, %v", c.Length(), err)
	}
	peak := 0.0
	for _, s := range c.Samples {
		peak = max(peak, math.Abs(s))
	}
	if math.Abs(peak-0.5) > 1e-9 || energy(c.Samples[:Rate/5]) != 0 || energy(c.Samples[Rate/5:Rate]) == 0 {
		t.Errorf("peak %g", peak)
	}
	for name, f := range map[string]func() (Clip, error){
		"no recordings": func() (Clip, error) { return Speech(nil, 0, time.Second) },
		"too short":     func() (Clip, error) { return Speech([]Clip{word}, 0, time.Millisecond) },
		"no rate":       func() (Clip, error) { return Speech([]Clip{{Samples: []float64{1}}}, 0, time.Second) },
		"only nothing":  func() (Clip, error) { return Speech([]Clip{{Rate: Rate}}, 0, time.Second) },
	} {
		if _, err := f(); err == nil {
			t.Errorf("%s: prepared", name)
		}
	}
}

// recorded is speech of the given length from the recordings of Debian's
// alsa-utils that the demo uses.
func recorded(t *testing.T, length time.Duration) Clip {
	t.Helper()
	files, _ := filepath.Glob("/usr/share/sounds/alsa/Front_*.wav")
	if len(files) < 3 {
		proof.Missing(t, "recordings of alsa-utils (run make setup)")
	}
	var clips []Clip
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		c, err := ReadWAV(f)
		f.Close()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		clips = append(clips, c)
	}
	sent, err := Speech(clips, 300*time.Millisecond, length)
	if err != nil {
		t.Fatal(err)
	}
	return sent
}

func TestRecordedSpeechThroughTheWholeChain(t *testing.T) {
	sent := recorded(t, 5*time.Second)
	received := through(sent, 2640, 0.9, 0.001)
	began := time.Now()
	a, err := Align(sent, received)
	if err != nil || a.Lag != 2640 {
		t.Fatalf("%+v, %v", a, err)
	}
	q, err := Measure(sent, received, a)
	if err != nil || q.Gaps > 0 || q.Active < 50 || q.SegmentalSNR < 10 {
		t.Errorf("%+v, %v", q, err)
	}
	t.Logf("5 s in %v: %+v", time.Since(began), q)
}

func BenchmarkAlignTenSeconds(b *testing.B) {
	sent := voiceLike(10, 1)
	got := through(sent, 2000, 1, 0.01)
	for b.Loop() {
		if _, err := Align(sent, got); err != nil {
			b.Fatal(err)
		}
	}
}
