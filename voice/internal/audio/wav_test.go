package audio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"rempart/internal/proof"
)

// chunk is one RIFF chunk, padded.
func chunk(name string, body []byte) []byte {
	b := append([]byte(name), 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(body)))
	b = append(b, body...)
	if len(body)%2 == 1 {
		b = append(b, 0)
	}
	return b
}

func riff(chunks ...[]byte) []byte {
	body := append([]byte("WAVE"), bytes.Join(chunks, nil)...)
	return append(append([]byte("RIFF"), binary.LittleEndian.AppendUint32(nil, uint32(len(body)))...), body...)
}

func format(kind, channels uint16, rate uint32, bits uint16) []byte {
	le := binary.LittleEndian
	b := le.AppendUint16(nil, kind)
	b = le.AppendUint16(b, channels)
	b = le.AppendUint32(b, rate)
	b = le.AppendUint32(b, rate*uint32(channels)*uint32(bits)/8)
	b = le.AppendUint16(b, channels*bits/8)
	return le.AppendUint16(b, bits)
}

func TestParseHeader(t *testing.T) {
	good := format(pcm, 1, SampleRate, 16)
	ext := append(format(extensible, 1, SampleRate, 16), 22, 0, 16, 0, 4, 0, 0, 0, 1, 0)
	ext = append(ext, make([]byte, 14)...)
	extFloat := append([]byte{}, ext...)
	extFloat[24] = 3
	data := chunk("data", []byte{1, 2, 3, 4})
	endless := chunk("data", []byte{1, 2, 3, 4, 5})[:13]
	copy(endless[4:], "\xff\xff\xff\xff")

	for _, tc := range []struct {
		name   string
		file   []byte
		length int64
		says   string
	}{
		{"own header", append(header(4), 1, 2, 3, 4), 4, ""},
		{"no samples", header(0), 0, ""},
		{"chunks between", riff(chunk("LIST", []byte("odd")), chunk("fmt ", good), chunk("fact", make([]byte, 4)), data), 4, ""},
		{"extensible PCM", riff(chunk("fmt ", ext), data), 4, ""},
		{"data size of a killed recorder", riff(chunk("fmt ", good), endless), 4, ""},
		{"empty", nil, 0, "no RIFF/WAVE header"},
		{"text", []byte("this is not a WAV file at all"), 0, "no RIFF/WAVE header"},
		{"AVI", []byte("RIFF\x04\x00\x00\x00AVI LIST"), 0, "no RIFF/WAVE header"},
		{"no chunk", riff(), 0, "no data chunk"},
		{"no data", riff(chunk("fmt ", good)), 0, "no data chunk"},
		{"data first", riff(data, chunk("fmt ", good)), 0, "come before their format"},
		{"short format", riff(chunk("fmt ", good[:14]), data), 0, "cut short"},
		{"format cut by the end", riff(chunk("fmt ", good))[:30], 0, "cut short"},
		{"chunk past the end", append(riff(), "LIST\xff\xff\xff\x7f"...), 0, "past the end"},
		{"many chunks", riff(bytes.Repeat(chunk("LIST", nil), 1000), chunk("fmt ", good), data), 0, "no data chunk among"},
		{"stereo", riff(chunk("fmt ", format(pcm, 2, 44100, 16)), data), 0,
			"found 44100 Hz, 2 channel(s), 16-bit PCM; expected 48000 Hz, 1 channel, 16-bit PCM"},
		{"8 kHz", riff(chunk("fmt ", format(pcm, 1, 8000, 16)), data), 0, "found 8000 Hz, 1 channel(s), 16-bit PCM; expected"},
		{"24 bit", riff(chunk("fmt ", format(pcm, 1, SampleRate, 24)), data), 0, "24-bit PCM; expected"},
		{"A-law", riff(chunk("fmt ", format(6, 1, 8000, 8)), data), 0, "8-bit encoding 0x0006; expected"},
		{"extensible float", riff(chunk("fmt ", extFloat), data), 0, "encoding 0x0003; expected"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			at, n, err := parseHeader(bytes.NewReader(tc.file), int64(len(tc.file)))
			if tc.says == "" {
				if err != nil || n != tc.length {
					t.Fatalf("offset %d, length %d, %v; want length %d", at, n, err, tc.length)
				}
				if n > 0 && !bytes.Equal(tc.file[at:at+n], []byte{1, 2, 3, 4}) {
					t.Errorf("the samples begin at %d", at)
				}
				return
			}
			if !errors.Is(err, ErrFormat) || !strings.Contains(fmt.Sprint(err), tc.says) {
				t.Errorf("%v; want %q", err, tc.says)
			}
		})
	}
}

func TestOpenMicrophoneSaysWhatWasFound(t *testing.T) {
	path := t.TempDir() + "/mic.wav"
	if err := os.WriteFile(path, riff(chunk("fmt ", format(pcm, 2, 44100, 16)), chunk("data", nil)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := OpenMicrophone(path, nil, nil)
	if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "44100 Hz") {
		t.Errorf("opening a stereo file: %v", err)
	}
}

func TestReadsRecordedSpeech(t *testing.T) {
	// alsa-utils' recordings are the demo's speech; they are on a machine where that package is installed.
	const path = "/usr/share/sounds/alsa/Front_Center.wav"
	if _, err := os.Stat(path); err != nil {
		proof.Missing(t, "alsa-utils' recordings (run make setup)")
	}
	m, err := OpenMicrophone(path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.left < SampleRate {
		t.Errorf("%d bytes of samples in a recording of more than a second", m.left)
	}
}

// FuzzParseHeader: the parser returns a range inside the file or an error, and what it accepts plays.
func FuzzParseHeader(f *testing.F) {
	f.Add(append(header(4), 1, 2, 3, 4))
	f.Add(riff(chunk("LIST", []byte("odd")), chunk("fmt ", format(pcm, 1, SampleRate, 16)), chunk("data", []byte{1, 2})))
	f.Add(riff(chunk("fmt ", format(extensible, 1, SampleRate, 16)), chunk("data", nil)))
	f.Add(append(riff(), "LIST\xff\xff\xff\x7f"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		at, n, err := parseHeader(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if at != 0 || n != 0 || !errors.Is(err, ErrFormat) {
				t.Fatalf("both a value and an error: %d %d %v", at, n, err)
			}
			return
		}
		if at < 20 || n < 0 || n%2 != 0 || at+n > int64(len(b)) {
			t.Fatalf("samples at %d, %d bytes, in a file of %d", at, n, len(b))
		}
	})
}
