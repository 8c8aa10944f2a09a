package talk

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rempart/internal/run"
	"rempart/tools/lab/bringup"
	"rempart/tools/report"
	"rempart/tools/sound"
	"rempart/voice/record"
)

// speech is a clip that can be found again: bursts of a tone that glides.
func speech(seconds float64) sound.Clip {
	c := sound.Clip{Rate: sound.Rate, Samples: make([]float64, int(seconds*sound.Rate))}
	phase := 0.0
	for i := range c.Samples {
		t := float64(i) / sound.Rate
		phase += 2 * math.Pi * (150 + 900*t/seconds) / sound.Rate
		c.Samples[i] = 0.4 * math.Sin(phase) * math.Abs(math.Sin(2*math.Pi*1.7*t))
	}
	return c
}

// good is a call in which everything held.
func good() *Result {
	r := &Result{Failures: []string{}, Call: report.Call{From: "a", To: "b"}}
	r.Records.From = record.Record{State: "ended", Level: "restricted", SAS: "k7qm", DialNS: 1e9, Started: 1.05e9, FirstAudioNS: 1.1e9, EndedNS: 4.05e9, BytesPerPacket: 88}
	r.Records.To = r.Records.From
	r.facts()
	r.Ways = []report.Way{{From: "a", To: "b", Sent: 150, Received: 150, OneWayMS: 60, BoundMS: 80}, {From: "b", To: "a", Sent: 150, Received: 150}}
	return r
}

func TestAGoodCallPasses(t *testing.T) {
	r := good()
	r.Judge()
	if !r.Passed || len(r.Failures) != 0 {
		t.Errorf("failures %q", r.Failures)
	}
	if math.Abs(r.DialToMS-100) > 1e-6 || math.Abs(r.Seconds-3) > 1e-6 || r.Level != "restricted" || r.SASFrom != "k7qm" || r.SASTo != "k7qm" {
		t.Errorf("facts %+v", r.Call)
	}
}

func TestEveryBrokenPromiseOfACallFails(t *testing.T) {
	for says, spoil := range map[string]func(*Result){
		"authentication strings differ": func(r *Result) { r.SASTo = "other" },
		"levels differ":                 func(r *Result) { r.Records.To.Level = "secret" },
		"no level":                      func(r *Result) { r.Level = "" },
		"decoded no audio":              func(r *Result) { r.DialToMS = 0 },
		"b heard nothing of a":          func(r *Result) { r.Ways[0].Received = 0 },
		"a did not hear what b said":    func(r *Result) { r.Ways[1].Unheard = true },
		"bound 80 ms":                   func(r *Result) { r.Ways[0].OneWayMS = 81 },
		"the sound path was lost":       func(r *Result) { r.Records.To.State, r.Records.To.Explanation = "failed", "the sound path was lost" },
		"packets of different sizes":    func(r *Result) { r.Records.From.BytesPerPacket = -1 },
	} {
		r := good()
		spoil(r)
		r.Judge()
		if r.Passed || !strings.Contains(strings.Join(r.Failures, "\n"), says) {
			t.Errorf("passed %v with %q, want %q", r.Passed, r.Failures, says)
		}
	}
}

func TestMeasureFindsLatencyAndQuality(t *testing.T) {
	sent := speech(3)
	received := sound.Clip{Rate: sound.Rate, Samples: make([]float64, 2*sound.Rate)} // the call ended before the recording
	const lag = 480
	copy(received.Samples[lag:], sent.Samples)
	var w report.Way
	measure(&w, sent, received, 5e9, 5.05e9)
	if math.Abs(w.OneWayMS-60) > 0.1 || w.Unheard || w.Quality == nil || w.Quality.Score < 90 || len(w.SentWave) == 0 {
		t.Errorf("%+v, want 60 ms: 50 of the stamps and 10 of the lag", w)
	}
	w = report.Way{}
	measure(&w, sent, received, 0, 5e9)
	if w.OneWayMS != 0 || w.Unheard {
		t.Errorf("without a stamp: %g ms", w.OneWayMS)
	}
	noise := sound.Clip{Rate: sound.Rate, Samples: make([]float64, sound.Rate)}
	seed := uint32(1)
	for i := range noise.Samples {
		seed = seed*1664525 + 1013904223
		noise.Samples[i] = float64(seed>>16)/65536 - 0.5
	}
	w = report.Way{}
	measure(&w, sent, noise, 1, 2)
	if !w.Unheard || w.Note == "" {
		t.Errorf("another recording was taken for the one sent: %+v", w)
	}
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	for _, o := range []Options{
		{From: "a", To: "a", Seconds: 1}, {From: "a", To: "b"}, {From: "a", To: "b", Seconds: -1}, {From: "a", To: "b", Seconds: 1e9},
		{From: "a", To: "b", Seconds: math.NaN()}, {From: "a", To: "b", Seconds: 1, Receive: "notes.txt"},
	} {
		if err := checkOptions(o); err == nil || run.HintOf(err) == "" || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v, hint %q", o, err, run.HintOf(err))
		}
	}
	if err := checkOptions(Options{From: "a", To: "b", Seconds: 5, Receive: "x.wav"}); err != nil {
		t.Error(err)
	}
}

func TestRecordings(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, c sound.Clip) string {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(sound.WriteWAV(f, c), f.Close()); err != nil {
			t.Fatal(err)
		}
		return f.Name()
	}
	if file, clip, err := recording(write("speech.wav", speech(1))); err != nil || clip == nil || len(file) == 0 {
		t.Errorf("speech: %v", err)
	}
	if file, clip, err := recording(write("silence.wav", sound.Clip{Rate: sound.Rate, Samples: make([]float64, 100)})); err != nil || clip != nil || len(file) == 0 {
		t.Errorf("silence is sent, and not looked for: %v, %v", clip, err)
	}
	if file, clip, err := recording(""); file != nil || clip != nil || err != nil {
		t.Error("no recording is silence")
	}
	slow := speech(1)
	slow.Rate = 16000
	for _, path := range []string{write("slow.wav", slow), filepath.Join(dir, "none.wav")} {
		if _, _, err := recording(path); err == nil || run.HintOf(err) == "" {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestTheSoundCardIsTheHandsets: what a handset puts there is not followed.
func TestTheSoundCardIsTheHandsets(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("the desk's own"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(dir, speakerFile)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, stampsFile), 0o700); err != nil {
		t.Fatal(err)
	}
	card, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer card.Close()
	s := &side{name: "a", card: card}
	if data, err := s.read(speakerFile, 1000); err == nil {
		t.Errorf("a link was followed to %q", data)
	}
	if _, err := s.stamped(); err == nil {
		t.Error("a folder was read as a file")
	}
	if err := os.WriteFile(filepath.Join(dir, "long"), make([]byte, 1001), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.read("long", 1000); err == nil {
		t.Error("a file beyond the limit was read")
	}
}

func TestWhatKeepsAHandsetFromTelephoning(t *testing.T) {
	registered := func() *record.Status {
		return &record.Status{Registration: record.Registration{State: "registered"}}
	}
	if err := free("w", "a", bringup.PhoneStatus{Telephone: registered()}); err != nil {
		t.Error(err)
	}
	busy := registered()
	busy.Current = &record.Record{Peer: "c"}
	for says, s := range map[string]bringup.PhoneStatus{
		"does not answer":           {},
		"it is unregistered":        {Telephone: &record.Status{Registration: record.Registration{State: "unregistered", Reason: "no tunnel"}}},
		"in a call already, with c": {Telephone: busy},
	} {
		if err := free("w", "a", s); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(run.HintOf(err), "--world w a") {
			t.Errorf("%v (hint %q), want %q", err, run.HintOf(err), says)
		}
	}
}

func TestWhatThePhoneSaysIsOneLineAndAHint(t *testing.T) {
	err := spoken("cannot call b from a", errors.New("rempart call b on a: exit status 1: rempart: cannot reach voiced: it is not there\nhint: rempart status\nsays what runs"))
	if err.Error() != "cannot call b from a: cannot reach voiced: it is not there" || run.HintOf(err) != "rempart status; says what runs" {
		t.Errorf("%v, hint %q", err, run.HintOf(err))
	}
	if err := spoken("x", nil); err == nil || run.HintOf(err) != "" {
		t.Errorf("%v", err)
	}
	for _, r := range []record.Record{{Reason: "busy"}, {Reason: "no_answer"}, {Reason: "keying_failed", Detail: "a\nb"}, {Reason: "refused"}, {}} {
		if h := hint("w", "b", r); h == "" || strings.Contains(h, "\n") || reason(r) == "" {
			t.Errorf("%+v: hint %q, reason %q", r, h, reason(r))
		}
	}
}
