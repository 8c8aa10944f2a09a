// Package frame writes and reads length-prefixed messages on a stream: 4 bytes of length, big-endian, then the message.
package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrTooLong is returned for a message above the reader's or the format's limit; nothing of the message is read.
var ErrTooLong = errors.New("message is too long")

// MaxWrite is the longest message that Write sends, in bytes. Readers set lower limits of their own.
const MaxWrite = 1 << 20

// Write sends b as one message in one call of w.Write, so that a stream shared under a lock never interleaves.
func Write(w io.Writer, b []byte) error {
	if len(b) > MaxWrite {
		return fmt.Errorf("cannot write a message of %d bytes: %w", len(b), ErrTooLong)
	}
	buf := make([]byte, 4+len(b))
	binary.BigEndian.PutUint32(buf, uint32(len(b)))
	copy(buf[4:], b)
	if _, err := w.Write(buf); err != nil {
		return fmt.Errorf("cannot write a message of %d bytes: %w", len(b), err)
	}
	return nil
}

// Read returns the next message of at most max bytes. A clean end of the stream before the first length byte is io.EOF; an
// end inside a message is io.ErrUnexpectedEOF.
func Read(r io.Reader, max int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, io.EOF
		}
		return nil, fmt.Errorf("cannot read a message length: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if max < 0 || uint64(n) > uint64(max) {
		return nil, fmt.Errorf("cannot read a message of %d bytes, the limit is %d: %w", n, max, ErrTooLong)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("cannot read a message of %d bytes: %w", n, err)
	}
	return b, nil
}
