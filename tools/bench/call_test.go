package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rempart/internal/proof"
	"rempart/internal/run"
	"rempart/tools/sound"
)

func TestMicrophonesSayDifferentSpeech(t *testing.T) {
	if _, err := os.Stat(filepath.Join(recordings, "Front_Center.wav")); err != nil {
		proof.Missing(t, "recordings of alsa-utils (run make setup)")
	}
	var said [2]*speech
	for i := range said {
		dir := t.TempDir()
		var err error
		if said[i], err = speak(dir, i); err != nil {
			t.Fatal(err)
		}
		file, err := readClip(filepath.Join(dir, "mic.wav"))
		if err != nil || file.Rate != sound.Rate || file.Length() != speechTime {
			t.Errorf("the microphone has %d samples per second, %v, %v", file.Rate, file.Length(), err)
		}
		if len(said[i].packets)*20 < callSeconds*1000+1000 {
			t.Errorf("%d packets are too few for a call of %d s", len(said[i].packets), callSeconds)
		}
	}
	// Speech of its own each, so that one way cannot be taken for the other.
	if _, err := sound.Align(said[0].clip, said[1].clip); err == nil {
		t.Error("both microphones say the same")
	}
}

func TestMissingRecordingNamesThePackage(t *testing.T) {
	_, err := readClip(filepath.Join(t.TempDir(), "Front_Center.wav"))
	if err == nil || !strings.Contains(err.Error(), "cannot read a recording") || run.HintOf(err) != "" {
		t.Errorf("got %v", err)
	}
	bad := filepath.Join(t.TempDir(), "x.wav")
	if err := os.WriteFile(bad, []byte("no sound"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readClip(bad); err == nil || !strings.Contains(err.Error(), bad) {
		t.Errorf("got %v", err)
	}
}

// good is a call as it should be.
func good() callSample {
	whole := match{Compared: 96000, Equal: 96000}
	return callSample{DialMS: 120, CalleeMS: 110, AnsweredMS: 10, KeyedMS: 40, Directions: []direction{
		{From: "a", To: "b", LatencyMS: 71, Lossless: true, Exact: whole}, {From: "b", To: "a", LatencyMS: 72, Lossless: true, Exact: whole}}}
}

func TestVerdictOfCalls(t *testing.T) {
	for what, c := range map[string]struct {
		change func([]callSample)
		kept   bool
	}{
		"good":                  {func([]callSample) {}, true},
		"one slow of twenty":    {func(s []callSample) { s[3].DialMS = 1500 }, true},
		"two slow of twenty":    {func(s []callSample) { s[3].DialMS, s[9].DialMS = 1500, 1001 }, false},
		"one way late":          {func(s []callSample) { s[3].Directions[1].LatencyMS = 80.1 }, false},
		"one sample unlike":     {func(s []callSample) { s[3].Directions[1].Exact.Equal-- }, false},
		"unlike, but with loss": {func(s []callSample) { s[3].Directions[1].Exact.Equal--; s[3].Directions[1].Lossless = false }, true},
		"loss everywhere": {func(s []callSample) {
			for i := range s {
				s[i].Directions[0].Lossless, s[i].Directions[1].Lossless = false, false
			}
		}, false}, // nothing was compared, so nothing is shown
	} {
		var samples []callSample
		for range 20 {
			samples = append(samples, good())
		}
		c.change(samples)
		r := &result{Name: "call"}
		reportCalls(r, samples)
		if r.finish(nil); r.Kept != c.kept {
			t.Errorf("%s: kept is %v", what, r.Kept)
		}
	}
	r := &result{Name: "call"}
	reportCalls(r, nil)
	if r.finish(nil); r.Kept {
		t.Error("no call at all was kept")
	}
}
