package sound

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"
)

// Rate is the sample rate of everything that is compared, in hertz.
const Rate = 48000

// maxSeconds bounds a recording.
const maxSeconds = 600

// Clip is a mono recording.
type Clip struct {
	Rate    int       // samples per second
	Samples []float64 // -1 … 1
}

// Length returns how long the clip lasts.
func (c Clip) Length() time.Duration {
	if c.Rate == 0 {
		return 0
	}
	return time.Duration(float64(len(c.Samples)) / float64(c.Rate) * float64(time.Second))
}

// FormatError says what a file is and what was expected ("": what [ReadWAV]
// takes).
type FormatError struct{ Got, Expected string }

func (e *FormatError) Error() string {
	return "cannot read WAV: it is " + e.Got + ", expected " +
		cmp.Or(e.Expected, "16-bit PCM, mono or stereo, 8,000 to 192,000 samples per second, at most 600 s")
}

// ReadWAV reads a 16-bit PCM WAV file (RIFF, WAVE_FORMAT_PCM or
// WAVE_FORMAT_EXTENSIBLE with PCM) of at most 600 s and mixes stereo down. The
// error for another format is a *FormatError.
func ReadWAV(r io.Reader) (Clip, error) {
	return readWAV(r, decode)
}

// ReadMicrophone reads a WAV file of the one format that a handset's microphone
// takes: 16-bit PCM, mono, 48,000 samples per second. The error for another
// format is a *FormatError that says what was found and what was expected.
func ReadMicrophone(r io.Reader) (Clip, error) {
	const expected = "16-bit PCM, mono, 48,000 samples per second, at most 600 s"
	c, err := readWAV(r, func(format, data []byte) (Clip, error) {
		c, err := decode(format, data)
		if err == nil && (c.Rate != Rate || binary.LittleEndian.Uint16(format[2:]) != 1) {
			err = &FormatError{Got: fmt.Sprintf("16-bit PCM, %s, %d samples per second",
				map[uint16]string{1: "mono", 2: "stereo"}[binary.LittleEndian.Uint16(format[2:])], c.Rate)}
		}
		return c, err
	})
	if f, ok := errors.AsType[*FormatError](err); ok {
		return Clip{}, &FormatError{f.Got, expected}
	}
	return c, err
}

// readWAV finds format and samples in a file.
func readWAV(r io.Reader, decode func(format, data []byte) (Clip, error)) (Clip, error) {
	const maxFile = maxSeconds*192000*2*2 + 1<<16
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return Clip{}, fmt.Errorf("cannot read WAV: %w", err)
	}
	if len(b) < 12 || string(b[:4]) != "RIFF" || string(b[8:12]) != "WAVE" {
		return Clip{}, &FormatError{Got: "no WAV file"}
	}
	if len(b) > maxFile {
		return Clip{}, &FormatError{Got: "too long"}
	}
	var format []byte
	for b = b[12:]; len(b) >= 8; {
		id, n := string(b[:4]), int(binary.LittleEndian.Uint32(b[4:]))
		b = b[8:]
		if n < 0 || n > len(b) {
			return Clip{}, &FormatError{Got: "cut short"}
		}
		switch id {
		case "fmt ":
			format = b[:n]
		case "data":
			return decode(format, b[:n])
		}
		b = b[min(n+n%2, len(b)):] // chunks are padded to an even length
	}
	return Clip{}, &FormatError{Got: "a WAV file without samples"}
}

// pcmGUID is the tail of KSDATAFORMAT_SUBTYPE_PCM.
var pcmGUID = []byte{0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71}

func decode(format, data []byte) (Clip, error) {
	if len(format) < 16 {
		return Clip{}, &FormatError{Got: "a WAV file without a format"}
	}
	tag, channels := binary.LittleEndian.Uint16(format), int(binary.LittleEndian.Uint16(format[2:]))
	rate, bits := int(binary.LittleEndian.Uint32(format[4:])), binary.LittleEndian.Uint16(format[14:])
	if tag == 0xFFFE && len(format) >= 40 && bytes.Equal(format[26:40], pcmGUID) {
		tag = binary.LittleEndian.Uint16(format[24:])
	}
	if tag != 1 || bits != 16 || channels < 1 || channels > 2 || rate < 8000 || rate > 192000 || len(data) > maxSeconds*rate*channels*2 {
		return Clip{}, &FormatError{Got: fmt.Sprintf("format %d, %d bits, %d channels, %d samples per second, %d bytes", tag, bits, channels, rate, len(data))}
	}
	c := Clip{Rate: rate, Samples: make([]float64, len(data)/(2*channels))}
	for i := range c.Samples {
		for ch := range channels {
			c.Samples[i] += float64(int16(binary.LittleEndian.Uint16(data[(i*channels+ch)*2:]))) / 32768 / float64(channels)
		}
	}
	return c, nil
}

// WriteWAV writes the clip as 16-bit PCM mono. Samples beyond -1 … 1 are cut off.
func WriteWAV(w io.Writer, c Clip) error {
	if c.Rate < 8000 || c.Rate > 192000 || len(c.Samples) > maxSeconds*c.Rate {
		return errors.New("cannot write WAV: rate or length out of range")
	}
	n := len(c.Samples) * 2
	b := make([]byte, 0, 44+n)
	b = append(b, "RIFF"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(36+n))
	b = append(b, "WAVEfmt "...)
	b = binary.LittleEndian.AppendUint32(b, 16)
	b = append(b, 1, 0, 1, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(c.Rate))
	b = binary.LittleEndian.AppendUint32(b, uint32(c.Rate*2))
	b = append(b, 2, 0, 16, 0)
	b = append(b, "data"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	for _, s := range c.Samples {
		b = binary.LittleEndian.AppendUint16(b, uint16(int16(math.Round(max(-32768, min(32767, s*32768))))))
	}
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("cannot write WAV: %w", err)
	}
	return nil
}
