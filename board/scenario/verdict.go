package scenario

import (
	"cmp"
	"fmt"

	"rempart/board/scenario/attack"
)

// Verdict is how one attempt ended.
type Verdict string

// The verdicts.
const (
	Refused   Verdict = "refused"   // the kernel said no: Detail is the errno
	Dropped   Verdict = "dropped"   // accepted and not seen outside: Detail is the reason counter
	Tunnelled Verdict = "tunnelled" // went into the tunnel; outside, only ciphertext
	Leaked    Verdict = "leaked"    // the marker was on the internet link
	Broken    Verdict = "broken"    // the attempt could not be made or judged
)

// Unaccounted is the detail of a drop that no counter of the handset names.
const Unaccounted = "no counter moved"

// evidence is all that a verdict rests on.
type evidence struct {
	from          Where
	seen          int // frames outside with the row's markers
	results       []attack.Result
	cut           bool // a sender ended with the handset, without its last line
	before, after Counters
	counted       bool // before and after are of the same running handset
}

// judge is the whole rule: what was seen outside decides, then what the sender
// was told, and counters only say by what it was stopped.
func judge(e evidence) (Verdict, string) {
	sent, errno := 0, ""
	for _, r := range e.results {
		sent += r.Sent
		errno = cmp.Or(errno, r.Errno)
	}
	switch {
	case e.seen > 0:
		return Leaked, fmt.Sprintf("%d frames", e.seen)
	case len(e.results) == 0 && !e.cut:
		return Broken, "the sender gave no result"
	case sent == 0 && errno != "" && !e.cut:
		return Refused, errno
	case sent == 0 && !e.cut:
		return Broken, "the sender sent nothing and was refused nothing"
	}
	if e.counted {
		if e.from == Red && e.after.Tunnelled >= e.before.Tunnelled+uint64(max(sent, 1)) {
			return Tunnelled, fmt.Sprintf("%d packets", e.after.Tunnelled-e.before.Tunnelled)
		}
		if reason, n := risen(e.before.Drops, e.after.Drops); n > 0 {
			return Dropped, reason
		}
	}
	if e.cut {
		return Dropped, "ended with the handset"
	}
	// A sender that was partly refused was stopped at least there.
	return Dropped, cmp.Or(errno, Unaccounted)
}

// risen returns the reason whose counter rose most, the first by name of equals.
func risen(before, after map[string]uint64) (string, uint64) {
	reason, most := "", uint64(0)
	for name, n := range after {
		if d := n - min(n, before[name]); d > most || d == most && d > 0 && name < reason {
			reason, most = name, d
		}
	}
	return reason, most
}
