package tunnel

import "time"

// Sample is what the device says about the session at one moment.
type Sample struct {
	At time.Time
	// Handshake is the time of the last complete handshake; zero means none.
	Handshake time.Time
	// Received counts authenticated bytes from the other end, all kinds.
	Received uint64
	// Data counts data packets sent; keepalives are not data, since the other
	// end owes no answer to them.
	Data uint64
	// Unreachable is the reason of a failed send since the last sample, or empty.
	Unreachable string
}

// Watch turns samples into events. The zero value is ready; it is no part of
// the State because it decides nothing. Make a new one with each attempt.
//
// Ages are taken between samples' own times, never from the handshake's: that
// one is a wall clock's, which may be set.
type Watch struct {
	handshake time.Time // as the device last told it
	seen      time.Time // when it was first told
	received  uint64
	data      uint64
	asked     time.Time // when data was first sent with nothing received since
}

// Next says what a sample means in a phase; false means nothing new.
func (w *Watch) Next(p Phase, s Sample) (Event, bool) {
	if s.Received != w.received {
		w.received, w.asked = s.Received, time.Time{}
	}
	if s.Data != w.data {
		if w.data = s.Data; w.asked.IsZero() {
			w.asked = s.At
		}
	}
	if !s.Handshake.IsZero() && !s.Handshake.Equal(w.handshake) {
		w.handshake, w.seen, w.asked = s.Handshake, s.At, time.Time{}
		if p == Connecting || p == Up || p == Stale || p == Listening {
			return Event{Kind: HandshakeSeen, At: s.At, Handshake: s.Handshake}, true
		}
		return Event{}, false
	}
	switch p {
	case Connecting:
		if s.Unreachable != "" {
			return Event{Kind: EndpointUnreachable, At: s.At, Why: s.Unreachable}, true
		}
	case Up:
		switch {
		case !w.asked.IsZero() && s.At.Sub(w.asked) >= SilentAfter:
			w.asked = time.Time{}
			return Event{Kind: HandshakeStale, At: s.At, Why: "nothing received for 15 s while sending"}, true
		case s.At.Sub(w.seen) >= RejectAfter:
			return Event{Kind: HandshakeStale, At: s.At, Why: "no handshake for 180 s"}, true
		}
	}
	return Event{}, false
}
