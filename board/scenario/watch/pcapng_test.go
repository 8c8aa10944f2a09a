package watch

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"time"
)

func readAll(b []byte) (n int, r *reader, err error) {
	r = newReader(bytes.NewReader(b))
	for {
		p, err := r.next()
		if err != nil {
			return n, r, err
		}
		if p != nil {
			n++
		}
	}
}

func TestReaderReadsWhatAnIndependentWriterWrote(t *testing.T) {
	b := capture(t, []string{"air-a", "air-b"}, map[int]uint64{1: 5},
		shot{0, 0, make([]byte, 60)}, shot{1, 1500 * time.Microsecond, make([]byte, 61)})
	r := newReader(bytes.NewReader(b))
	var got []packet
	for {
		p, err := r.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if p != nil {
			got = append(got, *p)
		}
	}
	if len(got) != 2 || got[0].link != 0 || got[1].link != 1 || got[1].size != 61 || !got[1].at.Equal(start.Add(1500*time.Microsecond)) {
		t.Errorf("read %+v", got)
	}
	if !slices.Equal(r.names, []string{"air-a", "air-b"}) || r.dropped()["air-b"] != 5 || r.dropped()["air-a"] != 0 {
		t.Errorf("interfaces %q, drops %v", r.names, r.dropped())
	}
}

func TestReaderAddsUpOverSections(t *testing.T) {
	one := capture(t, []string{"air-a"}, map[int]uint64{0: 2}, shot{0, 0, make([]byte, 60)})
	two := capture(t, []string{"air-b", "air-a"}, map[int]uint64{1: 3}, shot{1, 0, make([]byte, 60)})
	n, r, err := readAll(append(one, two...))
	if err != io.EOF || n != 2 || !slices.Equal(r.names, []string{"air-a", "air-b"}) || r.dropped()["air-a"] != 5 {
		t.Errorf("%d frames, %q, %v, %v", n, r.names, r.dropped(), err)
	}
}

func TestReaderRefuses(t *testing.T) {
	good := capture(t, []string{"air"}, nil, shot{0, 0, make([]byte, 60)})
	packetBlock := func(link, got, size uint32, data []byte) []byte {
		return block(blockEnhanced, append(le32(link, 0, 0, got, size), data...))
	}
	ok := append(sectionBlock(), interfaceBlock(linkEthernet)...)
	with := func(more ...[]byte) []byte { return slices.Concat(append([][]byte{ok}, more...)...) }
	if n, _, err := readAll(with(packetBlock(0, 4, 4, make([]byte, 4)))); n != 1 || err != io.EOF {
		t.Fatalf("the hand-made capture is not good to begin with: %d frames, %v", n, err)
	}
	badTrailer := bytes.Clone(good)
	badTrailer[len(badTrailer)-1] = 1
	for name, b := range map[string][]byte{
		"nothing":                     nil,
		"another file":                []byte("this is not a capture at all"),
		"a classic pcap":              {0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0},
		"a frame before any section":  packetBlock(0, 0, 0, nil),
		"wrong byte order magic":      block(blockSection, le32(0x11111111, 1, 0, 0)),
		"another major version":       block(blockSection, append(append(le32(byteOrderMagic), le16(2, 0)...), le32(0, 0)...)),
		"two lengths":                 badTrailer,
		"a huge block":                with(le32(blockEnhanced, 0x7FFFFFFC)),
		"a block of odd length":       with(le32(blockEnhanced, 33), make([]byte, 25)),
		"a block too short":           with(le32(blockEnhanced, 8)),
		"an unknown block":            with(block(0x77, le32(1))),
		"another link type":           append(sectionBlock(), interfaceBlock(113)...),
		"an interface cut":            append(sectionBlock(), block(blockInterface, le32(1))...),
		"no such interface":           with(packetBlock(7, 4, 4, make([]byte, 4))),
		"more bytes than in block":    with(packetBlock(0, 400, 400, make([]byte, 4))),
		"a frame that was cut":        with(packetBlock(0, 4, 1500, make([]byte, 4))),
		"a frame's head cut":          with(block(blockEnhanced, le32(0, 0))),
		"statistics of no interface":  with(block(blockStatistics, le32(9, 0, 0))),
		"statistics cut":              with(block(blockStatistics, le32(0))),
		"an option over the block":    append(sectionBlock(), interfaceBlock(linkEthernet, append(le16(2, 400), 0, 0, 0, 0)...)...),
		"an impossible time unit":     append(sectionBlock(), interfaceBlock(linkEthernet, append(le16(9, 1), 19, 0, 0, 0)...)...),
		"a drop counter of two bytes": with(block(blockStatistics, append(le32(0, 0, 0), append(le16(5, 2), 1, 0, 0, 0)...))),
	} {
		if n, _, err := readAll(b); err == nil || err == io.EOF {
			t.Errorf("%s: read %d frames and ended well", name, n)
		}
	}
	for cut := 1; cut < len(good); cut++ {
		_, _, err := readAll(good[:cut])
		// Only a cut between blocks is a clean end, and then the capture is short
		// by whole blocks, which the count of frames, not the reader, finds out.
		if err == io.EOF && !boundary(good, cut) {
			t.Errorf("cut at %d of %d: ended well", cut, len(good))
		}
	}
	if _, _, err := readAll([]byte("GET / HTTP/1.1\r\n\r\n")); !errors.Is(err, ErrNotCapture) {
		t.Errorf("no capture reads as %v", err)
	}
}

// boundary reports whether a block of b ends at cut.
func boundary(b []byte, cut int) bool {
	for at := 0; at < len(b); {
		at += int(uint32(b[at+4]) | uint32(b[at+5])<<8 | uint32(b[at+6])<<16)
		if at == cut {
			return true
		}
	}
	return false
}

func TestReaderReadsBigEndianAndSlowClocks(t *testing.T) {
	// A section of the other byte order, with an interface of 2^-10 s ticks.
	b := []byte{0x0A, 0x0D, 0x0D, 0x0A, 0, 0, 0, 28, 0x1A, 0x2B, 0x3C, 0x4D, 0, 1, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 28,
		0, 0, 0, 1, 0, 0, 0, 28, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 0x8A, 0, 0, 0, 0, 0, 0, 28,
		0, 0, 0, 6, 0, 0, 0, 36, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 4, 0, 0, 0, 4, 1, 2, 3, 4, 0, 0, 0, 36}
	r := newReader(bytes.NewReader(b))
	var last *packet
	for {
		p, err := r.next()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if p != nil {
			last = p
		}
	}
	if last == nil || !last.at.Equal(time.Unix(1, 500_000_000)) || !bytes.Equal(last.data, []byte{1, 2, 3, 4}) {
		t.Errorf("read %+v", last)
	}
	if r.names[0] != "interface 0" {
		t.Errorf("a nameless interface is called %q", r.names[0])
	}
}

// FuzzReader: no input may panic, run on, or allocate beyond a block.
func FuzzReader(f *testing.F) {
	f.Add(capture(f, []string{"air"}, map[int]uint64{0: 1}, shot{0, 0, make([]byte, 60)}))
	f.Add(append(sectionBlock(), interfaceBlock(linkEthernet)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, r, err := readAll(b)
		if err == nil {
			t.Fatal("ended without an end")
		}
		if cap(r.block) > maxBlock || len(r.links) > maxInterfaces {
			t.Fatalf("kept %d bytes and %d interfaces", cap(r.block), len(r.links))
		}
	})
}

func FuzzClassify(f *testing.F) {
	rules := testRules()
	f.Add(tunnelFrame(f, handset4, gateway4, 51820, wgMessage(4, 96)))
	f.Fuzz(func(t *testing.T, b []byte) {
		v := rules.Classify(b)
		if v.Admitted() == (v.Why != "") || v.Admitted() != (v.Direction != "") {
			t.Fatalf("neither admitted nor outside with a reason: %+v", v)
		}
		if len(v.Why) > 300 {
			t.Fatalf("a reason of %d bytes", len(v.Why))
		}
	})
}
