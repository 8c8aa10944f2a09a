// Package measure extends the digests of what is about to run into the TPM
// and keeps the log that explains them. It decides nothing: what is measured,
// in which order and where is the table of package stage.
//
// A measurement that fails stops the boot. There is no way to go on without
// it: after the first failure every later call fails with the same error.
package measure

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"rempart/boot/eventlog"
	"rempart/boot/stage"
)

// Extender extends a SHA-256 digest into a PCR (TPM2_PCR_Extend, TPM 2.0
// Part 3 §22.2). keystore/extend's Door is the real one.
type Extender interface {
	Extend(pcr int, digest [32]byte) error
}

// Appender keeps one event; [eventlog.Writer] is the real one.
type Appender interface {
	Append(eventlog.Event) error
}

// Log extends, then appends. The order matters: a log that lacks an event
// does not replay to the PCR, and that is seen; an event that was never
// extended would be a claim with nothing behind it.
//
// A Log is not safe for use by more than one goroutine: boot has an order.
type Log struct {
	tpm    Extender
	out    Appender
	failed error
}

// NewLog returns a log over a TPM's extend door and a keeper of events.
func NewLog(tpm Extender, out Appender) *Log {
	return &Log{tpm: tpm, out: out}
}

// Measure digests what stage s names under root, extends the digest into the
// stage's PCR and appends the event. It returns the digest so that init can
// show it. After an error every later call returns that error.
func (l *Log) Measure(root string, s stage.Stage) ([32]byte, error) {
	if l.failed != nil {
		return [32]byte{}, l.failed
	}
	digest, err := Stage(root, s)
	if err != nil {
		return [32]byte{}, l.fail(s.Name, err)
	}
	return digest, l.Add(s.PCR, s.Name, digest)
}

// Add extends a digest that the caller computed and appends the event.
func (l *Log) Add(pcr int, name string, digest [32]byte) error {
	if l.failed != nil {
		return l.failed
	}
	if err := l.tpm.Extend(pcr, digest); err != nil {
		return l.fail(name, fmt.Errorf("cannot extend PCR %d: %w", pcr, err))
	}
	if err := l.out.Append(eventlog.Event{PCR: pcr, Type: eventlog.TypeIPL, Digest: digest, Data: []byte(name)}); err != nil {
		return l.fail(name, fmt.Errorf("cannot log the event: %w", err))
	}
	return nil
}

func (l *Log) fail(name string, err error) error {
	l.failed = fmt.Errorf("cannot measure %s: %w", name, err)
	return l.failed
}

// Stage returns the digest of what a stage names in the image at root.
func Stage(root string, s stage.Stage) ([32]byte, error) {
	if s.Kind == stage.Root {
		return RootDigest(root)
	}
	return File(filepath.Join(root, filepath.FromSlash(s.Path)))
}

// File returns the SHA-256 of exactly the bytes of a regular file. Anything
// else, a link included, is an error: a name that can be pointed elsewhere
// afterwards has not been measured.
func File(path string) ([32]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return [32]byte{}, fmt.Errorf("cannot digest: %w", err)
	}
	if !info.Mode().IsRegular() {
		return [32]byte{}, fmt.Errorf("cannot digest %s: it is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return [32]byte{}, fmt.Errorf("cannot digest: %w", err)
	}
	defer f.Close()
	if opened, err := f.Stat(); err != nil || !os.SameFile(info, opened) {
		return [32]byte{}, fmt.Errorf("cannot digest %s: it was replaced meanwhile", path)
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return [32]byte{}, fmt.Errorf("cannot digest %s: %w", path, err)
	}
	return [32]byte(h.Sum(nil)), nil
}
