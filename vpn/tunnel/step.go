package tunnel

import "time"

// Start is the first state and what to do on entering it: whatever a process
// before this one left in force is closed before a key is asked for.
func Start(plan Plan, at time.Time) (State, []Effect, error) {
	if err := plan.Check(); err != nil {
		return State{}, nil, err
	}
	s := State{Phase: Locked, Gateway: plan.Targets[0].Gateway, Since: at, DownSince: at,
		Why: "waiting for the tunnel key"}
	return s, []Effect{{Act: Close}, {Act: FetchKey}}, nil
}

// Step is the one transition function. It returns the next state and the
// effects of getting there, in the order in which they are to be run. A pair
// that has no meaning is an *UnexpectedError and leaves the state as it was.
func Step(plan Plan, s State, e Event) (State, []Effect, error) {
	m := move{plan: plan, s: s, e: e}
	if s.Phase == Stopped {
		return m.stopped()
	}
	switch e.Kind { // what means the same in every living phase
	case Shutdown:
		m.enter(Stopped, "shut down")
		return m.s, []Effect{{Act: Close}, {Act: Disconnect}, {Act: Destroy}}, nil
	case DeviceFailed:
		if s.Phase == Locked {
			return m.unexpected()
		}
		m.enter(Locked, or(e.Why, "the tunnel device failed"))
		m.s.Trouble = m.s.Why
		m.s.Retries++
		return m.s, []Effect{{Act: Close}, {Act: Disconnect}, {Act: Destroy}, m.backoff()}, nil
	}
	switch s.Phase {
	case Locked:
		return m.locked()
	case Closed:
		return m.closed()
	case Admitting:
		return m.admitting()
	case Connecting:
		return m.connecting()
	case Up:
		return m.up()
	case Stale:
		return m.stale()
	case Failed:
		return m.failed()
	case Listening:
		return m.listening()
	}
	return m.unexpected()
}

// move is one call of Step: the state being changed and why.
type move struct {
	plan Plan
	s    State
	e    Event
}

func (m *move) unexpected() (State, []Effect, error) {
	return m.s, nil, &UnexpectedError{Phase: m.s.Phase, Kind: m.e.Kind}
}

func (m *move) stay() (State, []Effect, error) { return m.s, nil, nil }

// enter changes the phase. What belongs to one attempt or one phase ends here.
func (m *move) enter(p Phase, why string) {
	if m.s.Phase != p {
		m.s.Since = m.e.At
	}
	switch {
	case p.carries():
		m.s.DownSince, m.s.Trouble, m.s.Retries = time.Time{}, "", 0
	case m.s.Phase.carries():
		m.s.DownSince = m.e.At
	}
	m.s.Phase, m.s.Why, m.s.NextRetry = p, why, time.Time{}
	if m.s.Policy().DenyAll() {
		m.s.Addressed, m.s.Shaken = false, false
	}
}

// aim chooses the target to try next.
func (m *move) aim(i int) {
	m.s.Target, m.s.Gateway = i, m.plan.Targets[i].Gateway
}

func (m *move) backoff() Effect {
	d := Backoff(m.s.Retries)
	m.s.NextRetry = m.e.At.Add(d)
	return Effect{Act: SetTimer, After: d}
}

// fail closes the gate, drops the sessions and waits; the next round begins
// with the first address of the policy.
func (m *move) fail(why string) (State, []Effect, error) {
	m.enter(Failed, why)
	m.s.Trouble = why
	m.s.Retries++
	m.aim(0)
	return m.s, []Effect{{Act: Close}, {Act: Disconnect}, m.backoff()}, nil
}

// reclose goes back to the start of admission: what is in force is no longer
// known, so it is closed before anything else is asked.
func (m *move) reclose(why string) (State, []Effect, error) {
	m.enter(Closed, why)
	m.s.Trouble = why
	return m.s, []Effect{{Act: Close}, {Act: Disconnect}}, nil
}

// connect begins an attempt at the aimed target.
func (m *move) connect(why string) (State, []Effect, error) {
	m.enter(Connecting, why)
	m.s.Shaken = false
	t := m.plan.Targets[m.s.Target]
	effects := []Effect{{Act: Connect, Gateway: t.Gateway, Endpoint: t.Endpoint}}
	if !m.s.Addressed {
		effects = append(effects, Effect{Act: SetAddress})
	}
	return m.s, append(effects, Effect{Act: SetTimer, After: Patience(m.s.Retries)}), nil
}

// advance gives up the aimed target: another address of the same gateway needs
// no other policy, another gateway does and passes deny-all.
func (m *move) advance(why string) (State, []Effect, error) {
	next := m.s.Target + 1
	if next >= len(m.plan.Targets) {
		return m.fail(why)
	}
	if m.plan.Targets[next].Gateway == m.s.Gateway {
		m.aim(next)
		m.s.Trouble = why
		return m.connect(why)
	}
	_, effects, err := m.reclose(why)
	m.aim(next)
	return m.s, effects, err
}

// skip gives up the whole gateway: its policy was refused.
func (m *move) skip(why string) (State, []Effect, error) {
	for i := m.s.Target + 1; i < len(m.plan.Targets); i++ {
		if m.plan.Targets[i].Gateway != m.s.Gateway {
			_, effects, err := m.reclose(why)
			m.aim(i)
			return m.s, effects, err
		}
	}
	return m.fail(why)
}

func (m *move) locked() (State, []Effect, error) {
	switch m.e.Kind {
	case KeyAvailable:
		m.enter(Closed, "the tunnel key is here")
		m.aim(0)
		return m.s, []Effect{{Act: Close}, {Act: Open}}, nil
	case KeyRefused, EgressRefused, EgressLost:
		m.s.Retries++
		m.s.Why = or(m.e.Why, "no tunnel key")
		m.s.Trouble = m.s.Why
		return m.s, []Effect{m.backoff()}, nil
	case EgressClosed:
		return m.stay()
	case TimerFired:
		m.s.NextRetry = time.Time{}
		return m.s, []Effect{{Act: Close}, {Act: FetchKey}}, nil
	}
	return m.unexpected()
}

func (m *move) closed() (State, []Effect, error) {
	switch m.e.Kind {
	case EgressClosed:
		m.enter(Admitting, "the gate is closed, asking for "+m.s.Gateway)
		return m.s, []Effect{{Act: Admit, Gateway: m.s.Gateway}}, nil
	case EgressRefused, EgressLost:
		return m.fail(or(m.e.Why, "the gate did not close"))
	}
	return m.unexpected()
}

func (m *move) admitting() (State, []Effect, error) {
	switch m.e.Kind {
	case EgressAdmitted:
		if m.plan.Role == Handset {
			return m.connect("the gate admits " + m.s.Gateway)
		}
		m.enter(Listening, "waiting for handsets")
		t := m.plan.Targets[m.s.Target]
		return m.s, []Effect{{Act: Listen, Gateway: t.Gateway, Endpoint: t.Endpoint}, {Act: SetAddress}}, nil
	case EgressRefused:
		return m.skip(or(m.e.Why, "the gate refused"))
	case EgressLost:
		return m.fail(or(m.e.Why, "the gate did not answer"))
	}
	return m.unexpected()
}

func (m *move) connecting() (State, []Effect, error) {
	switch m.e.Kind {
	case HandshakeSeen:
		m.s.Handshake, m.s.Shaken = m.e.Handshake, true
		return m.ready()
	case AddressSet:
		m.s.Addressed = true
		return m.ready()
	case AddressRefused:
		return m.fail(or(m.e.Why, "the inner address was refused"))
	case EndpointUnreachable:
		return m.advance(or(m.e.Why, "the gateway's address is unreachable"))
	case TimerFired:
		if m.s.Shaken {
			return m.fail("the inner address was not set in time")
		}
		return m.advance("no answer from " + m.plan.Targets[m.s.Target].Endpoint.String())
	case EgressLost:
		return m.reclose(or(m.e.Why, "the gate's policy was lost"))
	}
	return m.unexpected()
}

// ready leads from Connecting to Up as soon as both halves are there.
func (m *move) ready() (State, []Effect, error) {
	if m.s.Shaken && m.s.Addressed {
		m.enter(Up, "handshake complete")
	}
	return m.s, nil, nil
}

func (m *move) up() (State, []Effect, error) {
	switch m.e.Kind {
	case HandshakeSeen: // a rekey
		m.s.Handshake = m.e.Handshake
		return m.stay()
	case HandshakeStale, EndpointUnreachable:
		m.enter(Stale, or(m.e.Why, "the gateway stopped answering"))
		m.s.Trouble = m.s.Why
		return m.s, []Effect{{Act: Rehandshake}, {Act: SetTimer, After: StaleGrace}}, nil
	case EgressLost:
		return m.reclose(or(m.e.Why, "the gate's policy was lost"))
	}
	return m.unexpected()
}

func (m *move) stale() (State, []Effect, error) {
	switch m.e.Kind {
	case HandshakeSeen:
		m.s.Handshake = m.e.Handshake
		m.enter(Up, "the gateway answers again")
		return m.s, nil, nil
	case TimerFired, EndpointUnreachable:
		return m.fail(or(m.e.Why, m.s.Why))
	case EgressLost:
		return m.reclose(or(m.e.Why, "the gate's policy was lost"))
	}
	return m.unexpected()
}

func (m *move) failed() (State, []Effect, error) {
	switch m.e.Kind {
	case EgressClosed:
		return m.stay()
	case EgressRefused, EgressLost:
		// The way on leads through Closed, which asks again and awaits the word.
		m.s.Why = or(m.e.Why, "the gate did not close")
		return m.stay()
	case TimerFired:
		m.enter(Closed, "trying again: "+m.s.Why)
		return m.s, []Effect{{Act: Close}}, nil
	}
	return m.unexpected()
}

func (m *move) listening() (State, []Effect, error) {
	switch m.e.Kind {
	case HandshakeSeen:
		m.s.Handshake = m.e.Handshake
		return m.stay()
	case AddressSet:
		m.s.Addressed = true
		return m.stay()
	case AddressRefused:
		return m.fail(or(m.e.Why, "the inner address was refused"))
	case EndpointUnreachable:
		return m.fail(or(m.e.Why, "the tunnel port cannot be bound"))
	case EgressLost:
		return m.reclose(or(m.e.Why, "the gate's policy was lost"))
	}
	return m.unexpected()
}

// stopped takes the gate's answers to the last Close and nothing else.
func (m *move) stopped() (State, []Effect, error) {
	switch m.e.Kind {
	case EgressClosed:
		return m.stay()
	case EgressRefused, EgressLost:
		m.s.Why = "shut down, but the gate did not say that it closed: " + m.e.Why
		return m.stay()
	}
	return m.unexpected()
}

func or(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}
