package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"rempart/board/netns"
	"rempart/internal/atomicfile"
	"rempart/internal/run"
	"rempart/tools/sound"
	"rempart/voice/record"
)

const (
	callSeconds = 2                       // that a call is active
	speechTime  = 2500 * time.Millisecond // of speech in each microphone
	recordings  = "/usr/share/sounds/alsa"
)

// stamps is what the sound card of a handset says of a call (voice/internal/
// audio): CLOCK_MONOTONIC in nanoseconds.
type stamps struct {
	Mic     int64 `json:"mic_first_sample_ns"`
	Speaker int64 `json:"speaker_first_sample_ns"`
}

// direction is one half of a call: from one microphone to the other speaker.
type direction struct {
	From      string  `json:"from"`
	To        string  `json:"to"`
	LatencyMS float64 `json:"latency_ms"`
	Lag       int     `json:"lag_samples"`
	Alike     float64 `json:"correlation"`
	Lossless  bool    `json:"lossless"` // no frame lost, late or bad
	Exact     match   `json:"exact"`
}

// callSample is one call.
type callSample struct {
	DialMS     float64       `json:"dial_to_first_audio_ms"` // at the caller
	CalleeMS   float64       `json:"dial_to_callee_audio_ms"`
	AnsweredMS float64       `json:"dial_to_answer_ms"`
	KeyedMS    float64       `json:"dial_to_audio_open_ms"`
	Load       string        `json:"load"`
	Directions []direction   `json:"directions"`
	Caller     record.Record `json:"caller"`
	Callee     record.Record `json:"callee"`
}

// call has a call b again and again, both with speech in their microphones.
func call(ctx context.Context, o options, r *result) error {
	r.Settings["calls"] = fmt.Sprintf("a to b, answered by b's lab mark, %d s each, recorded speech both ways", callSeconds)
	r.Settings["latency"] = "microphone to speaker: stamps of first samples and cross-correlation; codec and jitter buffer included"
	return inWorld(ctx, o, r, false, func(w *netns.World, _ *air) error {
		handsets := []string{"a", "b"}
		sent := map[string]*speech{}
		for i, name := range handsets {
			m, err := w.Machine(ctx, name)
			if err != nil {
				return err
			}
			if sent[name], err = speak(m.Paths.Audio, i); err != nil {
				return err
			}
		}
		for _, name := range handsets {
			if err := registered(ctx, w, name); err != nil {
				return err
			}
		}
		var samples []callSample
		defer func() { reportCalls(r, samples) }()
		for i := range o.calls {
			s, err := callOnce(ctx, w, sent)
			if err != nil {
				return fmt.Errorf("call %d: %w", i+1, err)
			}
			samples = append(samples, s)
		}
		return nil
	})
}

// speak puts recorded speech into the microphone of a sound card, another one
// for each handset.
func speak(dir string, which int) (*speech, error) {
	names := [][]string{{"Front_Center.wav", "Rear_Left.wav"}, {"Rear_Right.wav", "Side_Left.wav"}}[which]
	var clips []sound.Clip
	for _, name := range names {
		c, err := readClip(filepath.Join(recordings, name))
		if err != nil {
			return nil, run.Hint(err, "it is a file of Debian's alsa-utils: `make setup` installs it")
		}
		clips = append(clips, c)
	}
	clip, err := sound.Speech(clips, 200*time.Millisecond, speechTime)
	if err != nil {
		return nil, err
	}
	var file bytes.Buffer
	if err := sound.WriteWAV(&file, clip); err != nil {
		return nil, err
	}
	if err := atomicfile.Write(filepath.Join(dir, "mic.wav"), file.Bytes(), 0o644); err != nil {
		return nil, err
	}
	// As the microphone reads it: at 16 bits.
	if clip, err = sound.ReadWAV(&file); err != nil {
		return nil, err
	}
	return newSpeech(clip, callSeconds+2)
}

func readClip(path string) (sound.Clip, error) {
	f, err := os.Open(path)
	if err != nil {
		return sound.Clip{}, fmt.Errorf("cannot read a recording: %w", err)
	}
	defer f.Close()
	c, err := sound.ReadWAV(f)
	if err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// telephone asks a handset what its telephone is doing.
func telephone(ctx context.Context, w *netns.World, name string) (record.Status, error) {
	// Status fails when anything is wrong on the phone, and still tells.
	out, err := w.Phone(ctx, name, nil, "status", "--json")
	var s struct {
		Telephone *record.Status `json:"telephone"`
	}
	if jerr := json.Unmarshal(out, &s); jerr != nil || s.Telephone == nil {
		return record.Status{}, errors.Join(fmt.Errorf("cannot read the status of %s", name), jerr, err)
	}
	return *s.Telephone, nil
}

// registered waits until a handset can be called.
func registered(ctx context.Context, w *netns.World, name string) error {
	return poll(ctx, 30*time.Second, "the registration of "+name, func() (bool, error) {
		s, err := telephone(ctx, w, name)
		return err == nil && s.Registration.State == "registered", nil
	})
}

// callOnce calls and takes the times.
func callOnce(ctx context.Context, w *netns.World, sent map[string]*speech) (callSample, error) {
	s := callSample{Load: loadAverage()}
	out, err := w.Phone(ctx, "a", nil, "call", "b", "--seconds", fmt.Sprint(callSeconds), "--json")
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(out, &s.Caller); err != nil {
		return s, fmt.Errorf("cannot read the call's record: %w", err)
	}
	err = poll(ctx, 10*time.Second, "the callee's record", func() (bool, error) {
		t, err := telephone(ctx, w, "b")
		if err != nil || t.Current != nil || t.Last == nil || t.Last.CallID != s.Caller.CallID {
			return false, err
		}
		s.Callee = *t.Last
		return true, nil
	})
	if err != nil {
		return s, err
	}
	if s.Caller.FirstAudioNS == 0 || s.Callee.FirstAudioNS == 0 {
		return s, errors.New("no sound was heard")
	}
	since := func(at int64) float64 { return float64(at-s.Caller.DialNS) / 1e6 }
	s.DialMS, s.CalleeMS = since(s.Caller.FirstAudioNS), since(s.Callee.FirstAudioNS)
	s.AnsweredMS, s.KeyedMS = since(s.Caller.AnsweredNS), since(s.Caller.Started)
	for _, way := range []struct {
		from, to string
		heard    record.Record
	}{{"a", "b", s.Callee}, {"b", "a", s.Caller}} {
		d, err := hear(ctx, w, way.from, way.to, sent[way.from], way.heard)
		if err != nil {
			return s, fmt.Errorf("%s to %s: %w", way.from, way.to, err)
		}
		s.Directions = append(s.Directions, d)
	}
	return s, nil
}

// hear judges what one speaker played.
func hear(ctx context.Context, w *netns.World, from, to string, sent *speech, heard record.Record) (direction, error) {
	d := direction{From: from, To: to}
	read := func(name string) (stamps, string, error) {
		var s stamps
		m, err := w.Machine(ctx, name)
		if err != nil {
			return s, "", err
		}
		text, err := os.ReadFile(filepath.Join(m.Paths.Audio, "stamps.json"))
		if err != nil {
			return s, "", fmt.Errorf("cannot read the stamps of %s: %w", name, err)
		}
		if err := json.Unmarshal(text, &s); err != nil {
			return s, "", fmt.Errorf("cannot read the stamps of %s: %w", name, err)
		}
		return s, m.Paths.Audio, nil
	}
	mic, _, err := read(from)
	if err != nil {
		return d, err
	}
	speaker, dir, err := read(to)
	if err != nil {
		return d, err
	}
	if mic.Mic == 0 || speaker.Speaker == 0 {
		return d, errors.New("the sound cards have no stamps")
	}
	received, err := readClip(filepath.Join(dir, "speaker.wav"))
	if err != nil {
		return d, err
	}
	a, err := sound.Align(sent.clip, received)
	if err != nil {
		return d, err
	}
	d.Lag, d.Alike, d.LatencyMS = a.Lag, a.Confidence, sound.Latency(a, mic.Mic, speaker.Speaker)
	d.Lossless = heard.FramesLost == 0 && heard.FramesLate == 0 && heard.FramesBad == 0 && heard.Underruns == 0
	d.Exact, err = sent.compare(samples16(received), int(heard.FramesReceived))
	return d, err
}

// reportCalls makes figures of samples. Every direction of every call counts.
func reportCalls(r *result, samples []callSample) {
	r.Raw = samples
	var dial, callee, answered, keyed, latency, lost, unlike, exact []float64
	for _, s := range samples {
		dial, callee = append(dial, s.DialMS), append(callee, s.CalleeMS)
		answered, keyed = append(answered, s.AnsweredMS), append(keyed, s.KeyedMS)
		for _, d := range s.Directions {
			latency = append(latency, d.LatencyMS)
			if !d.Lossless {
				lost = append(lost, 1)
				continue
			}
			lost = append(lost, 0)
			unlike = append(unlike, float64(d.Exact.Compared-d.Exact.Equal))
			exact = append(exact, float64(d.Exact.Compared))
		}
	}
	r.add("dial to first decoded audio", "ms", dial, bound{Of: p95, Limit: 1000})
	r.add("dial to answer", "ms", answered, bound{})
	r.add("dial to keys agreed, audio open", "ms", keyed, bound{})
	r.add("dial to first decoded audio at the callee", "ms", callee, bound{})
	r.add("one-way latency, microphone to speaker", "ms", latency, bound{Of: largest, Limit: 80})
	r.add("directions with a frame lost, late or bad", "0/1", lost, bound{})
	r.add("samples unlike a local decode, no loss", "samples", unlike, bound{Of: largest})
	r.add("samples compared, no loss", "samples", exact, bound{largest, true, 1})
}
