package main

import (
	"strconv"
	"strings"
)

// event is one line of a journal (internal/journal).
type event map[string]string

// mono is when it was written, CLOCK_MONOTONIC in nanoseconds; 0 if it does
// not say.
func (e event) mono() int64 {
	n, err := strconv.ParseInt(e["mono"], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// is tells whether the event has all of the pairs: key, value, key, value …
func (e event) is(pairs ...string) bool {
	for i := 0; i+1 < len(pairs); i += 2 {
		if e[pairs[i]] != pairs[i+1] {
			return false
		}
	}
	return true
}

// readJournal reads whole lines; a last one that is still being written, and
// lines that are no events, are left out.
func readJournal(text string) []event {
	var events []event
	for line := range strings.Lines(text) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		if e := readEvent(strings.TrimSuffix(line, "\n")); e != nil {
			events = append(events, e)
		}
	}
	return events
}

// readEvent reads one line of logfmt; nil for what is none.
func readEvent(line string) event {
	e := event{}
	for line != "" {
		key, rest, ok := strings.Cut(line, "=")
		if !ok || key == "" || strings.ContainsAny(key, " \"") {
			return nil
		}
		value := rest
		if strings.HasPrefix(rest, `"`) {
			quoted, err := strconv.QuotedPrefix(rest)
			if err != nil {
				return nil
			}
			if value, err = strconv.Unquote(quoted); err != nil {
				return nil
			}
			line = rest[len(quoted):]
		} else {
			value, _, _ = strings.Cut(rest, " ")
			line = rest[len(value):]
		}
		e[key] = value
		line = strings.TrimPrefix(line, " ")
	}
	if e["event"] == "" {
		return nil
	}
	return e
}

// first returns when the first event with all of the pairs was written; 0 if
// none was.
func first(events []event, pairs ...string) int64 {
	for _, e := range events {
		if e.is(pairs...) {
			return e.mono()
		}
	}
	return 0
}
