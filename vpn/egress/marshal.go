package egress

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// The byte form of a policy: "RGP1", the number of classes (2 bytes), then the
// classes in ascending order of their bytes, none twice:
//
//	1  length of the gateway name, then the name
//	1  length of the address: 0 (any), 4 or 16, then the address
//	1  protocol
//	2  port
//	1  purpose
//	8  cgroup id
//
// All numbers big endian. A policy has exactly one byte form.
const (
	magic = "RGP1"
	// MaxMarshal is the longest byte form.
	MaxMarshal = len(magic) + 2 + MaxClasses*maxClass
	maxClass   = 1 + MaxName + 1 + 16 + 1 + 2 + 1 + 8
)

// errShort is the end of the bytes inside a field.
var errShort = errors.New("ends inside a field")

// Marshal returns p's byte form; classes may stand in any order in p. A policy
// that [Policy.Check] refuses has none.
func (p Policy) Marshal() ([]byte, error) {
	if err := p.Check(); err != nil {
		return nil, fmt.Errorf("cannot marshal a policy: %w", err)
	}
	return p.encode(), nil
}

func (p Policy) encode() []byte {
	classes := make([][]byte, 0, len(p.Classes))
	for _, c := range p.Classes {
		classes = append(classes, appendClass(nil, c))
	}
	slices.SortFunc(classes, slices.Compare)
	b := append([]byte(nil), magic...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(classes)))
	return append(b, slices.Concat(classes...)...)
}

func appendClass(b []byte, c Class) []byte {
	b = append(b, byte(len(c.Gateway)))
	b = append(b, c.Gateway...)
	addr := c.Addr.AsSlice()
	b = append(b, byte(len(addr)))
	b = append(b, addr...)
	b = append(b, c.Proto)
	b = binary.BigEndian.AppendUint16(b, c.Port)
	b = append(b, byte(c.Purpose))
	return binary.BigEndian.AppendUint64(b, c.Cgroup)
}

// Parse reads a byte form. It refuses whatever Marshal would not have written, so
// that parse and marshal are each other's inverse.
func Parse(b []byte) (Policy, error) {
	if len(b) > MaxMarshal {
		return Policy{}, fmt.Errorf("cannot parse a policy of %d bytes, the limit is %d", len(b), MaxMarshal)
	}
	d := decoder{b: b}
	p, err := d.policy()
	if err != nil {
		return Policy{}, fmt.Errorf("cannot parse a policy: %w", err)
	}
	return p, nil
}

// Digest names p: SHA-256 over a label and the byte form.
func (p Policy) Digest() [32]byte {
	return sha256.Sum256(append([]byte("rempart egress policy\n"), p.encode()...))
}

// decoder takes fields off the front of b; the first failure sticks.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) take(n int) []byte {
	if d.err != nil || len(d.b) < n {
		d.fail(errShort)
		return make([]byte, n)
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) fail(err error) error {
	if d.err == nil {
		d.err = err
	}
	return d.err
}

func (d *decoder) u8() uint8   { return d.take(1)[0] }
func (d *decoder) u16() uint16 { return binary.BigEndian.Uint16(d.take(2)) }
func (d *decoder) u32() uint32 { return binary.BigEndian.Uint32(d.take(4)) }
func (d *decoder) u64() uint64 { return binary.BigEndian.Uint64(d.take(8)) }

// name reads a length byte and that many bytes, at most max.
func (d *decoder) name(max int) string {
	n := int(d.u8())
	if n > max {
		d.fail(fmt.Errorf("name of %d bytes, the limit is %d", n, max))
		return ""
	}
	return string(d.take(n))
}

func (d *decoder) end() error {
	if d.err == nil && len(d.b) != 0 {
		d.fail(fmt.Errorf("%d bytes after the end", len(d.b)))
	}
	return d.err
}

func (d *decoder) policy() (Policy, error) {
	if string(d.take(len(magic))) != magic {
		return Policy{}, d.fail(errors.New("not a policy"))
	}
	n := int(d.u16())
	if n > MaxClasses {
		return Policy{}, d.fail(fmt.Errorf("%d classes, the limit is %d", n, MaxClasses))
	}
	var p Policy
	var before []byte
	for range n {
		start := d.b
		c := d.class()
		if d.err != nil {
			return Policy{}, d.err
		}
		raw := start[:len(start)-len(d.b)]
		if before != nil && slices.Compare(before, raw) >= 0 {
			return Policy{}, fmt.Errorf("class %v is out of order", c)
		}
		before = raw
		p.Classes = append(p.Classes, c)
	}
	if err := d.end(); err != nil {
		return Policy{}, err
	}
	if err := p.Check(); err != nil {
		return Policy{}, err
	}
	return p, nil
}

func (d *decoder) class() Class {
	c := Class{Gateway: d.name(MaxName)}
	switch n := d.u8(); n {
	case 0:
	case 4, 16:
		c.Addr, _ = netip.AddrFromSlice(d.take(int(n)))
	default:
		d.fail(fmt.Errorf("address of %d bytes", n))
	}
	c.Proto, c.Port = d.u8(), d.u16()
	c.Purpose, c.Cgroup = Purpose(d.u8()), d.u64()
	return c
}
