package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"rempart/internal/frame"
)

// order is what the guest is told: a file of the initial RAM disk.
type order struct {
	Boot     []string // modules to load before the desk's root can be mounted, as files of the RAM disk
	Modules  []string // modules to load afterwards, by name
	Kernel   string   // folder lib/modules of the kernel, as the desk names it
	Commands []task
}

type task struct {
	Argv    []string
	Env     []string
	Dir     string
	Timeout time.Duration
}

const orderFile = "order.json"

func parseOrder(text []byte) (order, error) {
	var o order
	if err := json.Unmarshal(text, &o); err != nil {
		return o, fmt.Errorf("cannot read the order: %w", err)
	}
	if len(o.Commands) == 0 || len(o.Commands) > maxCommands {
		return o, fmt.Errorf("cannot carry out an order of %d commands", len(o.Commands))
	}
	for _, t := range o.Commands {
		if len(t.Argv) == 0 || t.Timeout <= 0 {
			return o, errors.New("cannot carry out a command without a program or a limit")
		}
	}
	return o, nil
}

// What the guest says, one message each.
const (
	saidOut    = 1 // standard output
	saidErr    = 2 // standard error
	saidExit   = 3 // the command ended: an ending as JSON
	saidFailed = 4 // the guest cannot go on: why
)

const (
	maxCommands = 200
	maxSaid     = 64 << 10 // of one message's body
)

// said is one message of the guest's.
type said struct {
	kind    byte
	command byte // its place in the order
	body    []byte
}

func (s said) write(w io.Writer) error {
	return frame.Write(w, append([]byte{s.kind, s.command}, s.body...))
}

func readSaid(r io.Reader) (said, error) {
	b, err := frame.Read(r, maxSaid+2)
	if err != nil {
		return said{}, err
	}
	if len(b) < 2 || b[0] < saidOut || b[0] > saidFailed {
		return said{}, errors.New("cannot read what the guest said")
	}
	return said{b[0], b[1], b[2:]}, nil
}

// Ending is how a command ended.
type Ending struct {
	// Code is its exit code, -1 if a signal ended it.
	Code int
	// Signal is the signal's number, 0 if none.
	Signal int
	// TimedOut is set where the guest killed it for its limit.
	TimedOut bool
	// Took is its time, by the guest's clock.
	Took time.Duration
}

// Err is nil if the command ended well, with code 0.
func (e Ending) Err() error {
	switch {
	case e.TimedOut:
		return fmt.Errorf("did not end within its limit, killed after %v", e.Took.Round(time.Millisecond))
	case e.Signal != 0:
		return fmt.Errorf("ended by signal %d", e.Signal)
	case e.Code != 0:
		return fmt.Errorf("ended with code %d", e.Code)
	}
	return nil
}
