package watch

import (
	"io"
	"sync"
	"time"
)

// tailPoll is how often a Tail looks for more.
const tailPoll = 2 * time.Millisecond

// Tail reads what another process is still writing: at the end it waits for
// more, until Finish says that there will be none.
type Tail struct {
	r    io.Reader
	done chan struct{}
	once sync.Once
}

// NewTail follows r, which must return io.EOF at its present end and more once
// there is more, as a file does.
func NewTail(r io.Reader) *Tail { return &Tail{r: r, done: make(chan struct{})} }

// Finish says that all is written. What was written before is still read. It
// may be called more than once and from any goroutine.
func (t *Tail) Finish() { t.once.Do(func() { close(t.done) }) }

// Read waits for at least one byte, or for the end after Finish.
func (t *Tail) Read(p []byte) (int, error) {
	last := false
	for {
		n, err := t.r.Read(p)
		if n > 0 || len(p) == 0 {
			return n, nil
		}
		if err != nil && err != io.EOF || err == io.EOF && last {
			return 0, err
		}
		select {
		case <-t.done:
			// Once more: the last bytes may have come between the read and this.
			last = true
		case <-time.After(tailPoll):
		}
	}
}
