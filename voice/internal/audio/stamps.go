package audio

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"rempart/internal/atomicfile"
)

// Marks is the content of a stamps file. Times are CLOCK_MONOTONIC nanoseconds; 0 means that it has not happened.
type Marks struct {
	// MicFirstSampleNS is when the microphone recorded its first sample.
	MicFirstSampleNS int64 `json:"mic_first_sample_ns"`
	// SpeakerFirstSampleNS is when the speaker played the first sample of its file.
	SpeakerFirstSampleNS int64 `json:"speaker_first_sample_ns"`
	// SpeakerFirstAudioNS is when the speaker played the first sample that was decoded from a received packet (neither
	// silence nor concealment).
	SpeakerFirstAudioNS int64 `json:"speaker_first_audio_ns"`
	// Rate is the sampling rate of both devices, in Hz.
	Rate int `json:"rate"`
	// SpeakerUnderruns counts the stretches that the speaker had to fill with silence.
	SpeakerUnderruns int64 `json:"speaker_underruns"`
}

// Stamps is a file of Marks that two devices share. It is replaced whole (atomicfile), so that a reader never sees half of it,
// and by a goroutine of its own, so that no device waits for a disk. Close it after the devices.
type Stamps struct {
	path string
	wake chan struct{}
	done chan struct{}

	mu    sync.Mutex
	marks Marks
	err   error
}

// NewStamps starts a stamps file at path, with all times 0. An earlier file there is replaced at once: it belongs to another
// call.
func NewStamps(path string) (*Stamps, error) {
	s := &Stamps{path: path, wake: make(chan struct{}, 1), done: make(chan struct{}), marks: Marks{Rate: SampleRate}}
	if err := s.write(); err != nil {
		return nil, err
	}
	go func() {
		defer close(s.done)
		for range s.wake {
			if err := s.write(); err != nil {
				s.mu.Lock()
				s.err = errors.Join(s.err, err)
				s.mu.Unlock()
			}
		}
	}()
	return s, nil
}

// Marks returns what has been stamped so far.
func (s *Stamps) Marks() Marks {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.marks
}

// Close writes the last marks and returns the errors of all writes. No device may use the stamps afterwards.
func (s *Stamps) Close() error {
	close(s.wake)
	<-s.done
	return errors.Join(s.err, s.write())
}

// mark changes the marks and lets the file follow. A nil *Stamps takes no marks.
func (s *Stamps) mark(change func(*Marks)) {
	if s == nil {
		return
	}
	s.mu.Lock()
	change(&s.marks)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default: // a write is due already and will see this change
	}
}

func (s *Stamps) write() error {
	marks := s.Marks()
	data, err := json.Marshal(marks)
	if err != nil {
		return fmt.Errorf("cannot marshal the stamps: %w", err)
	}
	if err := atomicfile.Write(s.path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("cannot write the stamps: %w", err)
	}
	return nil
}
