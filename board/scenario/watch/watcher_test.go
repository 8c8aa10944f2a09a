package watch

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

var secretMark = Marker{1, 2, 3, 0xab, 0xcd, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

func watched(t *testing.T, captured []byte) *Watcher {
	t.Helper()
	w, err := New(testRules())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Mark(secretMark); err != nil {
		t.Fatal(err)
	}
	if err := w.Read(context.Background(), bytes.NewReader(captured)); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestMarkersAreFoundInEveryFrame(t *testing.T) {
	text := hex.EncodeToString(secretMark[:])
	mixed := strings.ToUpper(text[:10]) + text[10:]
	hidden := wgMessage(4, 96)
	copy(hidden[40:], secretMark[:])
	for name, frame := range map[string][]byte{
		"raw, outside":           tunnelFrame(t, handset4, host4, 9, secretMark[:]),
		"hexadecimal in a name":  tunnelFrame(t, handset4, host4, 53, []byte("\x20"+text+"\x07example\x03net\x00")),
		"capitals mixed in":      tunnelFrame(t, handset4, host4, 53, []byte(mixed)),
		"an admitted class":      tunnelFrame(t, handset4, gateway4, 51820, hidden),
		"an unknown EtherType":   append([]byte{1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 0x99, 0x99}, secretMark[:]...),
		"the very end, no frame": append([]byte{0}, secretMark[:]...)[1:],
	} {
		w := watched(t, capture(t, []string{"air"}, nil, shot{0, 0, frame}))
		n, seen := w.Seen(secretMark)
		if n != 1 || len(seen) != 1 || seen[0].Interface != "air" {
			t.Errorf("%s: seen %d times: %+v", name, n, seen)
		}
		if s := w.Summary(); s.MarkersSeen != 1 || s.Check() == nil {
			t.Errorf("%s: the summary passes: %+v", name, s)
		}
	}
	near := tunnelFrame(t, handset4, gateway4, 51820, append(wgMessage(4, 80), secretMark[:15]...))
	w := watched(t, capture(t, []string{"air"}, nil, shot{0, 0, near[:len(near)-1]}))
	if n, _ := w.Seen(secretMark); n != 0 {
		t.Error("fifteen bytes of sixteen count as the marker")
	}
}

func TestSummaryCountsByClassAndSize(t *testing.T) {
	out, in := tunnelFrame(t, handset4, gateway4, 51820, wgMessage(4, 96)), udpFrame(t, gateway4, 51820, handset4, 40000, wgMessage(4, 112))
	w := watched(t, capture(t, []string{"a", "b"}, nil, shot{0, 1e6, out}, shot{1, 2e6, out}, shot{0, 3e6, in}))
	s := w.Summary()
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	if s.Frames != 3 || s.Outside != 0 || len(s.Classes) != 2 {
		t.Fatalf("%+v", s)
	}
	for i, want := range []ClassCount{{Class: "tunnel", Direction: In, Frames: 1}, {Class: "tunnel", Direction: Out, Frames: 2}} {
		got := s.Classes[i]
		if got.Class != want.Class || got.Direction != want.Direction || got.Frames != want.Frames || len(got.Sizes) != 1 || got.Sizes[0].Frames != want.Frames {
			t.Errorf("class %d: %+v, want %+v", i, got, want)
		}
	}
	if got := s.Classes[1].Sizes[0].Size; got != 14+20+8+96 {
		t.Errorf("size %d on the wire", got)
	}
	if b, err := json.Marshal(s); err != nil || strings.Contains(string(b), hex.EncodeToString(secretMark[:])) {
		t.Errorf("%s, %v", b, err)
	}
	if p := w.Points(); len(p) != 3 || p[1].Class != "tunnel" || p[1].Direction != Out || p[2].Direction != In {
		t.Errorf("points %+v", p)
	}
}

func TestAStrangeFrameFailsWhoeverSentIt(t *testing.T) {
	arp := append(make([]byte, 12), 0x08, 0x06, 0, 1)
	w := watched(t, capture(t, []string{"a"}, nil, shot{0, 0, arp}))
	s := w.Summary()
	if s.Outside != 1 || w.Outside() != 1 || s.Check() == nil || len(s.Strange) != 1 || s.Strange[0].What != "ARP" {
		t.Errorf("%+v", s)
	}
}

func TestSummaryProvesNothingWhenTheCaptureIsNotWhole(t *testing.T) {
	out := tunnelFrame(t, handset4, gateway4, 51820, wgMessage(4, 96))
	whole := capture(t, []string{"a"}, nil, shot{0, 0, out})
	for name, w := range map[string]*Watcher{
		"drops": watched(t, capture(t, []string{"a"}, map[int]uint64{0: 1}, shot{0, 0, out})),
		"empty": watched(t, capture(t, []string{"a"}, nil)),
	} {
		if err := w.Summary().Check(); err == nil {
			t.Errorf("%s: passes", name)
		}
	}
	w, _ := New(testRules())
	if err := w.Read(context.Background(), bytes.NewReader(whole[:len(whole)-3])); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a cut capture: %v", err)
	}
	if w.Summary().Check() == nil {
		t.Error("a cut capture passes")
	}
	if err := watched(t, whole).Summary().Check(); err != nil {
		t.Errorf("the whole capture does not pass: %v", err)
	}
}

func TestAwaitCountsFrames(t *testing.T) {
	frame := tunnelFrame(t, host4, handset4, 9, nil)
	w, _ := New(testRules())
	r, p := io.Pipe()
	go w.Read(context.Background(), r)
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	if err := w.Await(short(), 0); err != nil {
		t.Errorf("for no frame: %v", err)
	}
	if w.Await(short(), 1) == nil {
		t.Error("a frame before anything was captured")
	}
	b := capture(t, []string{"a", "b"}, nil, shot{0, 0, frame}, shot{1, 0, frame})
	last := len(b) - (len(capture(t, []string{"a"}, nil, shot{0, 0, frame})) - len(capture(t, []string{"a"}, nil)))
	p.Write(b[:last])
	if w.Await(short(), 2) == nil {
		t.Error("two frames when there was one")
	}
	if err := w.Await(short(), 1); err != nil {
		t.Errorf("one frame: %v", err)
	}
	go p.Write(b[last:])
	if err := w.Await(context.Background(), 2); err != nil {
		t.Error(err)
	}
	go p.Close()
	if err := w.Await(context.Background(), 3); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("after the end: %v", err)
	}
}

func TestMarkersAreBoundedAndUnique(t *testing.T) {
	w, _ := New(Rules{})
	if w.Mark(Marker{}) == nil {
		t.Error("an all-zero marker, which every padding holds, was accepted")
	}
	if w.Mark(secretMark) != nil || w.Mark(secretMark) == nil {
		t.Error("the same marker twice")
	}
	var err error
	for i := 0; i < maxMarkers+1 && err == nil; i++ {
		err = w.Mark(Marker{0xff, byte(i), byte(i >> 8)})
	}
	if err == nil {
		t.Error("markers without bound")
	}
	if n, s := w.Seen(Marker{4}); n != 0 || s != nil {
		t.Error("an unknown marker was seen")
	}
}

func TestReadEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w, _ := New(testRules())
	if err := w.Read(ctx, bytes.NewReader(capture(t, []string{"a"}, nil))); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if w.Summary().Ended {
		t.Error("an interrupted reading counts as a whole one")
	}
}

func TestShapeOfAConstantStream(t *testing.T) {
	var points []Point
	for i := range 100 {
		points = append(points, Point{At: start.Add(time.Duration(i) * 20 * time.Millisecond), Interface: "a", Class: "tunnel", Direction: Out, Size: 234})
		points = append(points, Point{At: start.Add(time.Duration(i) * 20 * time.Millisecond), Interface: "b", Class: "tunnel", Direction: Out, Size: 99})
	}
	points = append(points, Point{At: start.Add(3 * time.Second), Interface: "a", Class: "tunnel", Size: 74})
	s := ShapeOf(points, func(p Point) bool { return p.Interface == "a" })
	if s.Frames != 101 || s.MainSize != 234 || s.MainShare < 0.99 || s.PeriodMedianMS != 20 || s.PeriodMaxMS != 20 || len(s.Sizes) != 2 {
		t.Errorf("%+v", s)
	}
	if none := ShapeOf(points, func(Point) bool { return false }); none.Frames != 0 || none.MainShare != 0 {
		t.Errorf("%+v", none)
	}
}

func BenchmarkWatch(b *testing.B) {
	frame := tunnelFrame(b, handset4, gateway4, 51820, wgMessage(4, 1408))
	shots := make([]shot, 1000)
	for i := range shots {
		shots[i] = shot{0, time.Duration(i), frame}
	}
	all := capture(b, []string{"a"}, nil, shots...)
	b.SetBytes(int64(len(all)))
	for b.Loop() {
		w, _ := New(testRules())
		for i := range 64 {
			w.Mark(Marker{0xff, byte(i)})
		}
		w.Read(context.Background(), bytes.NewReader(all))
	}
}
