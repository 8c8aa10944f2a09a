package watch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"rempart/vpn/egress"
)

// Beat is how often each side says that it lives, and Silence how long it may be silent: more than two beats.
const (
	Beat    = time.Second
	Silence = 2*Beat + Beat/2
)

// Bounds of the frames, in bytes.
const (
	MaxDevices = 16
	MaxName    = 15 // of a device
	MaxText    = 400
	MaxGuard   = 4 << 10
	MaxBehind  = 40 << 10
	MaxOrders  = 1 + 4 + 1 + 1 + MaxDevices*(4+1+MaxName+2*egress.LinkFactsLen) + 2 + MaxGuard + 2 + MaxBehind + 2 + egress.MaxLevelMarshal + egress.MaxMarshal
	MaxReport  = 1 + 4 + MaxText
)

// Device is a black device that init has put in force.
type Device struct {
	Index int
	Name  string
	// What the gate knows of its link, and what it knew before: while init changes that, either is right.
	Facts, Was egress.LinkFacts
}

// Orders say what should be in force. The zero value with Beat set is a sign of life alone.
type Orders struct {
	Beat       bool   // a sign of life; nothing else is said
	Generation uint32 // counts orders; what was read back under the last ones is a new claim
	Closed     bool   // nothing is admitted, whatever egressd says
	Severing   bool   // gates are being taken off, whatever they admit: the floors stand
	Severed    bool   // the floor alone holds; a gate that denies all may be there already
	Down       bool   // no radio may be up
	Devices    []Device
	Guard      []byte // package guard's form of what stands; empty: none was installed
	Behind     []byte // package backstop's form of what stands behind the gate; empty: it is being changed, or there is none
	Levels     []byte // the level table's form; empty: it is being changed, or egressd, which holds it, is dead
	Table      egress.Policy
}

const (
	frameOrders = 'O'
	frameBeat   = 'B'
)

// MarshalOrders returns the frame of o.
func MarshalOrders(o Orders) ([]byte, error) {
	if o.Beat {
		return []byte{frameBeat}, nil
	}
	if len(o.Devices) > MaxDevices || len(o.Guard) > MaxGuard || len(o.Behind) > MaxBehind || len(o.Levels) > egress.MaxLevelMarshal {
		return nil, fmt.Errorf("cannot marshal orders for %d devices with a guard of %d bytes", len(o.Devices), len(o.Guard))
	}
	b := binary.BigEndian.AppendUint32([]byte{frameOrders}, o.Generation)
	var flags byte
	for i, f := range []bool{o.Closed, o.Severed, o.Down, o.Severing} {
		if f {
			flags |= 1 << i
		}
	}
	b = append(b, flags, byte(len(o.Devices)))
	for _, d := range o.Devices {
		if d.Index < 1 || d.Index > 1<<31-1 || d.Name == "" || len(d.Name) > MaxName {
			return nil, fmt.Errorf("cannot marshal orders: device %d %q", d.Index, d.Name)
		}
		b = binary.BigEndian.AppendUint32(b, uint32(d.Index))
		b = append(append(b, byte(len(d.Name))), d.Name...)
		facts, was := d.Facts.Bytes(), d.Was.Bytes()
		b = append(append(b, facts[:]...), was[:]...)
	}
	for _, part := range [][]byte{o.Guard, o.Behind, o.Levels} {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(part))), part...)
	}
	table, err := o.Table.Marshal()
	if err != nil {
		return nil, err
	}
	return append(b, table...), nil
}

// ParseOrders reads a frame. It accepts only what [MarshalOrders] writes.
func ParseOrders(b []byte) (Orders, error) {
	o, err := parseOrders(b)
	if err != nil {
		return Orders{}, fmt.Errorf("cannot parse orders: %w", err)
	}
	return o, nil
}

var errShort = errors.New("ends inside a field")

func parseOrders(b []byte) (Orders, error) {
	if len(b) == 1 && b[0] == frameBeat {
		return Orders{Beat: true}, nil
	}
	if len(b) > MaxOrders {
		return Orders{}, fmt.Errorf("%d bytes, the limit is %d", len(b), MaxOrders)
	}
	if len(b) < 7 || b[0] != frameOrders {
		return Orders{}, errors.New("no such frame")
	}
	o := Orders{Generation: binary.BigEndian.Uint32(b[1:]), Closed: b[5]&1 != 0, Severed: b[5]&2 != 0, Down: b[5]&4 != 0, Severing: b[5]&8 != 0}
	if b[5] > 15 || b[6] > MaxDevices {
		return Orders{}, fmt.Errorf("flags %#x, %d devices", b[5], b[6])
	}
	rest := b[7:]
	for range b[6] {
		if len(rest) < 5 || len(rest) < 5+int(rest[4])+2*egress.LinkFactsLen {
			return Orders{}, errShort
		}
		d := Device{Index: int(binary.BigEndian.Uint32(rest)), Name: string(rest[5 : 5+int(rest[4])])}
		if d.Index < 1 || d.Index > 1<<31-1 || d.Name == "" || len(d.Name) > MaxName {
			return Orders{}, fmt.Errorf("device %d %q", d.Index, d.Name)
		}
		rest = rest[5+len(d.Name):]
		for _, f := range []*egress.LinkFacts{&d.Facts, &d.Was} {
			var err error
			if *f, err = egress.ParseLinkFacts([egress.LinkFactsLen]byte(rest)); err != nil {
				return Orders{}, err
			}
			rest = rest[egress.LinkFactsLen:]
		}
		o.Devices = append(o.Devices, d)
	}
	var err error
	if o.Guard, rest, err = part(rest, MaxGuard); err != nil {
		return Orders{}, err
	}
	if o.Behind, rest, err = part(rest, MaxBehind); err != nil {
		return Orders{}, err
	}
	if o.Levels, rest, err = part(rest, egress.MaxLevelMarshal); err != nil {
		return Orders{}, err
	}
	o.Table, err = egress.Parse(rest)
	return o, err
}

// part takes bytes behind their length; none is nil.
func part(b []byte, max int) (p, rest []byte, err error) {
	if len(b) < 2 {
		return nil, nil, errShort
	}
	n := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; n > max || len(b) < n {
		return nil, nil, errShort
	}
	if n > 0 {
		p = b[:n:n]
	}
	return p, b[n:], nil
}

// Kind is what a report says.
type Kind byte

// Kinds of reports.
const (
	Alive      Kind = iota + 1 // a sign of life
	Good                       // all was read back under the orders of this generation, and is as it should be
	Difference                 // something is not; the radios are down already
	NoAnswer                   // egressd does not answer; the radios are as they were
	Silent                     // init was silent; the radios are down
)

func (k Kind) String() string {
	switch k {
	case Alive:
		return "alive"
	case Good:
		return "good"
	case Difference:
		return "difference"
	case NoAnswer:
		return "no answer"
	case Silent:
		return "silent"
	}
	return fmt.Sprintf("kind(%d)", byte(k))
}

// Report is what watchd says.
type Report struct {
	Kind       Kind
	Generation uint32 // of the orders that it is about; 0: none yet
	Text       string // for a person
}

// MarshalReport returns the frame of r. A text longer than [MaxText] is cut.
func MarshalReport(r Report) ([]byte, error) {
	if r.Kind < Alive || r.Kind > Silent {
		return nil, fmt.Errorf("cannot marshal a report: unknown %v", r.Kind)
	}
	text := r.Text
	for len(text) > MaxText || !utf8.ValidString(text) {
		text = text[:min(len(text)-1, MaxText)]
	}
	return append(binary.BigEndian.AppendUint32([]byte{byte(r.Kind)}, r.Generation), text...), nil
}

// ParseReport reads a frame. It accepts only what [MarshalReport] writes.
func ParseReport(b []byte) (Report, error) {
	if len(b) < 5 || len(b) > MaxReport || Kind(b[0]) < Alive || Kind(b[0]) > Silent || !utf8.Valid(b[5:]) {
		return Report{}, fmt.Errorf("cannot parse a report of %d bytes", len(b))
	}
	return Report{Kind(b[0]), binary.BigEndian.Uint32(b[1:]), string(b[5:])}, nil
}
