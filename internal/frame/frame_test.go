package frame

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestRoundTripAndLimits(t *testing.T) {
	var buf bytes.Buffer
	for _, m := range [][]byte{{}, {0}, bytes.Repeat([]byte{7}, 300)} {
		if err := Write(&buf, m); err != nil {
			t.Fatal(err)
		}
		got, err := Read(&buf, 300)
		if err != nil || !bytes.Equal(got, m) {
			t.Errorf("round trip of %d bytes: %d bytes, %v", len(m), len(got), err)
		}
	}
	if _, err := Read(&buf, 300); err != io.EOF {
		t.Errorf("clean end: %v, want io.EOF itself", err)
	}
	if err := Write(&buf, make([]byte, MaxWrite+1)); !errors.Is(err, ErrTooLong) {
		t.Errorf("oversized write: %v", err)
	}
	if buf.Len() != 0 {
		t.Error("a refused write left bytes on the stream")
	}
}

func TestReadRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		in   []byte
		max  int
		want error
	}{
		"length above limit":    {[]byte{0, 0, 1, 0}, 255, ErrTooLong},
		"length of 4 GiB":       {[]byte{255, 255, 255, 255}, 1 << 20, ErrTooLong},
		"negative limit":        {[]byte{0, 0, 0, 0}, -1, ErrTooLong},
		"end inside the length": {[]byte{0, 0}, 10, io.ErrUnexpectedEOF},
		"end inside the body":   {[]byte{0, 0, 0, 4, 1}, 10, io.ErrUnexpectedEOF},
		"end before the body":   {[]byte{0, 0, 0, 4}, 10, io.ErrUnexpectedEOF},
	} {
		if b, err := Read(bytes.NewReader(c.in), c.max); !errors.Is(err, c.want) || b != nil {
			t.Errorf("%s: %v, %v; want %v and no bytes", name, b, err, c.want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 9})
	f.Fuzz(func(t *testing.T, in []byte) {
		b, err := Read(bytes.NewReader(in), 64)
		if err != nil {
			if b != nil {
				t.Fatal("value and error together")
			}
			return
		}
		var out bytes.Buffer
		if err := Write(&out, b); err != nil || !bytes.Equal(out.Bytes(), in[:4+len(b)]) {
			t.Fatalf("marshal of the parsed message differs: %v", err)
		}
	})
}
