package audio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// maxAhead is how far ahead of the clock a frame may be queued: the device's buffer.
const maxAhead = int64(2 * time.Second)

// ErrAhead is returned for a frame that plays further ahead than the device can hold.
var ErrAhead = errors.New("the frame is too far ahead of what plays now")

// Speaker is a WAV file that plays in real time: it starts with the first frame written, and from then on its clock runs at 48
// kHz whether frames come or not. What is not there when its time comes is played as silence and counted. The header
// of the file is right after every frame, so that a kill leaves a file that opens. It satisfies voice/media.Sink.
type Speaker struct {
	file   *os.File
	clock  Clock
	stamps *Stamps

	mu        sync.Mutex
	closed    bool
	started   bool
	first     int64 // clock at the first sample of the file
	length    int64 // samples in the file
	heard     bool  // a decoded frame has been written
	underruns int64
	buf       [2 * FrameSamples]byte
}

// CreateSpeaker makes the WAV file at path, or empties the one that is there. Stamps may be nil; clock nil is Monotonic.
// Nothing is played before the first WriteFrame.
func CreateSpeaker(path string, stamps *Stamps, clock Clock) (*Speaker, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cannot open the speaker: %w", err)
	}
	s := &Speaker{file: file, clock: clock, stamps: stamps}
	if clock == nil {
		s.clock = Monotonic
	}
	if _, err := file.WriteAt(header(0), 0); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot write the speaker's header: %w", err), file.Close())
	}
	return s, nil
}

// WriteFrame queues frame, which is FrameSamples long, to be played when the clock shows at; the first frame's at starts the
// device. Heard tells a frame that was decoded from a received packet from concealment and silence. Samples whose time is
// past have been played as silence already: they are dropped and counted as an underrun, and so is a gap between the
// frames. Frames must come in the order in which they play. It does not wait.
func (s *Speaker) WriteFrame(at int64, frame []int16, heard bool) error {
	if len(frame) != FrameSamples {
		return fmt.Errorf("cannot play %d samples: a frame has %d", len(frame), FrameSamples)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	now := s.clock()
	if at > now+maxAhead {
		return fmt.Errorf("cannot queue a frame for %d ms from now: %w", (at-now)/int64(time.Millisecond), ErrAhead)
	}
	if !s.started {
		s.started, s.first = true, at
		if now-at >= int64(Frame) { // nothing of the frame is still to be played: the device starts now
			s.first = now
		}
		first := s.first
		s.stamps.mark(func(m *Marks) { m.SpeakerFirstSampleNS = first })
	}
	// Times are counted in samples from the first one, rounded to the nearest, so that a caller's nanoseconds never split a
	// sample.
	start := samples(max(0, at-s.first) + nanos(1)/2)
	overlap := min(max(s.length-start, 0), FrameSamples) // was given before
	late := min(max(samples(now-at), 0), FrameSamples)   // was played as silence
	if start > s.length || overlap > 0 || late > 0 {
		s.underruns++
		n := s.underruns
		s.stamps.mark(func(m *Marks) { m.SpeakerUnderruns = n })
	}
	if overlap == FrameSamples {
		return nil
	}
	return s.store(start, frame, int(overlap), int(late), heard)
}

// store writes frame, without its first overlap samples and with silence for its first late ones, at its place in the file; the
// file has zeros, which are silence, where nothing was written. The samples go first and the header follows, so that the
// header never promises what is not there. Must hold mu.
func (s *Speaker) store(start int64, frame []int16, overlap, late int, heard bool) error {
	end := start + FrameSamples
	if 2*end > maxDataSize {
		return errors.New("cannot play on: the speaker's WAV file is full")
	}
	start += int64(overlap)
	buf := s.buf[:0]
	for i := overlap; i < FrameSamples; i++ {
		v := frame[i]
		if i < late {
			v = 0
		}
		buf = binary.LittleEndian.AppendUint16(buf, uint16(v))
	}
	if _, err := s.file.WriteAt(buf, headerSize+2*start); err != nil {
		return fmt.Errorf("cannot write to the speaker: %w", err)
	}
	s.length = end
	if _, err := s.file.WriteAt(header(2*end), 0); err != nil {
		return fmt.Errorf("cannot write the speaker's header: %w", err)
	}
	if audible := max(overlap, late); heard && !s.heard && audible < FrameSamples {
		s.heard = true
		at := s.first + nanos(start+int64(audible-overlap))
		s.stamps.mark(func(m *Marks) { m.SpeakerFirstAudioNS = at })
	}
	return nil
}

// FirstSampleAt is the clock when the first sample was played; false before a frame was written.
func (s *Speaker) FirstSampleAt() (int64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first, s.started
}

// Underruns counts the stretches that were filled with silence because no frame was there in time.
func (s *Speaker) Underruns() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.underruns
}

// Close ends playing. Frames that are queued are kept in the file.
func (s *Speaker) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.closed = true
	return s.file.Close()
}
