package audio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// ErrClosed is returned by a device after its Close.
var ErrClosed = errors.New("the audio device is closed")

// Microphone is a WAV file that is heard in real time: sample n of the file is recorded n/48000 s after the first ReadFrame.
// After the end of the file there is silence for ever. It satisfies voice/media.Source and is safe for use by one reader.
type Microphone struct {
	file   *os.File
	clock  Clock
	stamps *Stamps

	mu      sync.Mutex
	closed  bool
	offset  int64 // of the next sample in the file, in bytes
	left    int64 // bytes of samples still to come
	started bool
	first   int64 // clock at the first sample
	frames  int64 // frames read
	buf     [2 * FrameSamples]byte
}

// OpenMicrophone opens the WAV file at path. Stamps may be nil; clock nil is Monotonic. Nothing is recorded before the first
// ReadFrame. A file of another format is ErrFormat, and the message says what was found and what was expected.
func OpenMicrophone(path string, stamps *Stamps, clock Clock) (*Microphone, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the microphone: %w", err)
	}
	m := &Microphone{file: file, clock: clock, stamps: stamps}
	if clock == nil {
		m.clock = Monotonic
	}
	info, err := file.Stat()
	if err == nil {
		m.offset, m.left, err = parseHeader(file, info.Size())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot use %s as a microphone: %w", path, err), file.Close())
	}
	return m, nil
}

// ReadFrame fills frame, which is FrameSamples long, with the next 20 ms and returns true once their last sample has been
// recorded. It waits for that at most until the clock shows until, and then returns false with frame unchanged and nothing
// consumed. A frame that is due already is returned whatever until says.
func (m *Microphone) ReadFrame(frame []int16, until int64) (bool, error) {
	if len(frame) != FrameSamples {
		return false, fmt.Errorf("cannot read %d samples from the microphone: a frame has %d", len(frame), FrameSamples)
	}
	m.mu.Lock()
	now := m.clock()
	if !m.started && !m.closed {
		m.started, m.first = true, now
		m.stamps.mark(func(s *Marks) { s.MicFirstSampleNS = now })
	}
	due := m.first + nanos((m.frames+1)*FrameSamples)
	m.mu.Unlock()

	if end := min(due, until); end > now {
		time.Sleep(time.Duration(end - now))
	}
	if due > until && m.clock() < due {
		return false, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false, ErrClosed
	}
	return true, m.read(frame)
}

// read takes the next frame of the file; what the file does not have is silence. Must hold mu.
func (m *Microphone) read(frame []int16) error {
	n := min(int64(len(m.buf)), m.left)
	if n > 0 {
		if got, err := m.file.ReadAt(m.buf[:n], m.offset); int64(got) < n && !errors.Is(err, io.EOF) {
			return fmt.Errorf("cannot read the microphone: %w", err)
		} else if int64(got) < n { // the file became shorter while we read it
			n, m.left = int64(got)&^1, int64(got)&^1
		}
	}
	for i := range frame {
		frame[i] = 0
		if int64(2*i) < n {
			frame[i] = int16(binary.LittleEndian.Uint16(m.buf[2*i:]))
		}
	}
	m.offset, m.left = m.offset+n, m.left-n
	m.frames++
	return nil
}

// FirstSampleAt is the clock when the first sample was recorded; false before that.
func (m *Microphone) FirstSampleAt() (int64, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.first, m.started
}

// Close ends recording.
func (m *Microphone) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	m.closed = true
	return m.file.Close()
}
