package watch

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// Marker is the random bytes that an attempt carries, raw in its payload or in
// lower case hexadecimal where bytes cannot go, as in a DNS label.
type Marker [16]byte

// Bounds of what a Watcher keeps; beyond them it counts and says so.
const (
	maxPoints    = 200_000
	maxSightings = 32 // samples kept per marker, and of frames outside
	maxMarkers   = 4096
)

// Sighting is one frame worth naming.
type Sighting struct {
	Interface string    `json:"interface"`
	At        time.Time `json:"at"`
	Size      int       `json:"size"`
	// Class is the class that the frame passed as, or "" when it was outside.
	Class string `json:"class,omitempty"`
	// What describes the frame.
	What string `json:"what"`
}

// Point is one frame in the plot of sizes over time.
type Point struct {
	At        time.Time
	Interface string
	Class     string // "" is outside, "beacon" is the lab's own
	Direction Direction
	Size      int // bytes on the wire, Ethernet header included
}

// BeaconClass is the class name of the lab's own marked frames, which show that
// the capture is alive and has caught up.
const BeaconClass = "beacon"

type mark struct {
	raw    Marker
	text   [32]byte
	beacon bool
	seen   int
	links  map[int]int
	kept   []Sighting
}

// Watcher judges the frames of one capture while it grows. Its methods may be
// called from any goroutine; Read from one.
type Watcher struct {
	rules Rules

	mu      sync.Mutex
	change  chan struct{} // closed and replaced on each change
	marks   []*mark
	names   []string
	drops   map[string]uint64
	classes map[classKey]*classCount
	outside int
	strange []Sighting
	points  []Point
	frames  int
	cut     bool
	err     error
	done    bool
}

type classKey struct {
	name string
	dir  Direction
}

type classCount struct {
	frames int
	bytes  int64
	sizes  map[int]int // at most 65,549 keys: a frame is no longer
}

// New makes a watcher for the policy's rules.
func New(rules Rules) (*Watcher, error) {
	if err := rules.check(); err != nil {
		return nil, err
	}
	return &Watcher{rules: rules, change: make(chan struct{}), drops: map[string]uint64{}, classes: map[classKey]*classCount{}}, nil
}

// Mark searches every frame from now on for m.
func (w *Watcher) Mark(m Marker) error { return w.mark(m, false) }

// Beacon searches for m too, but a frame that carries it is the lab's own and
// is not counted as outside. m must never be given to an attempt.
func (w *Watcher) Beacon(m Marker) error { return w.mark(m, true) }

func (w *Watcher) mark(m Marker, beacon bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if m == (Marker{}) {
		return errors.New("cannot watch for an all-zero marker")
	}
	if len(w.marks) >= maxMarkers {
		return fmt.Errorf("cannot watch for more than %d markers", maxMarkers)
	}
	for _, k := range w.marks {
		if k.raw == m {
			return errors.New("cannot watch for the same marker twice")
		}
	}
	k := &mark{raw: m, beacon: beacon, links: map[int]int{}}
	hex.Encode(k.text[:], m[:])
	w.marks = append(w.marks, k)
	return nil
}

// Read judges frames until the capture ends. It returns nil at a clean end and
// ctx's error or the reader's otherwise; the judgement of what was read stays.
// A blocked r is only interrupted by closing it.
func (w *Watcher) Read(ctx context.Context, r io.Reader) error {
	err := w.read(ctx, r)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done, w.err = true, err
	w.changed()
	return err
}

func (w *Watcher) read(ctx context.Context, r io.Reader) error {
	in := newReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		p, err := in.next()
		if err == io.EOF {
			err = nil
			w.take(in, nil)
			return nil
		}
		if err != nil {
			return err
		}
		w.take(in, p)
	}
}

// take judges one frame (nil: only the interfaces or drop counters changed).
func (w *Watcher) take(in *reader, p *packet) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p == nil {
		w.names = slices.Clone(in.names)
		w.drops = in.dropped()
		w.changed()
		return
	}
	f := w.rules.Classify(p.data)
	s := Sighting{Interface: in.names[p.link], At: p.at, Size: p.size, Class: f.Class, What: f.Why}
	beacon, marked := false, false
	for _, k := range w.marks {
		if !bytes.Contains(p.data, k.raw[:]) && !containsFold(p.data, k.text[:]) {
			continue
		}
		k.seen++
		k.links[p.link]++
		if k.beacon {
			beacon = true
		} else {
			marked = true
		}
		if len(k.kept) < maxSightings {
			k.kept = append(k.kept, s)
		}
	}
	w.frames++
	class := f.Class
	switch {
	case beacon && !marked:
		class = BeaconClass
	case class == "":
		w.outside++
		if len(w.strange) < maxSightings {
			w.strange = append(w.strange, s)
		}
	}
	w.count(classKey{class, f.Direction}, p.size)
	if len(w.points) < maxPoints {
		w.points = append(w.points, Point{At: p.at, Interface: s.Interface, Class: class, Direction: f.Direction, Size: p.size})
	} else {
		w.cut = true
	}
	w.changed()
}

func (w *Watcher) count(k classKey, size int) {
	c := w.classes[k]
	if c == nil {
		c = &classCount{sizes: map[int]int{}}
		w.classes[k] = c
	}
	c.frames++
	c.bytes += int64(size)
	c.sizes[size]++
}

// changed wakes whoever waits. w.mu must be held.
func (w *Watcher) changed() {
	close(w.change)
	w.change = make(chan struct{})
}

// containsFold finds lower case hexadecimal text in either case: a resolver may
// send a name in capitals (0x20 mixing included).
func containsFold(data, text []byte) bool {
	for len(data) >= len(text) {
		i := bytes.IndexByte(data, text[0])
		if c := text[0]; c >= 'a' {
			if j := bytes.IndexByte(data, c-'a'+'A'); j >= 0 && (i < 0 || j < i) {
				i = j
			}
		}
		if i < 0 || len(data)-i < len(text) {
			return false
		}
		if bytes.EqualFold(data[i:i+len(text)], text) {
			return true
		}
		data = data[i+1:]
	}
	return false
}

// Await waits until marker m was seen on every one of the named interfaces (all
// that the capture has declared, at least one, when none is named). It fails
// when the capture ends or breaks first.
func (w *Watcher) Await(ctx context.Context, m Marker, interfaces ...string) error {
	for {
		w.mu.Lock()
		met, done, err, change := w.met(m, interfaces), w.done, w.err, w.change
		w.mu.Unlock()
		switch {
		case met:
			return nil
		case err != nil:
			return fmt.Errorf("cannot wait for the beacon: the capture broke: %w", err)
		case done:
			return errors.New("cannot wait for the beacon: the capture has ended")
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot wait for the beacon: %w", ctx.Err())
		case <-change:
		}
	}
}

func (w *Watcher) met(m Marker, interfaces []string) bool {
	k := w.find(m)
	if k == nil || len(w.names) == 0 {
		return false
	}
	for i, name := range w.names {
		if len(interfaces) > 0 && !slices.Contains(interfaces, name) {
			continue
		}
		if k.links[i] == 0 {
			return false
		}
	}
	for _, name := range interfaces {
		if !slices.Contains(w.names, name) {
			return false
		}
	}
	return true
}

func (w *Watcher) find(m Marker) *mark {
	for _, k := range w.marks {
		if k.raw == m {
			return k
		}
	}
	return nil
}

// Seen returns in how many captured frames, of any class, marker m was, and the
// first few of them.
func (w *Watcher) Seen(m Marker) (int, []Sighting) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if k := w.find(m); k != nil {
		return k.seen, slices.Clone(k.kept)
	}
	return 0, nil
}

// Outside returns how many frames no class admitted so far.
func (w *Watcher) Outside() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.outside
}
