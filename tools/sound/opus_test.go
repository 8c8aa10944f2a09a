package sound

import (
	"testing"
	"time"

	"rempart/voice/codec"
)

// TestSpeechThroughOpusIsFound: the product's own codec, whose packets carry
// 24 kbit/s, must leave enough of the waveform to measure a latency by, and the
// quality must fall where a tenth of the packets is lost.
func TestSpeechThroughOpusIsFound(t *testing.T) {
	t.Run("noise", func(t *testing.T) { throughOpus(t, voiceLike(2, 5)) })
	t.Run("recordings", func(t *testing.T) { throughOpus(t, recorded(t, 4*time.Second)) })
}

func throughOpus(t *testing.T, sent Clip) {
	through := func(lose int) Clip {
		enc, err := codec.NewEncoder()
		if err != nil {
			t.Fatal(err)
		}
		dec, err := codec.NewDecoder()
		if err != nil {
			t.Fatal(err)
		}
		out := Clip{Rate: Rate}
		in, got, packet := make([]int16, codec.FrameSamples), make([]int16, codec.FrameSamples), make([]byte, codec.PacketSize)
		for at := 0; at+len(in) <= len(sent.Samples); at += len(in) {
			for i := range in {
				in[i] = int16(sent.Samples[at+i] * 32767)
			}
			if err := enc.Encode(packet, in); err != nil {
				t.Fatal(err)
			}
			if n := at / len(in); lose > 0 && n%lose == lose-1 {
				err = dec.Conceal(got)
			} else {
				err = dec.Decode(got, packet)
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range got {
				out.Samples = append(out.Samples, float64(s)/32768)
			}
		}
		return out
	}
	measure := func(received Clip) (Alignment, Quality) {
		a, err := Align(sent, received)
		if err != nil {
			t.Fatalf("%+v, %v", a, err)
		}
		q, err := Measure(sent, received, a)
		if err != nil {
			t.Fatal(err)
		}
		return a, q
	}
	clean := through(0)
	a, q := measure(clean)
	if ms := float64(a.Lag) * 1000 / Rate; ms < 0 || ms > 10 {
		t.Errorf("the codec alone delays by %g ms", ms)
	}
	_, worse := measure(through(10))
	if worse.Score >= q.Score {
		t.Errorf("with a tenth lost the score is %g, without loss %g", worse.Score, q.Score)
	}
	if again, n := Same(clean, through(0), 0); again != n || n == 0 {
		t.Errorf("two decodes of the same packets agree in %d of %d samples", again, n)
	}
	t.Logf("lag %d, correlation %.2f, %+v; with loss %+v", a.Lag, a.Confidence, q, worse)
}
