package codec

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"rempart/internal/proof"
)

// speechLike is a deterministic signal with what an encoder reacts to: voiced stretches with a moving pitch and formants,
// noise bursts, pauses.
func speechLike(frames int) []int16 {
	rng := rand.New(rand.NewPCG(1, 2))
	out := make([]int16, frames*FrameSamples)
	phase := 0.0
	for i := range out {
		t := float64(i) / SampleRate
		segment := int(t*4) % 4
		pitch := 110 + 40*math.Sin(2*math.Pi*0.7*t)
		phase += 2 * math.Pi * pitch / SampleRate
		var v float64
		switch segment {
		case 0, 1:
			for h := 1; h <= 20; h++ {
				f := pitch * float64(h)
				gain := math.Exp(-math.Pow((f-600)/500, 2)) + 0.5*math.Exp(-math.Pow((f-1700)/600, 2))
				v += gain * math.Sin(float64(h)*phase)
			}
			v *= 4000
		case 2:
			v = 3000 * rng.NormFloat64()
		}
		out[i] = int16(max(-32768, min(32767, v)))
	}
	return out
}

func newPair(t testing.TB) (*Encoder, *Decoder) {
	t.Helper()
	enc, err := NewEncoder()
	if err != nil {
		t.Fatal(err)
	}
	dec, err := NewDecoder()
	if err != nil {
		t.Fatal(err)
	}
	return enc, dec
}

// signals are the inputs whose packets must not differ in size, by what a listener would like to tell apart.
func signals() map[string][]int16 {
	const frames = 100
	silence := make([]int16, frames*FrameSamples)
	noise := make([]int16, frames*FrameSamples)
	square := make([]int16, frames*FrameSamples)
	click := make([]int16, frames*FrameSamples)
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range noise {
		noise[i] = int16(rng.IntN(65536) - 32768)
		square[i] = math.MaxInt16
		if i/54%2 == 1 {
			square[i] = math.MinInt16
		}
	}
	for i := 0; i < len(click); i += 5000 {
		click[i] = math.MinInt16
	}
	mixed := append([]int16{}, silence...)
	mixed = append(mixed, speechLike(frames)...)
	mixed = append(mixed, silence...)
	return map[string][]int16{
		"silence": silence, "speech": speechLike(frames), "noise": noise, "full-scale square": square, "clicks": click,
		"silence, speech, silence": mixed,
	}
}

func TestEveryPacketHasOneSize(t *testing.T) {
	// The size cannot be switched off here, so the twin is the codec in the mode that is refused: variable bit rate.
	proof.SFR(t, "FCO_VOC_EXT.1", "TestVariableBitRateWouldShow")
	for name, pcm := range signals() {
		t.Run(name, func(t *testing.T) {
			enc, dec := newPair(t)
			frame := make([]int16, FrameSamples)
			for i := 0; i+FrameSamples <= len(pcm); i += FrameSamples {
				// A guard byte after the packet shows that nothing is written past it.
				buf := bytes.Repeat([]byte{0xa5}, PacketSize+1)
				if err := enc.Encode(buf[:PacketSize], pcm[i:i+FrameSamples]); err != nil {
					t.Fatal(err)
				}
				if buf[PacketSize] != 0xa5 {
					t.Fatal("the encoder wrote past the packet")
				}
				if err := dec.Decode(frame, buf[:PacketSize]); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestVariableBitRateWouldShow is the twin of TestEveryPacketHasOneSize: with variable bit rate, speech and silence differ in
// size, and the encoder's check refuses the packets.
func TestVariableBitRateWouldShow(t *testing.T) {
	enc, _ := newPair(t)
	enc.enc.SetVBR(true)
	pcm := append(make([]int16, 50*FrameSamples), speechLike(50)...)
	refused := 0
	packet := make([]byte, PacketSize)
	for i := 0; i+FrameSamples <= len(pcm); i += FrameSamples {
		if err := enc.Encode(packet, pcm[i:i+FrameSamples]); errors.Is(err, ErrPacketSize) {
			refused++
		}
	}
	if refused == 0 {
		t.Fatal("variable bit rate gave packets of one size: the check above proves nothing")
	}
	t.Logf("%d of 100 packets refused", refused)
}

func TestSpeechSurvives(t *testing.T) {
	enc, dec := newPair(t)
	pcm := speechLike(150)
	var out []int16
	packet, frame := make([]byte, PacketSize), make([]int16, FrameSamples)
	for i := 0; i+FrameSamples <= len(pcm); i += FrameSamples {
		if err := enc.Encode(packet, pcm[i:i+FrameSamples]); err != nil {
			t.Fatal(err)
		}
		if err := dec.Decode(frame, packet); err != nil {
			t.Fatal(err)
		}
		out = append(out, frame...)
	}
	// The delay that Lookahead reports is where the two correlate best.
	best, at := 0.0, 0
	for lag := range 1000 {
		if c := correlation(pcm[FrameSamples:100*FrameSamples], out[FrameSamples+lag:]); c > best {
			best, at = c, lag
		}
	}
	if d := at - enc.Lookahead(); d < -4 || d > 4 {
		t.Errorf("decoded speech is %d samples late, Lookahead says %d", at, enc.Lookahead())
	}
	if best < 0.8 {
		t.Errorf("correlation of speech with its decoding is %.2f, want at least 0.8", best)
	}
}

func correlation(a, b []int16) float64 {
	var ab, aa, bb float64
	for i, x := range a {
		y := float64(b[i])
		ab += float64(x) * y
		aa += float64(x) * float64(x)
		bb += y * y
	}
	if aa == 0 || bb == 0 {
		return 0
	}
	return ab / math.Sqrt(aa*bb)
}

func TestEncoderIsDeterministic(t *testing.T) {
	pcm := speechLike(60)
	first, _ := newPair(t)
	second, _ := newPair(t)
	a, b := make([]byte, PacketSize), make([]byte, PacketSize)
	for i := 0; i+FrameSamples <= len(pcm); i += FrameSamples {
		if err := errors.Join(first.Encode(a, pcm[i:i+FrameSamples]), second.Encode(b, pcm[i:i+FrameSamples])); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Fatalf("frame %d is encoded in two ways: a received file could not be checked against its source", i/FrameSamples)
		}
	}
}

func TestConcealmentFadesOut(t *testing.T) {
	enc, dec := newPair(t)
	pcm := speechLike(20)
	packet, frame := make([]byte, PacketSize), make([]int16, FrameSamples)
	if err := dec.Conceal(frame); err != nil {
		t.Fatalf("concealing before the first packet: %v", err)
	}
	if energy(frame) != 0 {
		t.Error("concealment before the first packet is not silence")
	}
	for i := 0; i < 10*FrameSamples; i += FrameSamples {
		if err := errors.Join(enc.Encode(packet, pcm[i:i+FrameSamples]), dec.Decode(frame, packet)); err != nil {
			t.Fatal(err)
		}
	}
	spoken := energy(frame)
	var last float64
	for i := range 50 {
		if err := dec.Conceal(frame); err != nil {
			t.Fatal(err)
		}
		last = energy(frame)
		if i == 0 && last < spoken/100 {
			t.Error("the first lost frame is a hole, not a continuation")
		}
	}
	if last > spoken/100 {
		t.Errorf("after 1 s of loss the decoder still plays: energy %.0f, speech had %.0f", last, spoken)
	}
}

func energy(frame []int16) float64 {
	var e float64
	for _, s := range frame {
		e += float64(s) * float64(s)
	}
	return e
}

func TestWrongLengths(t *testing.T) {
	enc, dec := newPair(t)
	packet, frame := make([]byte, PacketSize), make([]int16, FrameSamples)
	for _, n := range []int{0, 1, FrameSamples - 1, FrameSamples + 1, 2 * FrameSamples} {
		if err := enc.Encode(packet, make([]int16, n)); !errors.Is(err, ErrFrameLength) {
			t.Errorf("encoding %d samples: %v", n, err)
		}
		if err := dec.Conceal(make([]int16, n)); !errors.Is(err, ErrFrameLength) {
			t.Errorf("concealing %d samples: %v", n, err)
		}
	}
	for _, n := range []int{0, 1, PacketSize - 1, PacketSize + 1, 1500} {
		if err := enc.Encode(make([]byte, n), frame); !errors.Is(err, ErrPacketSize) {
			t.Errorf("encoding into %d bytes: %v", n, err)
		}
		if err := dec.Decode(frame, make([]byte, n)); !errors.Is(err, ErrPacketSize) {
			t.Errorf("decoding %d bytes: %v", n, err)
		}
	}
}

// TestHostileContent gives packets of the right size whose table of contents claims other durations (RFC 6716 §3.1).
func TestHostileContent(t *testing.T) {
	for toc := range 256 {
		_, dec := newPair(t)
		packet := make([]byte, PacketSize)
		packet[0] = byte(toc)
		for i := 1; i < len(packet); i++ {
			packet[i] = byte(i * toc)
		}
		frame := make([]int16, FrameSamples)
		err := dec.Decode(frame, packet)
		if errors.Is(err, ErrPanic) {
			t.Errorf("table of contents %#02x: %v", toc, err)
		}
		// Whatever came before, the stream goes on.
		if err := dec.Conceal(frame); err != nil {
			t.Errorf("table of contents %#02x, concealing after it: %v", toc, err)
		}
	}
}

func TestPanicIsAnError(t *testing.T) {
	_, dec := newPair(t)
	// A decoder without its scratch buffer stands for a bug in the library: the slice expression in decodeBare panics.
	dec.scratch = nil
	frame := make([]int16, FrameSamples)
	if err := dec.Conceal(frame); !errors.Is(err, ErrPanic) {
		t.Fatalf("a panic came out as %v", err)
	}
}

// FuzzDecode feeds the Opus decoder pairs of packets, a concealed frame between them, without the net that Decode puts
// under it: a panic, a hang or an out-of-range read in the library fails here.
func FuzzDecode(f *testing.F) {
	enc, _ := newPair(f)
	pcm := speechLike(8)
	var packets [][]byte
	for i := 0; i+FrameSamples <= len(pcm); i += FrameSamples {
		p := make([]byte, PacketSize)
		if err := enc.Encode(p, pcm[i:i+FrameSamples]); err != nil {
			f.Fatal(err)
		}
		packets = append(packets, p)
	}
	for i := 1; i < len(packets); i++ {
		f.Add(packets[i-1], packets[i])
	}
	for toc := 0; toc < 256; toc += 5 {
		p := append([]byte{byte(toc)}, packets[3][1:]...)
		f.Add(p, packets[4])
		f.Add(packets[4], p)
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		_, dec := newPair(t)
		frame := make([]int16, FrameSamples)
		for _, p := range [][]byte{a, nil, b, nil, a} {
			if p != nil {
				// The wire has one size only; shorter inputs stand for themselves with zeros after them.
				p = append(append([]byte{}, p...), make([]byte, PacketSize)...)[:PacketSize]
			}
			if err := dec.decodeBare(frame, p); err != nil && !errors.Is(err, ErrPacketContent) {
				t.Fatalf("untyped error: %v", err)
			}
		}
	})
}

// TestCorpusIsThere: go test replays the committed corpus of FuzzDecode, and says nothing if it has gone.
func TestCorpusIsThere(t *testing.T) {
	files, err := filepath.Glob("testdata/fuzz/FuzzDecode/*")
	if err != nil || len(files) < 6 {
		t.Errorf("%d files in the corpus of FuzzDecode, want at least 6 (%v)", len(files), err)
	}
}

func BenchmarkEncode(b *testing.B) {
	enc, _ := newPair(b)
	pcm := speechLike(100)
	packet := make([]byte, PacketSize)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		at := i % 100 * FrameSamples
		if err := enc.Encode(packet, pcm[at:at+FrameSamples]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	enc, dec := newPair(b)
	packet, frame := make([]byte, PacketSize), make([]int16, FrameSamples)
	if err := enc.Encode(packet, speechLike(1)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := dec.Decode(frame, packet); err != nil {
			b.Fatal(err)
		}
	}
}
