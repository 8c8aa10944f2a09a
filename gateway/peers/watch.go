package peers

import (
	"context"
	"sync"
	"time"

	"rempart/internal/journal"
)

// The audit events of this package.
const (
	eventPeers = journal.ID("gateway.peers")
	eventFile  = journal.ID("gateway.peer-file")
	eventPush  = journal.ID("gateway.peers-to-tunnel")
)

// Watcher keeps the Set of a folder and tells the tunnel about it. The folder
// is looked at by polling: its files are few, appear whole by rename, and a
// poll sees a certificate's end of life too.
type Watcher struct {
	Dir     string
	Rules   Rules
	Journal *journal.Journal
	Now     func() time.Time
	// Every is the pause between two looks; zero means 200 ms.
	Every time.Duration
	// Push gives the whole set to the tunnel; it is called again until it
	// succeeds, and whenever Stale says so.
	Push func(context.Context, []Peer) error
	// Stale says that the tunnel may have forgotten the set (it restarted); nil
	// means never.
	Stale func(context.Context) bool
	// Changed is called after each change of the set, before it is pushed; nil
	// is fine.
	Changed func()

	mu  sync.Mutex
	set Set
}

// Set is the set now.
func (w *Watcher) Set() Set {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.set
}

// Lookup is the peer of a SIP address, for the proxy's "known".
func (w *Watcher) Lookup(uri string) (Peer, bool) {
	for _, p := range w.Set().Peers {
		if p.URI == uri {
			return p, true
		}
	}
	return Peer{}, false
}

// Run watches until ctx ends; it returns ctx's error.
func (w *Watcher) Run(ctx context.Context) error {
	every := w.Every
	if every == 0 {
		every = 200 * time.Millisecond
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	told := map[string]string{} // faults already in the journal
	pushed, failed := false, false
	for {
		if w.look(told) {
			pushed = false
		}
		if pushed && w.Stale != nil && w.Stale(ctx) {
			pushed = false
		}
		if !pushed {
			if err := w.Push(ctx, w.Set().Peers); err == nil {
				pushed, failed = true, false
				w.Journal.Event(eventPush, "tunneld", journal.Success)
			} else if ctx.Err() == nil && !failed {
				failed = true // once, not five times a second
				w.Journal.Event(eventPush, "tunneld", journal.Failure, "reason", err.Error())
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// look reads the folder once and tells whether the peers changed. If the folder
// cannot be read as a whole the set in force stays: nobody is cut off by it, and
// nobody gets in.
func (w *Watcher) look(told map[string]string) bool {
	next, err := Load(w.Dir, w.Rules, w.Now())
	if err != nil {
		w.tell(told, w.Dir, err)
		return false
	}
	seen := map[string]bool{}
	for _, f := range next.Faults {
		seen[f.File] = true
		w.tell(told, f.File, f.Err)
	}
	for file := range told {
		if !seen[file] {
			delete(told, file)
		}
	}
	w.mu.Lock()
	same := w.set.Equal(next)
	w.set = next
	w.mu.Unlock()
	if same {
		return false
	}
	for _, p := range next.Peers {
		w.Journal.Event(eventPeers, p.URI, journal.Success, "level", p.Level)
	}
	if w.Changed != nil {
		w.Changed()
	}
	return true
}

// tell journals a fault once, and again only when it becomes another.
func (w *Watcher) tell(told map[string]string, file string, err error) {
	if told[file] == err.Error() {
		return
	}
	told[file] = err.Error()
	w.Journal.Event(eventFile, file, journal.Refused, "reason", err.Error())
}
