package main

import (
	"runtime/debug"
	"time"

	"rempart/vpn/egress"
)

// A gate is loaded through megabytes of parsed object file that are garbage a moment later. The process lives for as long as the
// phone and does next to nothing, so it gives them back, and it is not woken to look for garbage that it has not made: the
// collector runs when memory is short, not when two minutes have passed.
const (
	// memoryLimit is GOMEMLIMIT: what the runtime needs for itself and a heap of a megabyte or so.
	memoryLimit = 3500 << 10
	// quietAfter is how long after a change the memory is given back: one wakeup, not one for each of several swaps.
	quietAfter = 2 * time.Second
)

// lean gives memory back once no gate has been changed for a while.
type lean struct{ timer *time.Timer }

func newLean() lean {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(memoryLimit)
	return lean{time.AfterFunc(quietAfter, debug.FreeOSMemory)}
}

// asked is told of each request. Those that load nothing are let pass.
func (l lean) asked(op egress.Op) {
	if op != egress.OpStatus && op != egress.OpDrops {
		l.timer.Reset(quietAfter)
	}
}
