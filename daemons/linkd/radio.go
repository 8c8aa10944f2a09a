package main

import (
	"context"
	"errors"
	"time"

	"rempart/internal/journal"
	"rempart/internal/wish"
	"rempart/vpn/lease"
)

// How a wish is tried again: init may be busy with its own boot, or may not have egressd at the moment; who refuses three
// times means it.
const (
	wishPause   = time.Second
	wishRefused = 3
)

// message is one parsed message, or why it could not be read.
type message struct {
	what any // lease.Reply, lease.Advertisement
	err  error
}

// radio is one device and its two families.
type radio struct {
	device  string
	client  lease.Client
	host    lease.Host
	heard   chan message
	send4   func([]byte) error
	send6   func([]byte) error
	random  func([]byte)
	wish    func(context.Context, wish.Lease) error
	journal *journal.Journal

	start time.Time
	mute  bool    // the last message did not leave, and that was said
	told  [2]told // by family: IPv4, IPv6
}

// told is what init was asked for.
type told struct {
	held    lease.Held
	known   bool // init has said yes to held
	refused int
	again   time.Duration
}

// serve runs until ctx ends. The addresses stay: init takes them back when their time is over.
func (r *radio) serve(ctx context.Context) {
	r.start = time.Now()
	for ctx.Err() == nil {
		now := time.Since(r.start)
		r.step(ctx, now)
		timer := time.NewTimer(max(r.next()-now, 0))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case m := <-r.heard:
			r.take(time.Since(r.start), m)
		}
		timer.Stop()
	}
}

// step sends what is due and asks init for what has changed.
func (r *radio) step(ctx context.Context, now time.Duration) {
	var xid [4]byte
	r.random(xid[:])
	for _, m := range []struct {
		body   []byte
		send   func([]byte) error
		unsent func(time.Duration)
	}{{r.client.Step(now, xid), r.send4, r.client.Unsent}, {r.host.Step(now), r.send6, r.host.Unsent}} {
		if m.body == nil {
			continue
		}
		if err := m.send(m.body); err != nil {
			m.unsent(now)
			if !r.mute {
				r.journal.Event(eventSend, r.device, journal.Failure, "reason", err.Error())
			}
			r.mute = true
			continue
		}
		r.mute = false
	}
	for i, held := range []lease.Held{r.client.Held(), r.host.Held()} {
		r.tell(ctx, now, i, held)
	}
}

func (r *radio) next() time.Duration {
	next := min(r.client.Next(), r.host.Next())
	for _, t := range r.told {
		if !t.known {
			next = min(next, t.again)
		}
	}
	return next
}

// take gives a message to its family.
func (r *radio) take(now time.Duration, m message) {
	switch what := m.what.(type) {
	case lease.Reply:
		if m.err == nil {
			r.client.Heard(now, what)
		}
	case lease.Advertisement:
		if m.err == nil {
			var identifier [8]byte
			r.random(identifier[:])
			r.host.Heard(now, what, identifier)
		}
	}
	if m.err != nil {
		r.journal.Event(eventIgnore, r.device, journal.Refused, "reason", m.err.Error())
	}
}

// tell asks init for what a family holds, if init does not know it yet.
func (r *radio) tell(ctx context.Context, now time.Duration, family int, held lease.Held) {
	t := &r.told[family]
	if held != t.held {
		*t = told{held: held, again: now}
	} else if *t == (told{}) {
		t.known = true // nothing yet, and nothing said
	}
	if t.known || now < t.again {
		return
	}
	l := wish.Lease{Device: r.device, Six: family == 1}
	if held != (lease.Held{}) {
		left := min(held.Until-now, wish.MaxLease).Truncate(time.Second)
		if left <= 0 {
			return // it is over; Step says so next
		}
		l.Address, l.Router, l.For = held.Address, held.Router, left
	}
	err := r.wish(ctx, l)
	if err == nil {
		t.known, t.refused = true, 0
		event := eventLost
		if l.For > 0 {
			event = eventLease
		}
		r.journal.Event(event, r.device, journal.Success, "address", l.Address.String(), "router", l.Router.String(), "for", l.For.String())
		return
	}
	r.journal.Event(eventLease, r.device, journal.Refused, "address", l.Address.String(), "reason", err.Error())
	t.again = now + wishPause
	if refused := (*wish.RefusedError)(nil); !errors.As(err, &refused) {
		return
	}
	if t.refused++; t.refused < wishRefused {
		return
	}
	*t = told{known: true} // init has nothing of it
	if family == 0 {
		r.client.Refuse(now)
	} else {
		r.host.Refuse(now)
	}
}
