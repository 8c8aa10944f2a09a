package main

import (
	"math"
	"runtime/debug"
	"sync"
	"time"

	"rempart/vpn/egress"
)

// A gate is loaded through megabytes of parsed object file that are garbage a moment later. The process lives for as long as the
// phone and does next to nothing, so once it is quiet it gives them back, and from then on it is not woken to look for garbage
// that it has not made: the collector runs when memory is short, not when two minutes have passed.
const (
	// quietLimit is GOMEMLIMIT while quiet: what the runtime needs for itself and the answers to some hundred questions.
	quietLimit = 3 << 20
	// busyGrowth is GOGC while gates are being changed. A limit would have the collector run all the time there.
	busyGrowth = 100
	// quietAfter is how long after a change the process counts as quiet: one wakeup, not one for each of several swaps.
	quietAfter = 2 * time.Second
)

// lean switches between the two.
type lean struct {
	mu    sync.Mutex
	quiet bool
	timer *time.Timer
}

func newLean() *lean {
	l := &lean{}
	l.timer = time.AfterFunc(quietAfter, l.rest)
	return l
}

// asked is told of each request. Those that load nothing are let pass.
func (l *lean) asked(op egress.Op) {
	if op == egress.OpStatus || op == egress.OpDrops {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.quiet {
		l.quiet = false
		debug.SetMemoryLimit(math.MaxInt64)
		debug.SetGCPercent(busyGrowth)
	}
	l.timer.Reset(quietAfter)
}

func (l *lean) rest() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.quiet = true
	debug.FreeOSMemory()
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(quietLimit)
}
