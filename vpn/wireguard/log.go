package wireguard

import (
	"errors"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"rempart/internal/journal"
)

// logBurst is how many of wireguard-go's complaints reach the journal in a
// minute; anyone who can send it a packet can cause them.
const logBurst = 6

// bounded passes complaints on to the journal: the fixed words of the message
// and the system's error numbers, never an argument that came from a packet, a
// key or a peer.
type bounded struct {
	journal *journal.Journal
	now     func() time.Time

	mu      sync.Mutex
	window  time.Time
	used    int
	dropped int
}

func (l *bounded) logger() *device.Logger {
	return &device.Logger{Verbosef: device.DiscardLogf, Errorf: l.errorf}
}

func (l *bounded) errorf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := l.now(); now.Sub(l.window) >= time.Minute {
		l.window, l.used = now, 0
	}
	if l.used >= logBurst {
		l.dropped++
		return
	}
	l.used++
	pairs := []string{"what", words(format)}
	for _, a := range args {
		var errno syscall.Errno
		if err, ok := a.(error); ok && errors.As(err, &errno) {
			pairs = append(pairs, "why", errno.Error())
			break
		}
	}
	if l.dropped > 0 {
		pairs = append(pairs, "unreported", strconv.Itoa(l.dropped))
		l.dropped = 0
	}
	l.journal.Event(EventTrouble, "tunnel", journal.Failure, pairs...)
}

// words is a format without its verbs and the punctuation around them.
func words(format string) string {
	var kept []string
	for _, w := range strings.Fields(format) {
		if w = strings.Trim(w, ":-,"); w != "" && !strings.ContainsRune(w, '%') {
			kept = append(kept, w)
		}
	}
	return strings.Join(kept, " ")
}
