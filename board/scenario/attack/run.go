package attack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Result is what the sender can say: what the kernel told it. It is one line of
// JSON on standard output.
type Result struct {
	Kind   Kind   `json:"kind"`
	Family Family `json:"family"`
	// Started is true on the first of the two lines of an attempt that goes on
	// until it is stopped: it is at work from here.
	Started bool `json:"started,omitempty"`
	// Errno is the symbolic name of the last error, "" when none occurred.
	Errno string `json:"errno"`
	// Sent is how many sends the kernel accepted.
	Sent int `json:"sent"`
	// Note says for a person what was tried last and how it failed.
	Note string `json:"note,omitempty"`
}

// tally collects a Result while a kind runs.
type tally struct {
	Result
	out io.Writer
}

// did counts an accepted send, or keeps what refused it. what names the call.
func (t *tally) did(what string, err error) bool {
	if err == nil {
		t.Sent++
		return true
	}
	t.refused(what, err)
	return false
}

// refused keeps the error of a call that is no send.
func (t *tally) refused(what string, err error) {
	t.Note = fmt.Sprintf("%s: %v", what, err)
	t.Errno = "EUNKNOWN"
	var no syscall.Errno
	if errors.As(err, &no) {
		t.Errno = unix.ErrnoName(no)
	}
}

// started tells whoever waits that the sender is at work.
func (t *tally) started() {
	r := t.Result
	r.Started = true
	writeLine(t.out, r)
}

func writeLine(w io.Writer, r Result) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// Run makes the attempt and writes its result to out: one line, or two for an
// attempt that goes on and announces its start. It blocks until the attempt is
// done or ctx ends, which for one that goes on is the normal end.
func Run(ctx context.Context, j Job, out io.Writer) (Result, error) {
	if err := j.check(); err != nil {
		return Result{}, err
	}
	t := &tally{Result: Result{Kind: j.Kind, Family: j.Family}, out: out}
	if j.SetUp {
		t.setUp(j.Device)
	}
	k := kinds()[j.Kind]
	if k.goesOn || j.For == 0 {
		k.run(ctx, j, t)
	} else {
		again(ctx, j, t, k)
	}
	if err := writeLine(out, t.Result); err != nil {
		return t.Result, fmt.Errorf("cannot report the attempt: %w", err)
	}
	return t.Result, nil
}

// pause is between two tries of an attempt that goes on.
const pause = 30 * time.Millisecond

// again tries until ctx or the job's time ends: what is refused now may be
// possible in a moment, when a daemon has died.
func again(ctx context.Context, j Job, t *tally, k kind) {
	ctx, stop := context.WithTimeout(ctx, j.span())
	defer stop()
	j.Count = 1
	t.started()
	for ctx.Err() == nil {
		k.run(ctx, j, t)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// setUp brings the device up, or keeps why not.
func (t *tally) setUp(device string) {
	fd, ok := open(t, unix.AF_UNIX, unix.SOCK_DGRAM, 0, "unix")
	if !ok {
		return
	}
	defer unix.Close(fd)
	if err := setUp(fd, device); err != nil {
		t.refused("set up "+device, err)
	}
}

// maxLine bounds a result line, in bytes.
const maxLine = 4096

// ParseResult reads one line of a sender's output.
func ParseResult(line []byte) (Result, error) {
	var r Result
	if len(line) > maxLine {
		return r, fmt.Errorf("cannot read result: %d bytes", len(line))
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return Result{}, fmt.Errorf("cannot read result: %w", err)
	}
	if _, ok := kinds()[r.Kind]; !ok || r.Sent < 0 {
		return Result{}, fmt.Errorf("cannot read result of kind %q", r.Kind)
	}
	return r, nil
}
