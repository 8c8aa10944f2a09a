// Package eventlog reads and writes the TCG event log of a measured boot: the
// crypto-agile form with the SHA-256 bank alone (TCG PC Client Platform
// Firmware Profile 1.06, §10.2.2 TCG_PCR_EVENT2 and §10.4.5.1 the spec id
// event).
//
// A log explains PCR values, it proves nothing: the types and the data of its
// events are not covered by any digest and an attacker may write what he
// likes there. The digests are worth something only after [Replay] gave the
// values that the TPM reports. Nothing may branch on a type or on data.
//
// All integers are little-endian. Parse is strict: one log has one spelling,
// and [Marshal] gives it back byte for byte.
package eventlog

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The event types this package writes (PFP §10.4.1, table 27).
const (
	TypeNoAction = 0x03 // EV_NO_ACTION: the spec id event; extends nothing
	TypeIPL      = 0x0D // EV_IPL: code or data of the boot, as systemd and GRUB use it
)

const (
	algSHA256 = 0x000B // TPM_ALG_SHA256

	// MaxPCR is the highest PCR index of a PC Client TPM.
	MaxPCR = 23
	// MaxLog is the largest log accepted, in bytes.
	MaxLog = 64 << 10
	// MaxEvents is the largest number of events accepted, the spec id event
	// not counted.
	MaxEvents = 256
	// MaxData is the largest event data accepted, in bytes.
	MaxData = 1 << 10
)

// Event is one measured event.
type Event struct {
	PCR    int
	Type   uint32   // not authenticated: for people only
	Digest [32]byte // what was extended, SHA-256 bank
	Data   []byte   // not authenticated: for people only
}

// header is the whole first event, which never differs: PCR 0, EV_NO_ACTION,
// a SHA-1 digest of zeros, and the TCG_EfiSpecIDEvent of PFP 1.06 with one
// algorithm, SHA-256 of 32 bytes.
func header() []byte {
	spec := []byte("Spec ID Event03\x00")
	spec = binary.LittleEndian.AppendUint32(spec, 0) // platformClass: client
	spec = append(spec, 0, 2, 0, 2)                  // spec 2.00, errata 0, uintnSize 2 (64 bit)
	spec = binary.LittleEndian.AppendUint32(spec, 1) // numberOfAlgorithms
	spec = binary.LittleEndian.AppendUint16(spec, algSHA256)
	spec = binary.LittleEndian.AppendUint16(spec, sha256.Size)
	spec = append(spec, 0) // vendorInfoSize

	var b []byte
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, TypeNoAction)
	b = append(b, make([]byte, 20)...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(spec)))
	return append(b, spec...)
}

// appendEvent appends the TCG_PCR_EVENT2 of e.
func appendEvent(b []byte, e Event) ([]byte, error) {
	if e.PCR < 0 || e.PCR > MaxPCR {
		return nil, fmt.Errorf("PCR %d is not between 0 and %d", e.PCR, MaxPCR)
	}
	if e.Type == TypeNoAction {
		return nil, errors.New("an EV_NO_ACTION event extends nothing")
	}
	if len(e.Data) > MaxData {
		return nil, fmt.Errorf("the event data has %d bytes, at most %d", len(e.Data), MaxData)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(e.PCR))
	b = binary.LittleEndian.AppendUint32(b, e.Type)
	b = binary.LittleEndian.AppendUint32(b, 1) // one digest
	b = binary.LittleEndian.AppendUint16(b, algSHA256)
	b = append(b, e.Digest[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(e.Data)))
	return append(b, e.Data...), nil
}

// Writer writes a log, event by event. It is not safe for use by more than
// one goroutine.
type Writer struct {
	w       io.Writer
	started bool
	events  int
	size    int
	failed  error
}

// NewWriter returns a writer to w. The spec id event goes out with the first
// [Writer.Append].
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Append writes one event in one Write call. After an error every later call
// returns that error: a log with a hole must not look whole.
func (l *Writer) Append(e Event) error {
	if l.failed != nil {
		return l.failed
	}
	if err := l.append(e); err != nil {
		l.failed = fmt.Errorf("cannot append to the event log: %w", err)
	}
	return l.failed
}

func (l *Writer) append(e Event) error {
	var b []byte
	if !l.started {
		b = header()
	}
	b, err := appendEvent(b, e)
	if err != nil {
		return err
	}
	if l.events == MaxEvents || l.size+len(b) > MaxLog {
		return fmt.Errorf("the log is full: %d events, %d bytes", l.events, l.size)
	}
	n, err := l.w.Write(b)
	if err == nil && n != len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return err
	}
	l.started, l.events, l.size = true, l.events+1, l.size+len(b)
	return nil
}

// Marshal returns the log of the events.
func Marshal(events []Event) ([]byte, error) {
	if len(events) > MaxEvents {
		return nil, fmt.Errorf("cannot write the event log: %d events, at most %d", len(events), MaxEvents)
	}
	b := header()
	for i, e := range events {
		var err error
		if b, err = appendEvent(b, e); err != nil {
			return nil, fmt.Errorf("cannot write event %d: %w", i, err)
		}
	}
	if len(b) > MaxLog {
		return nil, fmt.Errorf("cannot write the event log: %d bytes, at most %d", len(b), MaxLog)
	}
	return b, nil
}

// Parse reads a whole log. Anything but one spec id event with the SHA-256
// bank alone and whole events with one SHA-256 digest each is an error.
func Parse(log []byte) ([]Event, error) {
	if len(log) > MaxLog {
		return nil, fmt.Errorf("cannot read the event log: it has %d bytes, at most %d are read", len(log), MaxLog)
	}
	want := header()
	if len(log) < len(want) || string(log[:len(want)]) != string(want) {
		return nil, errors.New("cannot read the event log: it does not begin with the spec id event of a SHA-256 log")
	}
	r := reader{rest: log[len(want):]}
	var events []Event
	for len(r.rest) > 0 {
		if len(events) == MaxEvents {
			return nil, fmt.Errorf("cannot read the event log: it has more than %d events", MaxEvents)
		}
		at := len(log) - len(r.rest)
		e, err := r.event()
		if err != nil {
			return nil, fmt.Errorf("cannot read event %d at byte %d: %w", len(events), at, err)
		}
		events = append(events, e)
	}
	return events, nil
}

// reader takes integers and bytes off the front. After the first shortage it
// gives zeros and says so in short.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if r.short || n > len(r.rest) {
		r.short = true
		return nil
	}
	taken := r.rest[:n]
	r.rest = r.rest[n:]
	return taken
}

func (r *reader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) event() (Event, error) {
	pcr, kind, count, alg := r.uint32(), r.uint32(), r.uint32(), r.uint16()
	digest, size := r.take(sha256.Size), r.uint32()
	switch {
	case r.short:
		return Event{}, io.ErrUnexpectedEOF
	case pcr > MaxPCR:
		return Event{}, fmt.Errorf("PCR %d is not between 0 and %d", pcr, MaxPCR)
	case kind == TypeNoAction:
		return Event{}, errors.New("a second EV_NO_ACTION event")
	case count != 1 || alg != algSHA256:
		return Event{}, fmt.Errorf("%d digests, the first of algorithm %#x; want one of SHA-256", count, alg)
	case size > MaxData:
		return Event{}, fmt.Errorf("the event data has %d bytes, at most %d are read", size, MaxData)
	}
	data := r.take(int(size))
	if r.short {
		return Event{}, io.ErrUnexpectedEOF
	}
	e := Event{PCR: int(pcr), Type: kind, Digest: [32]byte(digest)}
	if size > 0 {
		e.Data = append([]byte(nil), data...)
	}
	return e, nil
}

// Replay returns the value of every PCR that the events extend, from zero:
// value = SHA-256(value ‖ digest) (TPM 2.0 Part 1 §17.2). PCRs that no event
// extends are not in the map. PCRs 17 to 22 reset to ones on a PC Client TPM;
// Rempart uses none of them.
func Replay(events []Event) map[int][32]byte {
	values := map[int][32]byte{}
	for _, e := range events {
		values[e.PCR] = Extend(values[e.PCR], e.Digest)
	}
	return values
}

// Extend returns what a SHA-256 PCR holds after a digest was extended into it.
func Extend(value, digest [32]byte) [32]byte {
	return sha256.Sum256(append(value[:], digest[:]...))
}
