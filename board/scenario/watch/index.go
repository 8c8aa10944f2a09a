package watch

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
)

// minTrace is the shortest trace, in bytes: shorter ones would be met by chance
// in ciphertext.
const minTrace = 8

// index finds thousands of markers in a frame by one walk over its bytes.
type index struct {
	raw    map[Marker]*mark
	traces []trace
	first  [65536]bool // by the first two bytes of a marker
}

type trace struct {
	bytes []byte
	of    *mark
}

func newIndex() index { return index{raw: map[Marker]*mark{}} }

func (x *index) add(m Marker, traces [][]byte) error {
	if m == (Marker{}) {
		return errors.New("cannot watch for an all-zero marker")
	}
	if len(x.raw) >= maxMarkers {
		return fmt.Errorf("cannot watch for more than %d markers", maxMarkers)
	}
	if x.raw[m] != nil {
		return errors.New("cannot watch for the same marker twice")
	}
	k := &mark{}
	for _, t := range traces {
		if len(t) < minTrace {
			return fmt.Errorf("cannot watch for a trace of %d bytes, at least %d", len(t), minTrace)
		}
		x.traces = append(x.traces, trace{slices.Clone(t), k})
	}
	x.raw[m] = k
	x.first[uint16(m[0])<<8|uint16(m[1])] = true
	return nil
}

// in returns the marks that a frame holds, each once.
func (x *index) in(data []byte) []*mark {
	var found []*mark
	add := func(k *mark) {
		if k != nil && !slices.Contains(found, k) {
			found = append(found, k)
		}
	}
	digits := 0 // hexadecimal digits in a row that end at i
	for i, b := range data {
		if i+16 <= len(data) && x.first[uint16(b)<<8|uint16(data[i+1])] {
			add(x.raw[Marker(data[i:i+16])])
		}
		if digits++; !isHex(b) {
			digits = 0
		}
		if digits >= 32 {
			// In either case: a resolver may send a name in capitals (0x20
			// mixing included).
			var m Marker
			if _, err := hex.Decode(m[:], data[i-31:i+1]); err == nil {
				add(x.raw[m])
			}
		}
	}
	for _, t := range x.traces {
		if bytes.Contains(data, t.bytes) {
			add(t.of)
		}
	}
	return found
}

func isHex(b byte) bool {
	return b >= '0' && b <= '9' || b >= 'a' && b <= 'f' || b >= 'A' && b <= 'F'
}
