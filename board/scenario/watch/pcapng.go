package watch

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"
)

// Limits of the reader, in bytes and counts. A capture beyond them is refused.
const (
	maxBlock      = 1 << 20 // one pcapng block; a frame is at most 64 KiB with segmentation offload
	maxInterfaces = 64      // per section
	maxName       = 64      // interface name
)

// pcapng block types and option codes
// (draft-ietf-opsawg-pcapng, section 4 and section 3.5).
const (
	blockSection    = 0x0A0D0D0A
	blockInterface  = 1
	blockNames      = 4
	blockStatistics = 5
	blockEnhanced   = 6
	byteOrderMagic  = 0x1A2B3C4D

	optEnd        = 0
	optName       = 2 // if_name
	optResolution = 9 // if_tsresol
	optIfDrop     = 5 // isb_ifdrop
	optOSDrop     = 7 // isb_osdrop

	linkEthernet = 1
)

// ErrNotCapture is returned for a stream that does not start as a pcapng file.
var ErrNotCapture = errors.New("not a pcapng capture")

// link is one interface of the running section.
type link struct {
	index    int // in reader.names, stable over sections
	tsPerSec uint64
	drops    uint64
}

// packet is one captured frame. data is only valid until the next call.
type packet struct {
	link int // index in reader.names
	at   time.Time
	size int // bytes on the wire
	data []byte
}

// reader reads pcapng blocks one by one. Drops and names add up over sections.
type reader struct {
	r      *bufio.Reader
	order  binary.ByteOrder
	links  []link
	names  []string
	drops  map[int]uint64 // by index in names, of finished sections
	block  []byte
	inited bool
}

func newReader(r io.Reader) *reader {
	return &reader{r: bufio.NewReaderSize(r, 1<<16), drops: map[int]uint64{}}
}

// next returns the next frame, or nil after a block that is no frame, so that a
// caller sees interfaces as soon as they are declared. io.EOF only between
// blocks; a cut block is io.ErrUnexpectedEOF.
func (r *reader) next() (*packet, error) {
	var head [8]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		if err == io.EOF && !r.inited {
			return nil, fmt.Errorf("cannot read capture: empty: %w", ErrNotCapture)
		}
		return nil, err
	}
	// The section header's type reads the same in both byte orders, its length
	// does not: the byte order magic behind it decides.
	if binary.BigEndian.Uint32(head[:4]) == blockSection {
		return nil, r.section(head)
	}
	if !r.inited {
		return nil, fmt.Errorf("cannot read capture: %w", ErrNotCapture)
	}
	typ := r.order.Uint32(head[:4])
	body, err := r.body(r.order.Uint32(head[4:]), 0)
	if err != nil {
		return nil, fmt.Errorf("cannot read capture block of type %d: %w", typ, err)
	}
	switch typ {
	case blockInterface:
		return nil, r.describe(body)
	case blockStatistics:
		return nil, r.statistics(body)
	case blockEnhanced:
		return r.enhanced(body)
	case blockNames:
		return nil, nil
	}
	return nil, fmt.Errorf("cannot read capture: unknown block type %#x", typ)
}

// body reads the rest of a block of the total length given by its head, of
// which have bytes after the head are read already, and checks the trailer.
func (r *reader) body(total uint32, have int) ([]byte, error) {
	if total < uint32(12+have) || total > maxBlock || total%4 != 0 {
		return nil, fmt.Errorf("block length %d", total)
	}
	n := int(total) - 8 - have
	if cap(r.block) < n {
		r.block = make([]byte, n)
	}
	b := r.block[:n]
	if _, err := io.ReadFull(r.r, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if got := r.order.Uint32(b[n-4:]); got != total {
		return nil, fmt.Errorf("block length %d at its start, %d at its end", total, got)
	}
	return b[:n-4], nil
}

func (r *reader) section(head [8]byte) error {
	var magic [4]byte
	if _, err := io.ReadFull(r.r, magic[:]); err != nil {
		return fmt.Errorf("cannot read capture section: %w", io.ErrUnexpectedEOF)
	}
	switch uint32(byteOrderMagic) {
	case binary.LittleEndian.Uint32(magic[:]):
		r.order = binary.LittleEndian
	case binary.BigEndian.Uint32(magic[:]):
		r.order = binary.BigEndian
	default:
		return fmt.Errorf("cannot read capture: %w", ErrNotCapture)
	}
	b, err := r.body(r.order.Uint32(head[4:]), 4)
	if err != nil {
		return fmt.Errorf("cannot read capture section: %w", err)
	}
	if len(b) < 12 || r.order.Uint16(b) != 1 {
		return fmt.Errorf("cannot read capture section: unknown version")
	}
	r.settle()
	r.links, r.inited = nil, true
	return nil
}

// settle adds the running section's drop counts to the total.
func (r *reader) settle() {
	for _, l := range r.links {
		r.drops[l.index] += l.drops
	}
}

func (r *reader) describe(b []byte) error {
	if len(b) < 8 {
		return errors.New("cannot read capture interface: too short")
	}
	if len(r.links) >= maxInterfaces || len(r.names) >= 4*maxInterfaces {
		return errors.New("cannot read capture: too many interfaces")
	}
	if t := r.order.Uint16(b); t != linkEthernet {
		return fmt.Errorf("cannot read capture interface: link type %d, expected Ethernet", t)
	}
	l := link{tsPerSec: 1_000_000}
	name := ""
	err := r.options(b[8:], func(code uint16, v []byte) error {
		switch code {
		case optName:
			if len(v) > maxName {
				return errors.New("interface name too long")
			}
			name = string(v)
		case optResolution:
			if len(v) != 1 {
				return errors.New("time resolution of another length than 1")
			}
			// The top bit selects powers of two instead of powers of ten.
			exp := v[0] & 0x7F
			switch {
			case v[0]&0x80 != 0 && exp <= 32:
				l.tsPerSec = 1 << exp
			case v[0]&0x80 == 0 && exp <= 9:
				l.tsPerSec = uint64(math.Pow10(int(exp)))
			default:
				return fmt.Errorf("time resolution %#x", v[0])
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot read capture interface: %w", err)
	}
	if name == "" {
		name = fmt.Sprintf("interface %d", len(r.links))
	}
	l.index = r.intern(name)
	r.links = append(r.links, l)
	return nil
}

// intern gives the same index to the same interface name in every section.
func (r *reader) intern(name string) int {
	for i, n := range r.names {
		if n == name {
			return i
		}
	}
	r.names = append(r.names, name)
	return len(r.names) - 1
}

func (r *reader) statistics(b []byte) error {
	if len(b) < 12 {
		return errors.New("cannot read capture statistics: too short")
	}
	i := int(r.order.Uint32(b))
	if i >= len(r.links) {
		return fmt.Errorf("cannot read capture statistics: no interface %d", i)
	}
	var drops uint64
	err := r.options(b[12:], func(code uint16, v []byte) error {
		if code == optIfDrop || code == optOSDrop {
			if len(v) != 8 {
				return errors.New("drop counter of another length than 8")
			}
			// NoValue64 of writers that do not know the number is not a number of drops.
			if n := r.order.Uint64(v); n != math.MaxUint64 {
				drops += n
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot read capture statistics: %w", err)
	}
	// The counters are totals since the start of the section.
	r.links[i].drops = drops
	return nil
}

func (r *reader) enhanced(b []byte) (*packet, error) {
	if len(b) < 20 {
		return nil, errors.New("cannot read captured frame: too short")
	}
	i := int(r.order.Uint32(b))
	if i >= len(r.links) {
		return nil, fmt.Errorf("cannot read captured frame: no interface %d", i)
	}
	ticks := uint64(r.order.Uint32(b[4:]))<<32 | uint64(r.order.Uint32(b[8:]))
	got, size := r.order.Uint32(b[12:]), r.order.Uint32(b[16:])
	if uint64(got) > uint64(len(b)-20) {
		return nil, fmt.Errorf("cannot read captured frame: %d bytes in a block of %d", got, len(b))
	}
	if got != size {
		// A marker behind the cut would be missed.
		return nil, fmt.Errorf("cannot judge a frame of %d bytes of which only %d were captured", size, got)
	}
	l := r.links[i]
	sec := ticks / l.tsPerSec
	ns := (ticks % l.tsPerSec) * 1_000_000_000 / l.tsPerSec
	if sec > math.MaxInt32*4 {
		return nil, fmt.Errorf("cannot read captured frame: time stamp of %d seconds", sec)
	}
	return &packet{link: l.index, at: time.Unix(int64(sec), int64(ns)), size: int(size), data: b[20 : 20+got]}, nil
}

// options walks a block's option list; a missing end mark is allowed by the
// format, an option that runs over the block is not.
func (r *reader) options(b []byte, f func(code uint16, v []byte) error) error {
	for len(b) > 0 {
		if len(b) < 4 {
			return errors.New("cut option")
		}
		code, n := r.order.Uint16(b), int(r.order.Uint16(b[2:]))
		if code == optEnd {
			return nil
		}
		padded := (n + 3) &^ 3
		if padded > len(b)-4 {
			return errors.New("option longer than its block")
		}
		if err := f(code, b[4:4+n]); err != nil {
			return err
		}
		b = b[4+padded:]
	}
	return nil
}

// dropped returns the frames the capture itself lost, by interface name.
func (r *reader) dropped() map[string]uint64 {
	all := map[string]uint64{}
	for i, n := range r.drops {
		all[r.names[i]] += n
	}
	for _, l := range r.links {
		all[r.names[l.index]] += l.drops
	}
	return all
}
