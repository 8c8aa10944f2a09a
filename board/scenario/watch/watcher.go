package watch

import (
	"context"
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
	maxMarkers   = 65_536
)

// Sighting is one frame worth naming.
type Sighting struct {
	// Frame is its number in the capture, from 1, as Wireshark counts.
	Frame     int       `json:"frame"`
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
	Class     string // "" is outside
	Direction Direction
	Size      int // bytes on the wire, Ethernet header included
}

type mark struct {
	seen int
	kept []Sighting
}

// Watcher judges the frames of one capture while it grows. Its methods may be
// called from any goroutine; Read from one.
type Watcher struct {
	rules Rules

	mu      sync.Mutex
	change  chan struct{} // closed and replaced on each change
	marks   index
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
	return &Watcher{rules: rules, change: make(chan struct{}), marks: newIndex(), drops: map[string]uint64{}, classes: map[classKey]*classCount{}}, nil
}

// Mark searches every frame from now on for m, and for the traces: bytes that
// stand for m where m itself cannot go, such as a group's address.
func (w *Watcher) Mark(m Marker, traces ...[]byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.marks.add(m, traces)
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
	w.frames++
	s := Sighting{Frame: w.frames, Interface: in.names[p.link], At: p.at, Size: p.size, Class: f.Class, What: f.Why}
	for _, k := range w.marks.in(p.data) {
		k.seen++
		if len(k.kept) < maxSightings {
			k.kept = append(k.kept, s)
		}
	}
	if f.Class == "" {
		w.outside++
		if len(w.strange) < maxSightings {
			w.strange = append(w.strange, s)
		}
	}
	w.count(classKey{f.Class, f.Direction}, p.size)
	if len(w.points) < maxPoints {
		w.points = append(w.points, Point{At: p.at, Interface: s.Interface, Class: f.Class, Direction: f.Direction, Size: p.size})
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

// Await waits until n frames were judged. It fails when the capture ends or breaks first.
func (w *Watcher) Await(ctx context.Context, n int) error {
	for {
		w.mu.Lock()
		frames, done, err, change := w.frames, w.done, w.err, w.change
		w.mu.Unlock()
		switch {
		case frames >= n:
			return nil
		case err != nil:
			return fmt.Errorf("cannot wait for frame %d of the capture: it broke after %d: %w", n, frames, err)
		case done:
			return fmt.Errorf("cannot wait for frame %d of the capture: it ended after %d", n, frames)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot wait for frame %d of the capture: it shows %d: %w", n, frames, ctx.Err())
		case <-change:
		}
	}
}

// Seen returns in how many captured frames, of any class, marker m was, and the
// first few of them.
func (w *Watcher) Seen(m Marker) (int, []Sighting) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if k := w.marks.raw[m]; k != nil {
		return k.seen, slices.Clone(k.kept)
	}
	return 0, nil
}

// Strange returns the first few of the frames that no class admitted.
func (w *Watcher) Strange() []Sighting {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.strange)
}

// Outside returns how many frames no class admitted so far.
func (w *Watcher) Outside() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.outside
}
