package watch

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"strings"
	"testing"
)

// TestIndexFindsWhatASearchFinds compares the walk with the plain search it replaces, on frames of few different bytes.
func TestIndexFindsWhatASearchFinds(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	x := newIndex()
	var all []Marker
	for range 300 {
		var m Marker
		for i := range m {
			m[i] = byte(r.IntN(256))
		}
		if err := x.add(m, nil); err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	for n := range 2000 {
		frame := make([]byte, r.IntN(200))
		for i := range frame {
			frame[i] = "0123456789abcdefABCDEFxyz\x00"[r.IntN(26)]
		}
		var want []Marker
		for range r.IntN(3) {
			m := all[r.IntN(len(all))]
			text := []byte(hex.EncodeToString(m[:]))
			put := [][]byte{m[:], text, bytes.ToUpper(text)}[r.IntN(3)]
			at := r.IntN(len(frame) + 1)
			frame = append(frame[:at:at], append(bytes.Clone(put), frame[at:]...)...)
		}
		for _, m := range all {
			if bytes.Contains(frame, m[:]) || strings.Contains(strings.ToLower(string(frame)), hex.EncodeToString(m[:])) {
				want = append(want, m)
			}
		}
		got := x.in(frame)
		if len(got) != len(want) {
			t.Fatalf("frame %d: %d marks found, want %d: %x", n, len(got), len(want), frame)
		}
		for _, m := range want {
			found := false
			for _, k := range got {
				found = found || k == x.raw[m]
			}
			if !found {
				t.Fatalf("frame %d: %x not found", n, m)
			}
		}
	}
}

func TestTracesStandForTheirMarker(t *testing.T) {
	x := newIndex()
	m, group := Marker{1, 2, 3}, []byte{4, 0, 0, 0, 239, 1, 2, 3}
	if err := x.add(m, [][]byte{group}); err != nil {
		t.Fatal(err)
	}
	if got := x.in(append([]byte("igmp"), group...)); len(got) != 1 || got[0] != x.raw[m] {
		t.Errorf("found %v", got)
	}
	if err := x.add(Marker{9}, [][]byte{{1, 2, 3, 4}}); err == nil {
		t.Error("a trace of four bytes was accepted")
	}
	if err := x.add(m, nil); err == nil {
		t.Error("the same marker was accepted twice")
	}
	if err := x.add(Marker{}, nil); err == nil {
		t.Error("an all-zero marker was accepted")
	}
}
