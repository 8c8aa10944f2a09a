// Package run is the shared outside of every program here: signals in, one error line and an exit code out.
package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"rempart/internal/journal"
)

// ErrStopped is the clean end of a daemon that was asked to stop. Main exits with 0 on it.
var ErrStopped = errors.New("stopped")

// Main runs fn until it returns, with a context that SIGTERM or SIGINT cancels and a journal on the standard error, then exits
// the process: 0 on nil or ErrStopped, else 1 after one line with the error and, where it has one, a hint line.
func Main(daemon string, fn func(ctx context.Context, j *journal.Journal) error) {
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	err := fn(ctx, journal.New(os.Stderr, daemon))
	cancel()
	os.Exit(Report(os.Stderr, daemon, err))
}

// Report writes err for a person, as `name: error` and `hint: …`, and returns the exit code.
func Report(w io.Writer, name string, err error) int {
	if err == nil || errors.Is(err, ErrStopped) {
		return 0
	}
	fmt.Fprintf(w, "%s: %v\n", name, err)
	if h := HintOf(err); h != "" {
		fmt.Fprintf(w, "hint: %s\n", h)
	}
	return 1
}

type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// Hint attaches to err what a person could do about it. The text of err is unchanged. A nil err stays nil.
func Hint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hinted{err, fmt.Sprintf(format, args...)}
}

// HintOf returns the outermost hint of err, or "".
func HintOf(err error) string {
	if h, ok := errors.AsType[*hinted](err); ok {
		return h.hint
	}
	return ""
}
