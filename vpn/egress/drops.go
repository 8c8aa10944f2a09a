package egress

import (
	"encoding/binary"
	"fmt"
)

// MaxSamples is how many samples one answer carries.
const MaxSamples = 32

// Drops is a part of the drop record.
type Drops struct {
	// Samples are the samples behind the number that was asked for, oldest first.
	Samples []Sample
	// Next is the number to ask with for the rest.
	Next uint64
	// Missed is how many numbers between the one asked for and Next are not there:
	// overwritten before they were read.
	Missed uint64
	// LeftOut is how many drops were counted and never recorded, of all reasons, since
	// the handset started.
	LeftOut uint64
}

// MarshalDrops returns the bytes of egressd's answer to [OpDrops]; errText is why there
// is none.
func MarshalDrops(d Drops, errText string) ([]byte, error) {
	if len(d.Samples) > MaxSamples {
		return nil, fmt.Errorf("cannot marshal drops: %d samples, the limit is %d", len(d.Samples), MaxSamples)
	}
	b := appendOutcome(nil, errText)
	for _, n := range []uint64{d.Next, d.Missed, d.LeftOut} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	b = append(b, byte(len(d.Samples)))
	for _, s := range d.Samples {
		b = s.Append(b)
	}
	return b, nil
}

// ParseDrops reads an answer. It accepts only what [MarshalDrops] writes.
func ParseDrops(b []byte) (drops Drops, errText string, err error) {
	d := decoder{b: b}
	errText = d.outcome()
	drops = d.drops()
	if err := d.end(); err != nil {
		return Drops{}, "", fmt.Errorf("cannot parse drops: %w", err)
	}
	return drops, errText, nil
}

func (d *decoder) drops() (out Drops) {
	out.Next, out.Missed, out.LeftOut = d.u64(), d.u64(), d.u64()
	n := int(d.u8())
	if n > MaxSamples {
		d.fail(fmt.Errorf("%d samples, the limit is %d", n, MaxSamples))
		return out
	}
	before := uint64(0)
	for range n {
		s, err := parseSample(d.take(SampleSize))
		if d.err != nil {
			return out
		}
		if err != nil {
			d.fail(err)
			return out
		}
		if s.Seq <= before || s.Seq > out.Next {
			d.fail(fmt.Errorf("sample %d is out of order", s.Seq))
			return out
		}
		before = s.Seq
		out.Samples = append(out.Samples, s)
	}
	return out
}
