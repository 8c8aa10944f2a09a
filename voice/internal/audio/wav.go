package audio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// headerSize is the size of the header that this package writes: RIFF, one "fmt " chunk of 16 bytes, the head of "data".
const headerSize = 44

// maxDataSize bounds the samples of one file, in bytes: what a RIFF size field can still say with the header counted in.
const maxDataSize = 1<<32 - 1 - (headerSize - 8) - 1

// maxChunks bounds the chunks before the samples, so that a hostile file cannot keep the parser busy.
const maxChunks = 64

const pcm = 1 // WAVE_FORMAT_PCM (RFC 2361 annex A)

// extensible is WAVE_FORMAT_EXTENSIBLE; the real format is then in the first two bytes of the sub-format.
const extensible = 0xfffe

// ErrFormat is wrapped by every refusal of a file that is not 48 kHz mono 16-bit PCM in a RIFF/WAVE container.
var ErrFormat = errors.New("not a 48 kHz mono 16-bit PCM WAV file")

// header returns the header of a file with dataSize bytes of samples.
func header(dataSize int64) []byte {
	b := make([]byte, 0, headerSize)
	le := binary.LittleEndian
	b = append(b, "RIFF"...)
	b = le.AppendUint32(b, uint32(headerSize-8+dataSize))
	b = append(b, "WAVEfmt "...)
	b = le.AppendUint32(b, 16)
	b = le.AppendUint16(b, pcm)
	b = le.AppendUint16(b, 1)
	b = le.AppendUint32(b, SampleRate)
	b = le.AppendUint32(b, SampleRate*2)
	b = le.AppendUint16(b, 2)
	b = le.AppendUint16(b, 16)
	b = append(b, "data"...)
	return le.AppendUint32(b, uint32(dataSize))
}

// parseHeader finds the samples in a RIFF/WAVE file of size bytes: at which offset they begin and how many bytes there are. A
// data size that goes past the end of the file is cut to it (a recorder that was killed leaves 0xffffffff or too much); other
// chunks are skipped. The file is hostile input: every length is checked against size.
func parseHeader(r io.ReaderAt, size int64) (offset, length int64, err error) {
	var head [12]byte
	if err := readFullAt(r, head[:], 0); err != nil || string(head[:4]) != "RIFF" || string(head[8:]) != "WAVE" {
		return 0, 0, fmt.Errorf("%w: it has no RIFF/WAVE header", ErrFormat)
	}
	at, seenFormat := int64(12), false
	for range maxChunks {
		var chunk [8]byte
		if err := readFullAt(r, chunk[:], at); err != nil {
			return 0, 0, fmt.Errorf("%w: it has no data chunk", ErrFormat)
		}
		name, n := string(chunk[:4]), int64(binary.LittleEndian.Uint32(chunk[4:]))
		at += 8
		switch name {
		case "fmt ":
			if err := checkFormat(r, at, n); err != nil {
				return 0, 0, err
			}
			seenFormat = true
		case "data":
			if !seenFormat {
				return 0, 0, fmt.Errorf("%w: its samples come before their format", ErrFormat)
			}
			return at, max(0, min(n, size-at)) &^ 1, nil
		}
		at += n + n&1 // chunks are padded to two bytes
		if at > size {
			return 0, 0, fmt.Errorf("%w: chunk %q goes past the end of the file", ErrFormat, name)
		}
	}
	return 0, 0, fmt.Errorf("%w: no data chunk among the first %d", ErrFormat, maxChunks)
}

func checkFormat(r io.ReaderAt, at, n int64) error {
	var f [26]byte
	b := f[:min(n, int64(len(f)))]
	if err := readFullAt(r, b, at); err != nil || len(b) < 16 {
		return fmt.Errorf("%w: its format chunk is cut short", ErrFormat)
	}
	le := binary.LittleEndian
	kind, channels, rate, bits := le.Uint16(f[0:]), le.Uint16(f[2:]), le.Uint32(f[4:]), le.Uint16(f[14:])
	if kind == extensible && len(b) == len(f) {
		kind = le.Uint16(f[24:])
	}
	if kind != pcm || channels != 1 || rate != SampleRate || bits != 16 {
		encoding := "PCM"
		if kind != pcm {
			encoding = fmt.Sprintf("encoding %#04x", kind)
		}
		return fmt.Errorf("%w: found %d Hz, %d channel(s), %d-bit %s; expected %d Hz, 1 channel, 16-bit PCM",
			ErrFormat, rate, channels, bits, encoding, SampleRate)
	}
	return nil
}

// readFullAt is io.ReaderAt with io.EOF for whatever is short.
func readFullAt(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return err
}
