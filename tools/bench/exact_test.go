package main

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"rempart/tools/sound"
	"rempart/voice/codec"
)

// hum is a second of something with a pitch and noise.
func hum() sound.Clip {
	random := rand.New(rand.NewPCG(1, 2))
	c := sound.Clip{Rate: codec.SampleRate, Samples: make([]float64, codec.SampleRate)}
	for i := range c.Samples {
		c.Samples[i] = math.Round(8000*math.Sin(float64(i)/40)*math.Sin(float64(i)/9000)+500*random.NormFloat64()) / 32768
	}
	return c
}

func mustSpeech(t *testing.T, seconds int) *speech {
	t.Helper()
	s, err := newSpeech(hum(), seconds)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// played is what a speaker's file holds when packets from first on were heard,
// with so many frames, and a tail that the player made up.
func played(t *testing.T, s *speech, first, frames int) []int16 {
	t.Helper()
	all, err := s.decode(first)
	if err != nil {
		t.Fatal(err)
	}
	tail := make([]int16, codec.FrameSamples)
	for i := range tail {
		tail[i] = int16(i)
	}
	return append(slices.Clone(all[:frames*codec.FrameSamples]), tail...)
}

func TestARecordingOfTheSamePacketsIsEqual(t *testing.T) {
	s := mustSpeech(t, 2)
	if len(s.packets) != 100 {
		t.Fatalf("2 s are %d packets", len(s.packets))
	}
	for _, first := range []int{0, 1, 7} {
		// Another encoder and decoder, as on the handset.
		m, err := mustSpeech(t, 2).compare(played(t, s, first, 60), 60)
		if err != nil || m != (match{First: first, Compared: 60 * codec.FrameSamples, Equal: 60 * codec.FrameSamples}) {
			t.Errorf("first packet %d: %+v, %v", first, m, err)
		}
	}
}

func TestOneSampleThatDiffersIsSeen(t *testing.T) {
	s := mustSpeech(t, 2)
	got := played(t, s, 0, 60)
	got[30*codec.FrameSamples] ^= 1
	m, err := s.compare(got, 60)
	if err != nil || m.First != 0 || m.Compared-m.Equal != 1 {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestALostFrameIsUnlike: what a decoder conceals is not what was sent.
func TestALostFrameIsUnlike(t *testing.T) {
	s := mustSpeech(t, 2)
	d, err := codec.NewDecoder()
	if err != nil {
		t.Fatal(err)
	}
	var got []int16
	frame := make([]int16, codec.FrameSamples)
	for i, packet := range s.packets[:60] {
		if i == 20 {
			err = d.Conceal(frame)
		} else {
			err = d.Decode(frame, packet)
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, frame...)
	}
	m, err := s.compare(got, 60)
	if err != nil || m.Equal == m.Compared || m.Equal < 20*codec.FrameSamples {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestMoreThanWasSentIsUnlike: samples beyond the local decode are not equal to
// anything.
func TestMoreThanWasSentIsUnlike(t *testing.T) {
	s := mustSpeech(t, 1)
	got := played(t, s, 0, 50)
	m, err := s.compare(got, 51)
	if err != nil || m.Compared != 51*codec.FrameSamples || m.Compared-m.Equal != codec.FrameSamples {
		t.Errorf("%+v, %v", m, err)
	}
	if m, err := s.compare(nil, 50); err != nil || m.Compared != 0 {
		t.Errorf("an empty recording: %+v, %v", m, err)
	}
}

func TestSpeechOfAnotherRateIsRefused(t *testing.T) {
	if _, err := newSpeech(sound.Clip{Rate: 44100, Samples: make([]float64, 100)}, 1); err == nil {
		t.Error("44,100 samples per second were encoded")
	}
}

func TestSamplesAreThoseOfTheFile(t *testing.T) {
	var c sound.Clip
	want := []int16{0, 1, -1, 32767, -32768, 1234}
	for _, v := range want {
		c.Samples = append(c.Samples, float64(v)/32768)
	}
	if got := samples16(c); !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	if got := samples16(sound.Clip{Samples: []float64{2, -2}}); !slices.Equal(got, []int16{32767, -32768}) {
		t.Errorf("got %v", got)
	}
}
