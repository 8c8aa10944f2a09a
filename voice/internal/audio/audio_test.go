package audio

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// bubbleClock is a Clock on the fake time of a synctest bubble.
func bubbleClock() int64 { return time.Now().UnixNano() }

// wavFile writes a WAV file with the package's own header and n samples, sample i being i+1.
func wavFile(t testing.TB, n int) string {
	t.Helper()
	b := header(int64(2 * n))
	for i := range n {
		b = binary.LittleEndian.AppendUint16(b, uint16(i+1))
	}
	path := filepath.Join(t.TempDir(), "mic.wav")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// played reads back the samples of a speaker's file, through the package's own parser.
func played(t testing.TB, path string) []int16 {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at, n, err := parseHeader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if at+n != int64(len(b)) {
		t.Errorf("the header promises %d bytes of samples, the file has %d", n, int64(len(b))-at)
	}
	out := make([]int16, n/2)
	for i := range out {
		out[i] = int16(binary.LittleEndian.Uint16(b[at+2*int64(i):]))
	}
	return out
}

func constant(v int16) []int16 {
	f := make([]int16, FrameSamples)
	for i := range f {
		f[i] = v
	}
	return f
}

func TestMonotonicIsTheKernelsClock(t *testing.T) {
	a := Monotonic()
	time.Sleep(2 * time.Millisecond)
	if d := time.Duration(Monotonic() - a); d < 2*time.Millisecond || d > 10*time.Second {
		t.Errorf("2 ms of sleep are %v of the clock", d)
	}
}

func TestMicrophonePacesWithoutDrift(t *testing.T) {
	path := wavFile(t, 3*FrameSamples+100)
	synctest.Test(t, func(t *testing.T) {
		m, err := OpenMicrophone(path, nil, bubbleClock)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if _, ok := m.FirstSampleAt(); ok {
			t.Error("something was recorded before the first ReadFrame")
		}
		time.Sleep(time.Second) // a call that is set up slowly records nothing meanwhile
		start := bubbleClock()
		frame := make([]int16, FrameSamples)
		for i := range 100 {
			ok, err := m.ReadFrame(frame, start+int64(time.Hour))
			if !ok || err != nil {
				t.Fatal(ok, err)
			}
			if got, want := bubbleClock()-start, int64(i+1)*int64(Frame); got != want {
				t.Fatalf("frame %d came after %v, want %v", i, time.Duration(got), time.Duration(want))
			}
			for k, v := range frame {
				want := int16(i*FrameSamples + k + 1)
				if i*FrameSamples+k >= 3*FrameSamples+100 {
					want = 0
				}
				if v != want {
					t.Fatalf("sample %d of frame %d is %d, want %d", k, i, v, want)
				}
			}
			if i%7 == 3 {
				time.Sleep(15 * time.Millisecond) // a reader that dawdles changes no later frame's time
			}
		}
		if at, ok := m.FirstSampleAt(); !ok || at != start {
			t.Errorf("first sample at %d, want %d", at, start)
		}
	})
}

func TestMicrophoneDeadline(t *testing.T) {
	path := wavFile(t, 10*FrameSamples)
	synctest.Test(t, func(t *testing.T) {
		m, err := OpenMicrophone(path, nil, bubbleClock)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		frame := constant(-7)
		start := bubbleClock()
		ok, err := m.ReadFrame(frame, start+int64(5*time.Millisecond))
		if ok || err != nil || frame[0] != -7 {
			t.Errorf("before its time: %v %v, first sample %d", ok, err, frame[0])
		}
		if d := time.Duration(bubbleClock() - start); d != 5*time.Millisecond {
			t.Errorf("waited %v for a deadline of 5 ms", d)
		}
		// After a stall of the process the frames that are due come at once, whatever the deadline.
		time.Sleep(60 * time.Millisecond)
		now := bubbleClock()
		for i := range 3 {
			if ok, err := m.ReadFrame(frame, 0); !ok || err != nil || frame[0] != int16(i*FrameSamples+1) {
				t.Errorf("due frame %d: %v %v, first sample %d", i, ok, err, frame[0])
			}
		}
		if ok, _ := m.ReadFrame(frame, math.MinInt64); ok || bubbleClock() != now {
			t.Error("a frame that is not due came, or was waited for")
		}
		if _, err := m.ReadFrame(frame[1:], 0); err == nil {
			t.Error("a short frame was accepted")
		}
	})
}

func TestMicrophoneClosed(t *testing.T) {
	m, err := OpenMicrophone(wavFile(t, FrameSamples), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.ReadFrame(make([]int16, FrameSamples), Monotonic()+int64(time.Second)); !errors.Is(err, ErrClosed) {
		t.Errorf("reading after Close: %v", err)
	}
	if err := m.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
	if _, err := OpenMicrophone(filepath.Join(t.TempDir(), "none.wav"), nil, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("opening nothing: %v", err)
	}
}

func TestMicrophoneFileCutWhileReading(t *testing.T) {
	path := wavFile(t, 4*FrameSamples)
	synctest.Test(t, func(t *testing.T) {
		m, err := OpenMicrophone(path, nil, bubbleClock)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := os.Truncate(path, headerSize+2*(FrameSamples+10)); err != nil {
			t.Fatal(err)
		}
		frame := make([]int16, FrameSamples)
		for i, want := range []int16{1, FrameSamples + 1, 0, 0} {
			ok, err := m.ReadFrame(frame, bubbleClock()+int64(time.Second))
			if !ok || err != nil || frame[0] != want {
				t.Errorf("frame %d: %v %v, first sample %d, want %d", i, ok, err, frame[0], want)
			}
		}
		if frame[10] != 0 {
			t.Error("samples after the cut are not silence")
		}
	})
}

func TestSpeakerPlaysInPlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "speaker.wav")
	stampsPath := filepath.Join(t.TempDir(), "stamps.json")
	synctest.Test(t, func(t *testing.T) {
		stamps, err := NewStamps(stampsPath)
		if err != nil {
			t.Fatal(err)
		}
		s, err := CreateSpeaker(path, stamps, bubbleClock)
		if err != nil {
			t.Fatal(err)
		}
		if got := played(t, path); len(got) != 0 {
			t.Errorf("%d samples before the first frame", len(got))
		}
		first := bubbleClock() + int64(40*time.Millisecond)
		at := func(n int64) int64 { return first + n*int64(Frame) }
		for n, v := range []int16{0, 11, 12} {
			if err := s.WriteFrame(at(int64(n)), constant(v), v != 0); err != nil {
				t.Fatal(err)
			}
		}
		if got := played(t, path); len(got) != 3*FrameSamples { // as a kill would leave it
			t.Errorf("%d samples after three frames", len(got))
		}
		if n := s.Underruns(); n != 0 {
			t.Errorf("%d underruns of frames in time", n)
		}
		// Slot 3 never comes, slot 4 does: a gap of silence. Slot 5 comes 5 ms late: its first 240 samples are lost. Slot 6
		// comes when it is over.
		if err := s.WriteFrame(at(4), constant(14), true); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(at(5)-bubbleClock()) + 5*time.Millisecond)
		if err := s.WriteFrame(at(5), constant(15), true); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(at(7)-bubbleClock()) + time.Millisecond)
		if err := s.WriteFrame(at(6), constant(16), true); err != nil {
			t.Fatal(err)
		}
		if err := s.WriteFrame(at(8), constant(18), true); err != nil {
			t.Fatal(err)
		}
		if n := s.Underruns(); n != 4 {
			t.Errorf("%d underruns, want 4: the gap before 4, late 5, late 6, the gap before 8", n)
		}
		got := played(t, path)
		for i, v := range got {
			want := []int16{0, 11, 12, 0, 14, 15, 0, 0, 18}[i/FrameSamples]
			if i/FrameSamples == 5 && i%FrameSamples < 240 {
				want = 0
			}
			if v != want {
				t.Fatalf("sample %d (slot %d, %d) is %d, want %d", i, i/FrameSamples, i%FrameSamples, v, want)
			}
		}
		if len(got) != 9*FrameSamples {
			t.Errorf("%d samples played, want %d", len(got), 9*FrameSamples)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.WriteFrame(at(9), constant(1), true); !errors.Is(err, ErrClosed) {
			t.Errorf("playing after Close: %v", err)
		}
		if err := stamps.Close(); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(stampsPath)
		if err != nil {
			t.Fatal(err)
		}
		var m Marks
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		want := Marks{SpeakerFirstSampleNS: first, SpeakerFirstAudioNS: at(1), Rate: SampleRate, SpeakerUnderruns: 4}
		if m != want {
			t.Errorf("stamps %+v, want %+v", m, want)
		}
	})
}

func TestSpeakerRoundsToSamples(t *testing.T) {
	// Slot times with their nanoseconds cut off, as a caller gets who multiplies 20 ms, and one who counts from a time that is
	// no multiple of a sample: no frame may lose a sample or gain one.
	path := filepath.Join(t.TempDir(), "speaker.wav")
	synctest.Test(t, func(t *testing.T) {
		s, err := CreateSpeaker(path, nil, bubbleClock)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for n := range int64(50) {
			wobble := []int64{0, 1, -1, 9000, -9000}[n%5]
			if err := s.WriteFrame(bubbleClock()+777+n*int64(Frame)+wobble, constant(int16(n)), true); err != nil {
				t.Fatal(err)
			}
		}
		if s.Underruns() != 0 || len(played(t, path)) != 50*FrameSamples {
			t.Errorf("%d underruns, %d samples", s.Underruns(), len(played(t, path)))
		}
	})
}

func TestSpeakerRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "speaker.wav")
	s, err := CreateSpeaker(path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.WriteFrame(Monotonic(), make([]int16, 10), true); err == nil {
		t.Error("a short frame was played")
	}
	if err := s.WriteFrame(Monotonic()+int64(time.Minute), constant(1), true); !errors.Is(err, ErrAhead) {
		t.Errorf("a frame a minute ahead: %v", err)
	}
	// A first frame from long ago starts the device now and does not fill a file with hours of silence.
	if err := s.WriteFrame(1, constant(1), true); err != nil {
		t.Fatal(err)
	}
	if n := len(played(t, path)); n != FrameSamples {
		t.Errorf("%d samples in the file, want one frame", n)
	}
	if _, err := CreateSpeaker(filepath.Join(t.TempDir(), "no", "speaker.wav"), nil, nil); err == nil {
		t.Error("a speaker in a folder that is not there")
	}
}

func TestStamps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stamps.json")
	if err := os.WriteFile(path, []byte("of the last call"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := NewStamps(path)
	if err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(path); !strings.Contains(string(data), `"mic_first_sample_ns":0`) {
		t.Errorf("a new stamps file says %s", data)
	}
	m, err := OpenMicrophone(wavFile(t, FrameSamples), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	before := Monotonic()
	if ok, err := m.ReadFrame(make([]int16, FrameSamples), before+int64(10*time.Second)); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if at := s.Marks().MicFirstSampleNS; at < before || at > Monotonic()-int64(Frame) {
		t.Errorf("the microphone's stamp %d is not between %d and 20 ms ago", at, before)
	}
	if err := errors.Join(m.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	var got Marks
	data, err := os.ReadFile(path)
	if err = errors.Join(err, json.Unmarshal(data, &got)); err != nil || got != s.Marks() {
		t.Errorf("file %s (%v), want %+v", data, err, s.Marks())
	}
	if _, err := NewStamps(filepath.Join(t.TempDir(), "no", "stamps.json")); err == nil {
		t.Error("stamps in a folder that is not there")
	}
}
