package soak

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"rempart/internal/atomicfile"
)

// version of the state file. Fields are added, never renamed or given another meaning, within a version.
const version = 1

// Summary is what the soak has shown so far: the state of a run and its result, out/soak/summary.json.
type Summary struct {
	Version int  `json:"version"`
	Passed  bool `json:"passed"` // all done, and nothing left
	Done    bool `json:"done"`

	Swaps Count            `json:"swaps"`
	Kills map[string]Count `json:"kills"` // by daemon; those of init and keyd are restarts of the handset

	Sent    int `json:"sent"`    // packets that the senders tried, IPv4 and IPv6
	Refused int `json:"refused"` // of those, by an errno; the rest was dropped without a word
	// OpenSent were sent in tunneld's place behind an admission and OpenSeen of them were seen outside; ClosedSent behind a
	// close, and ClosedSeen must be 0.
	OpenSent   int `json:"open_sent"`
	OpenSeen   int `json:"open_seen"`
	ClosedSent int `json:"closed_sent"`
	ClosedSeen int `json:"closed_seen"`

	Frames  int `json:"frames"`  // seen outside
	Outside int `json:"outside"` // of those, of no admitted class; must be 0
	Markers int `json:"markers"` // senders' markers seen outside; must be 0

	// Growth compares a daemon's memory and descriptors before and after many swaps or deaths around it.
	Growth []Growth `json:"growth,omitempty"`

	Seconds  float64   `json:"seconds"` // of all sessions
	Sessions []Session `json:"sessions"`
	Failures []string  `json:"failures"`
}

// Count is how many are done and how many there shall be.
type Count struct {
	Done int `json:"done"`
	Of   int `json:"of"`
}

// Session is one run of the program: a world, a capture.
type Session struct {
	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"`
	Swaps   int       `json:"swaps"`
	Kills   int       `json:"kills"`
	Capture string    `json:"capture"`
	Ended   string    `json:"ended"` // "done", "time is up", "interrupted" or what went wrong
}

// Growth is one process that lived through it.
type Growth struct {
	Process  string `json:"process"`
	During   string `json:"during"`
	Times    int    `json:"times"` // swaps or deaths between the two looks
	MemoryKB [2]int `json:"memory_kb"`
	Files    [2]int `json:"files"`
}

// memoryMayGrow is what a process may differ by between two looks at an idle moment, in KiB: a Go heap is not collected before it
// is 4 MiB, and what is collected is given back later still. Over ten thousand swaps it is 600 bytes a swap.
const memoryMayGrow = 6144

func (g Growth) bad() bool {
	return g.Files[1] > g.Files[0] || g.MemoryKB[1] > g.MemoryKB[0]+memoryMayGrow
}

// progress is a Summary in its file.
type progress struct {
	mu   sync.Mutex
	path string
	Summary
}

// load returns the progress in dir: a new one, or with resume the one that is there, unless that run was done.
func load(dir string, resume bool, swaps, kills int) (*progress, error) {
	p := &progress{path: filepath.Join(dir, "summary.json")}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the folder of the soak: %w", err)
	}
	text, err := os.ReadFile(p.path)
	switch {
	case resume && err == nil:
		if err := json.Unmarshal(text, &p.Summary); err != nil {
			return nil, fmt.Errorf("cannot resume from %s: %w", p.path, err)
		}
		if p.Version != version {
			return nil, fmt.Errorf("cannot resume from %s: version %d, not %d", p.path, p.Version, version)
		}
		if p.Summary.settle(); p.Done && p.Swaps.Of >= swaps && p.of() >= kills {
			p.Summary = Summary{}
		}
	case err == nil || errors.Is(err, fs.ErrNotExist):
	default:
		return nil, fmt.Errorf("cannot read the state of the soak: %w", err)
	}
	p.Version, p.Passed, p.Done = version, false, false
	p.Swaps.Of = swaps
	if p.Kills == nil {
		p.Kills = map[string]Count{}
	}
	for d, c := range p.Kills {
		c.Of = kills
		p.Kills[d] = c
	}
	return p, nil
}

// of is how many kills of each daemon the state is of.
func (s *Summary) of() int {
	most := 0
	for _, c := range s.Kills {
		most = max(most, c.Of)
	}
	return most
}

// change changes the state and keeps it.
func (p *progress) change(f func(s *Summary)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.Summary)
	p.settle()
	text, err := json.MarshalIndent(p.Summary, "", " ")
	if err != nil {
		return fmt.Errorf("cannot encode the state of the soak: %w", err)
	}
	return atomicfile.Write(p.path, append(text, '\n'), 0o644)
}

// look returns a copy.
func (p *progress) look() Summary {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.Summary
	s.Kills = maps.Clone(s.Kills)
	s.Growth, s.Sessions, s.Failures = slices.Clone(s.Growth), slices.Clone(s.Sessions), slices.Clone(s.Failures)
	return s
}

// settle says whether all is done and what did not hold. Failures of a session stay.
func (s *Summary) settle() {
	s.Done = s.Swaps.Done >= s.Swaps.Of && len(s.Kills) > 0
	for _, c := range s.Kills {
		s.Done = s.Done && c.Done >= c.Of
	}
	s.Passed = s.Done && s.Err() == nil
}

// Err is what did not hold so far.
func (s *Summary) Err() error {
	var errs []error
	must := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	for _, f := range s.Failures {
		must(false, "%s", f)
	}
	must(s.Outside == 0, "%d frames outside the admitted classes", s.Outside)
	must(s.Markers == 0, "%d markers of senders seen outside", s.Markers)
	must(s.ClosedSeen == 0, "%d packets left behind a close", s.ClosedSeen)
	must(s.OpenSeen == s.OpenSent, "%d of %d packets behind an admission seen: the capture or the gate lost some", s.OpenSeen, s.OpenSent)
	for _, g := range s.Growth {
		must(!g.bad(), "%s grew during %d %s: %d to %d KiB, %d to %d descriptors", g.Process, g.Times, g.During, g.MemoryKB[0], g.MemoryKB[1], g.Files[0], g.Files[1])
	}
	return errors.Join(errs...)
}

// Left says in one line what is not done yet.
func (s *Summary) Left() string {
	kills := 0
	for _, c := range s.Kills {
		kills += max(0, c.Of-c.Done)
	}
	return fmt.Sprintf("%d of %d swaps and %d kills left", max(0, s.Swaps.Of-s.Swaps.Done), s.Swaps.Of, kills)
}
