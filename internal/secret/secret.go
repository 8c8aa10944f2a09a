// Package secret holds key material that must not be printed, marshalled or left behind.
//
// A Bytes refuses every way of leaving that Go offers by accident: fmt verbs, JSON and text marshalling. Reveal is the one
// door, so that a search for it lists every place where a secret is read. Wipe overwrites the bytes it owns; copies that the
// caller made, or that the garbage collector moved before the value was wrapped, are not its to wipe.
package secret

import (
	"errors"
	"fmt"
)

// ErrRefused is returned by every marshaller of a Bytes.
var ErrRefused = errors.New("cannot marshal a secret")

// Bytes is a secret byte string. The zero value and nil are empty secrets.
type Bytes struct{ b []byte }

// New takes ownership of b: the caller must not use b afterwards.
func New(b []byte) *Bytes { return &Bytes{b: b} }

// Reveal returns the secret itself, not a copy; it is valid until Wipe.
func (s *Bytes) Reveal() []byte {
	if s == nil {
		return nil
	}
	return s.b
}

// Len is the length of the secret in bytes.
func (s *Bytes) Len() int { return len(s.Reveal()) }

// Wipe overwrites the secret with zeros and empties it. It may be called more than once.
func (s *Bytes) Wipe() {
	if s == nil {
		return
	}
	clear(s.b)
	s.b = nil
}

// Format prints a fixed word for every verb, so that no log line can carry the secret.
func (s *Bytes) Format(f fmt.State, _ rune) { fmt.Fprint(f, "[secret]") }

// String returns a fixed word.
func (s *Bytes) String() string { return "[secret]" }

// MarshalJSON always fails with ErrRefused.
func (s *Bytes) MarshalJSON() ([]byte, error) { return nil, ErrRefused }

// MarshalText always fails with ErrRefused.
func (s *Bytes) MarshalText() ([]byte, error) { return nil, ErrRefused }

// MarshalBinary always fails with ErrRefused (encoding/gob would call it).
func (s *Bytes) MarshalBinary() ([]byte, error) { return nil, ErrRefused }
