// Package registrar is the gateway's table of who can be called now: one
// certified address of record, one connection. It is pure: it holds no socket
// and reads no clock, and both its dimensions are bounded.
package registrar

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"rempart/voice/sip"
)

// Binding says that an address of record is reached down one connection.
type Binding struct {
	AOR sip.AOR `json:"name"`
	// Source is the remote address and port of that connection.
	Source string `json:"source"`
	// Since and Expires are CLOCK_MONOTONIC ns.
	Since   int64 `json:"since"`
	Expires int64 `json:"expires"`
}

// ErrFull refuses a registration that the table has no room for.
var ErrFull = errors.New("cannot take another registration: the table is full")

// Table is the registrations. Safe for concurrent use.
type Table struct {
	max   int
	clock func() int64

	mu sync.Mutex
	m  map[sip.AOR]Binding
}

// New is an empty table for at most max names; clock is CLOCK_MONOTONIC ns.
func New(max int, clock func() int64) *Table {
	return &Table{max: max, clock: clock, m: map[sip.AOR]Binding{}}
}

// Register binds aor to the connection for ttl. A newer connection of the same
// party replaces the older: a handset that restarted is reachable at once.
func (t *Table) Register(aor sip.AOR, source string, ttl time.Duration) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock()
	t.expire(now)
	b, known := t.m[aor]
	if !known && len(t.m) >= t.max {
		return ErrFull
	}
	if !known || b.Source != source {
		b = Binding{AOR: aor, Source: source, Since: now}
	}
	b.Expires = now + ttl.Nanoseconds()
	t.m[aor] = b
	return nil
}

// Unregister removes aor if it is bound to that connection.
func (t *Table) Unregister(aor sip.AOR, source string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m[aor].Source == source {
		delete(t.m, aor)
	}
}

// Drop removes whatever is bound to a connection that has ended.
func (t *Table) Drop(source string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for aor, b := range t.m {
		if b.Source == source {
			delete(t.m, aor)
		}
	}
}

// Keep removes every name that known denies: a peer taken off the list is
// unreachable from that moment.
func (t *Table) Keep(known func(sip.AOR) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for aor := range t.m {
		if !known(aor) {
			delete(t.m, aor)
		}
	}
}

// Lookup is the live binding of aor.
func (t *Table) Lookup(aor sip.AOR) (Binding, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire(t.clock())
	b, ok := t.m[aor]
	return b, ok
}

// List is every live binding, by name.
func (t *Table) List() []Binding {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire(t.clock())
	out := make([]Binding, 0, len(t.m))
	for _, b := range t.m {
		out = append(out, b)
	}
	slices.SortFunc(out, func(a, b Binding) int { return strings.Compare(string(a.AOR), string(b.AOR)) })
	return out
}

// expire removes what is over; mu is held.
func (t *Table) expire(now int64) {
	for aor, b := range t.m {
		if b.Expires <= now {
			delete(t.m, aor)
		}
	}
}
