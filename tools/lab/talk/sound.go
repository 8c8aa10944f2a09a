package talk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/netns"
	"rempart/internal/atomicfile"
	"rempart/internal/run"
	"rempart/tools/report"
	"rempart/tools/sound"
	"rempart/voice/record"
)

// The files of the board's sound card.
const (
	micFile     = "mic.wav"
	speakerFile = "speaker.wav"
	stampsFile  = "stamps.json"
)

const (
	// measured is how much of a recording is compared: the correlation of
	// hours would need all memory.
	measured = 30 * time.Second
	// waveColumns is how finely a waveform is drawn.
	waveColumns = 700
	// maxSpeaker bounds what is read of a speaker's file, in bytes.
	maxSpeaker = (MaxSeconds+60)*sound.Rate*2 + 1024
)

// stamps is when a handset's sound card heard and played its first sample,
// CLOCK_MONOTONIC ns; 0 for never.
type stamps struct {
	Mic     int64 `json:"mic_first_sample_ns"`
	Speaker int64 `json:"speaker_first_sample_ns"`
}

// side is the sound card of one handset. Its folder is the handset's to write:
// nothing in it is followed out of it.
type side struct {
	name string
	card *os.Root
	sent *sound.Clip // nil for silence
}

// sides are both ends of a call.
type sides struct{ from, to *side }

// prepare checks everything that can be checked before dialling, and puts the
// recordings on the microphones.
func prepare(ctx context.Context, w *netns.World, o Options) (*sides, error) {
	if err := checkOptions(o); err != nil {
		return nil, err
	}
	send, sent, err := recording(o.Send)
	if err != nil {
		return nil, err
	}
	sendBack, sentBack, err := recording(o.SendBack)
	if err != nil {
		return nil, err
	}
	for _, f := range []string{o.Receive, o.ReceiveBack} {
		if f == "" {
			continue
		}
		if st, err := os.Stat(filepath.Dir(f)); err != nil || !st.IsDir() {
			return nil, run.Hint(fmt.Errorf("cannot write %s: its folder is not there", f), "make the folder first")
		}
	}
	var machines [2]netns.Machine
	for i, name := range []string{o.From, o.To} {
		if _, err := w.Machine(ctx, name); err != nil {
			return nil, err
		}
		if machines[i], err = Ready(ctx, w, name, readyPatience); err != nil {
			return nil, err
		}
	}
	s := &sides{}
	for i, one := range []struct {
		at   **side
		file []byte
		clip *sound.Clip
	}{{&s.from, send, sent}, {&s.to, sendBack, sentBack}} {
		if *one.at, err = plug(machines[i], one.file, one.clip); err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

// recording reads a file for a microphone.
func recording(path string) ([]byte, *sound.Clip, error) {
	if path == "" {
		return nil, nil, nil
	}
	file, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, run.Hint(fmt.Errorf("cannot send a recording: %w", err), "a WAV file of speech, 48 kHz, mono, 16 bit")
	}
	clip, err := sound.ReadMicrophone(bytes.NewReader(file))
	if err != nil {
		return nil, nil, run.Hint(fmt.Errorf("cannot send %s: %w", path, err), "convert it, for example: sox %s -r 48000 -c 1 -b 16 out.wav", filepath.Base(path))
	}
	if !slices.ContainsFunc(clip.Samples, func(v float64) bool { return v != 0 }) {
		return file, nil, nil // silence: nothing that could be found again
	}
	return file, &clip, nil
}

// plug puts a recording on a handset's microphone; nil leaves it without one.
func plug(m netns.Machine, file []byte, clip *sound.Clip) (*side, error) {
	// Written by replacing, never through what the handset may have put there.
	mic := filepath.Join(m.Paths.Audio, micFile)
	if file != nil {
		if err := atomicfile.Write(mic, file, 0o644); err != nil {
			return nil, fmt.Errorf("cannot use the microphone of %s: %w", m.Name, err)
		}
	} else if err := os.Remove(mic); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot silence the microphone of %s: %w", m.Name, err)
	}
	card, err := os.OpenRoot(m.Paths.Audio)
	if err != nil {
		return nil, fmt.Errorf("cannot open the sound card of %s: %w", m.Name, err)
	}
	return &side{m.Name, card, clip}, nil
}

// close takes the recordings off the microphones.
func (s *sides) close() {
	for _, one := range []*side{s.from, s.to} {
		if one != nil {
			_ = one.card.Remove(micFile) // a handset without one sends silence anyway
			_ = one.card.Close()         // only a reference
		}
	}
}

// read returns a file of the sound card.
func (s *side) read(name string, limit int64) ([]byte, error) {
	// A handset may put anything there: no link out, no pipe that never ends.
	f, err := s.card.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot read the sound card of %s: %w", s.name, err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() || st.Size() > limit {
		return nil, fmt.Errorf("cannot read the sound card of %s: %s is no file of at most %d bytes", s.name, name, limit)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return nil, fmt.Errorf("cannot read the sound card of %s: %w", s.name, err)
	}
	return data, nil
}

// stamped returns the sound card's times of the call that is over.
func (s *side) stamped() (stamps, error) {
	data, err := s.read(stampsFile, 4096)
	if err != nil {
		return stamps{}, err
	}
	var out stamps
	if err := json.Unmarshal(data, &out); err != nil {
		return out, fmt.Errorf("cannot read the stamps of %s: %w", s.name, err)
	}
	return out, nil
}

// ways copies what the speakers played and measures both directions.
func (s *sides) ways(r report.Records, o Options) ([]report.Way, error) {
	there, err := way(s.from, s.to, r.From, r.To, o.Receive, o.BoundMS)
	if err != nil {
		return nil, err
	}
	back, err := way(s.to, s.from, r.To, r.From, o.ReceiveBack, o.BoundMS)
	if err != nil {
		return nil, err
	}
	return []report.Way{there, back}, nil
}

// way is one direction, from the speaking side to the hearing one.
func way(speaks, hears *side, spoke, heard record.Record, copyTo string, boundMS float64) (report.Way, error) {
	w := report.Way{From: speaks.name, To: hears.name, BoundMS: boundMS, Sent: int(spoke.FramesSent),
		Received: int(heard.FramesReceived), Lost: int(heard.FramesLost), PacketBytes: spoke.BytesPerPacket}
	file, err := hears.read(speakerFile, maxSpeaker)
	if err != nil {
		return w, err
	}
	if copyTo != "" {
		if err := atomicfile.Write(copyTo, file, 0o644); err != nil {
			return w, fmt.Errorf("cannot copy what %s heard: %w", hears.name, err)
		}
	}
	if speaks.sent == nil {
		w.Note = speaks.name + " sent silence: nothing to compare"
		return w, nil
	}
	received, err := sound.ReadWAV(bytes.NewReader(file))
	if err != nil {
		return w, fmt.Errorf("cannot read what %s heard: %w", hears.name, err)
	}
	from, err := speaks.stamped()
	if err != nil {
		return w, err
	}
	to, err := hears.stamped()
	if err != nil {
		return w, err
	}
	measure(&w, *speaks.sent, received, from.Mic, to.Speaker)
	return w, nil
}

// measure holds what was heard against what was said. read and played are when
// the first sample of either was, CLOCK_MONOTONIC ns.
func measure(w *report.Way, sent, received sound.Clip, read, played int64) {
	// A recording that is longer than the call was not sent to its end.
	limit := min(int(measured.Seconds()*sound.Rate), max(len(received.Samples)+sound.Rate/2, 1))
	sent.Samples = sent.Samples[:min(len(sent.Samples), limit)]
	received.Samples = received.Samples[:min(len(received.Samples), limit)]
	a, err := sound.Align(sent, received)
	w.Correlation = a.Confidence
	if err != nil {
		w.Unheard = true
		w.Note = strings.TrimPrefix(err.Error(), "cannot align recordings: ")
		return
	}
	if read > 0 && played > 0 {
		w.OneWayMS = sound.Latency(a, read, played)
	}
	if q, err := sound.Measure(sent, received, a); err == nil {
		w.Quality = &q
	} else {
		w.Note = err.Error()
	}
	w.Wave(sent, received, a, waveColumns)
}
