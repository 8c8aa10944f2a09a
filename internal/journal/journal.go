// Package journal writes audit events (FAU_GEN.1): one call, one line, one event with its id, subject and outcome.
//
// A line is logfmt: time (UTC), mono (CLOCK_MONOTONIC in nanoseconds, comparable between processes of one machine), daemon,
// event, subject, outcome, then the event's own pairs. There is no JSON here so that egressd can use it. A journal that cannot
// be written must never stop the path that reports: Event returns nothing and counts what it lost; the next line that does
// get through says how many.
package journal

import (
	"io"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// ID names a kind of event, for example "keystore.unlock". Each room declares its own in events.go.
type ID string

// Outcome is what came of an event.
type Outcome string

// The outcomes of FAU_GEN.1.2: success, failure (tried and went wrong), refused (a rule said no).
const (
	Success Outcome = "success"
	Failure Outcome = "failure"
	Refused Outcome = "refused"
)

// maxValue bounds one value, in bytes, so that a hostile subject cannot flood the record.
const maxValue = 256

// Journal writes the events of one daemon. A nil *Journal is silent. It is safe for concurrent use.
type Journal struct {
	mu     sync.Mutex
	w      io.Writer
	daemon string
	lost   int
}

// New returns a journal that writes the events of daemon to w, one Write call a line.
func New(w io.Writer, daemon string) *Journal { return &Journal{w: w, daemon: daemon} }

// Event writes one audit event. kv are pairs of key and value; a last key without a value is written with an empty one.
func (j *Journal) Event(id ID, subject string, outcome Outcome, kv ...string) {
	if j == nil {
		return
	}
	var b strings.Builder
	b.WriteString("time=")
	b.WriteString(time.Now().UTC().Format("2006-01-02T15:04:05.000000Z"))
	b.WriteString(" mono=")
	b.WriteString(strconv.FormatInt(mono(), 10))
	pair(&b, "daemon", j.daemon)
	pair(&b, "event", string(id))
	pair(&b, "subject", subject)
	pair(&b, "outcome", string(outcome))
	for i := 0; i < len(kv); i += 2 {
		value := ""
		if i+1 < len(kv) {
			value = kv[i+1]
		}
		pair(&b, kv[i], value)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.lost > 0 {
		pair(&b, "lost", strconv.Itoa(j.lost))
	}
	b.WriteByte('\n')
	if _, err := j.w.Write([]byte(b.String())); err != nil {
		j.lost++
		return
	}
	j.lost = 0
}

func pair(b *strings.Builder, key, value string) {
	if len(value) > maxValue {
		cut := maxValue
		for cut > 0 && !utf8.RuneStart(value[cut]) {
			cut--
		}
		value = value[:cut] + "…"
	}
	b.WriteByte(' ')
	b.WriteString(word(key))
	b.WriteByte('=')
	if value != "" && word(value) == value {
		b.WriteString(value)
		return
	}
	b.WriteString(strconv.QuoteToASCII(value))
}

// word keeps what needs no quoting: a key or value made of anything else could forge a second pair or a second line.
func word(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("._-:/@+,", r):
			return r
		}
		return -1
	}, s)
}

func mono() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}
