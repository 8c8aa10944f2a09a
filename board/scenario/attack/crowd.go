package attack

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
)

// Line is one line of a crowd's output.
type Line struct {
	// Ready is true on the one line that says that every attempt is at work, or over.
	Ready bool `json:"ready,omitempty"`
	// Marker names the attempt whose result this is.
	Marker string  `json:"marker,omitempty"`
	Result *Result `json:"result,omitempty"`
}

// ParseLine reads one line of a crowd's output.
func ParseLine(line []byte) (Line, error) {
	var l Line
	if len(line) > maxLine {
		return l, fmt.Errorf("cannot read result: %d bytes", len(line))
	}
	if err := json.Unmarshal(line, &l); err != nil {
		return Line{}, fmt.Errorf("cannot read result: %w", err)
	}
	if l.Ready != (l.Result == nil) {
		return Line{}, errors.New("cannot read result: neither ready nor a result")
	}
	return l, nil
}

// maxCrowd bounds the jobs of one crowd.
const maxCrowd = 4096

// ReadJobs reads a crowd's jobs: a line each, Job.Args as a JSON array.
func ReadJobs(in io.Reader) ([]Job, error) {
	var jobs []Job
	for lines := bufio.NewScanner(in); ; {
		if !lines.Scan() {
			return jobs, lines.Err()
		}
		var args []string
		if err := json.Unmarshal(lines.Bytes(), &args); err != nil {
			return nil, fmt.Errorf("cannot read job %d: %w", len(jobs)+1, err)
		}
		j, err := Parse(args)
		if err != nil {
			return nil, fmt.Errorf("cannot read job %d: %w", len(jobs)+1, err)
		}
		if jobs = append(jobs, j); len(jobs) > maxCrowd {
			return nil, fmt.Errorf("cannot run more than %d attempts at a time", maxCrowd)
		}
	}
}

// WriteJobs writes what ReadJobs reads.
func WriteJobs(out io.Writer, jobs []Job) error {
	enc := json.NewEncoder(out)
	for _, j := range jobs {
		if err := enc.Encode(j.Args()); err != nil {
			return err
		}
	}
	return nil
}

// Crowd supervises many attempts and writes a Line for each as it ends. Attempts that go on all run at the same time; of the
// others, width at a time. Cancelling ctx stops those that go on.
func Crowd(ctx context.Context, jobs []Job, width int, out io.Writer, command func(Job) *exec.Cmd) error {
	c := &crowd{out: json.NewEncoder(out), waits: len(jobs)}
	if len(jobs) == 0 {
		return c.write(Line{Ready: true})
	}
	slots := make(chan struct{}, max(width, 1))
	var all sync.WaitGroup
	errs := make([]error, len(jobs))
	for i, j := range jobs {
		all.Go(func() {
			if j.For == 0 {
				slots <- struct{}{}
				defer func() { <-slots }()
			}
			m := &member{c: c, marker: j.Marker.String()}
			errs[i] = errors.Join(Supervise(ctx, j, m, command), m.end())
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// crowd puts the members' lines together.
type crowd struct {
	mu    sync.Mutex
	out   *json.Encoder
	waits int // members that are not yet at work
}

func (c *crowd) write(l Line) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Encode(l)
}

// atWork counts a member, once.
func (c *crowd) atWork(once *sync.Once) (err error) {
	once.Do(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.waits--; c.waits == 0 {
			err = c.out.Encode(Line{Ready: true})
		}
	})
	return err
}

// member takes one attempt's result lines.
type member struct {
	c      *crowd
	marker string
	began  sync.Once
	last   *Result
}

// Write takes whole lines, as writeLine writes them.
func (m *member) Write(p []byte) (int, error) {
	r, err := ParseResult(bytes.TrimSpace(p))
	if err != nil {
		return 0, err
	}
	if r.Started {
		return len(p), m.c.atWork(&m.began)
	}
	if m.last != nil {
		r.Sent += m.last.Sent
	}
	m.last = &r
	return len(p), nil
}

func (m *member) end() error {
	err := m.c.atWork(&m.began)
	if m.last != nil {
		err = errors.Join(err, m.c.write(Line{Marker: m.marker, Result: m.last}))
	}
	return err
}
