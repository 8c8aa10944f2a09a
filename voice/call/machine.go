package call

// Machine is one call's state. The zero value is not usable: use New. A
// Machine is not safe for concurrent use; its agent serialises events.
type Machine struct {
	direction Direction
	state     State
	reason    Reason
}

// New is a call at its first state: Dialling when we place it, Ringing when
// it reaches us.
func New(d Direction) *Machine {
	m := &Machine{direction: d}
	if d == Incoming {
		m.state = Ringing
	}
	return m
}

// State is where the call is.
func (m *Machine) State() State { return m.state }

// Direction is who placed it.
func (m *Machine) Direction() Direction { return m.direction }

// Reason is why it failed or how it ended; empty before that.
func (m *Machine) Reason() Reason { return m.reason }

// Step feeds one event and returns what must be done, in order. A refused
// event changes nothing and is an error: ErrOver for a call that has ended,
// *RefusedTransition otherwise.
func (m *Machine) Step(e Event) ([]Effect, error) {
	next, reason, effects, err := step(m.direction, m.state, e)
	if err != nil {
		return nil, err
	}
	m.state, m.reason = next, reason
	return effects, nil
}

// step is the one transition function: every (direction, state, event) triple
// is either an arm here or an error.
func step(d Direction, s State, e Event) (State, Reason, []Effect, error) {
	refused := func() (State, Reason, []Effect, error) {
		return s, ReasonNone, nil, &RefusedTransition{Direction: d, State: s, Event: e.Kind}
	}
	switch s {
	case Ended, Failed:
		return s, ReasonNone, nil, ErrOver

	case Dialling, Ringing:
		if d == Incoming {
			if s == Dialling {
				return refused()
			}
			return stepIncomingRinging(e, refused)
		}
		return stepOutgoingUnanswered(e, refused)

	case Keying:
		switch e.Kind {
		case Keyed:
			return Active, ReasonNone, []Effect{OpenAudio}, nil
		case KeyingFailed:
			return Failed, or(e.Reason, ReasonKeying), []Effect{SendBye}, nil
		case Timeout:
			return Failed, ReasonKeying, []Effect{SendBye}, nil
		case LocalHangup:
			return Ended, ReasonLocalHangup, []Effect{SendBye}, nil
		case RemoteHangup:
			return Failed, ReasonPeerGaveUp, nil, nil
		case GatewayGone:
			return Failed, ReasonGatewayGone, nil, nil
		}

	case Active:
		// Audio closes first: what is sent afterwards may block or fail.
		switch e.Kind {
		case LocalHangup:
			return Ended, ReasonLocalHangup, []Effect{CloseAudio, SendBye}, nil
		case RemoteHangup:
			return Ended, ReasonRemoteHangup, []Effect{CloseAudio}, nil
		case MediaLost:
			return Failed, ReasonMediaLost, []Effect{CloseAudio, SendBye}, nil
		case GatewayGone:
			// Without signalling the peer's hang-up cannot reach us: a call
			// that nobody can end is a hot microphone.
			return Failed, ReasonGatewayGone, []Effect{CloseAudio}, nil
		}
	}
	return refused()
}

// stepOutgoingUnanswered is a call we placed before the callee answered.
func stepOutgoingUnanswered(e Event, refused func() (State, Reason, []Effect, error)) (State, Reason, []Effect, error) {
	switch e.Kind {
	case RingingSeen:
		return Ringing, ReasonNone, nil, nil
	case Answered:
		return Keying, ReasonNone, []Effect{StartKeying}, nil
	case Refused:
		return Failed, or(e.Reason, ReasonRefused), nil, nil
	case Timeout:
		return Failed, ReasonNoAnswer, []Effect{SendCancel}, nil
	case LocalHangup:
		return Ended, ReasonCancelled, []Effect{SendCancel}, nil
	case GatewayGone:
		return Failed, ReasonGatewayGone, nil, nil
	}
	return refused()
}

// stepIncomingRinging is a call that reached us and was not answered yet.
func stepIncomingRinging(e Event, refused func() (State, Reason, []Effect, error)) (State, Reason, []Effect, error) {
	switch e.Kind {
	case Answered:
		// The keying listener is open before the answer names its port.
		return Keying, ReasonNone, []Effect{StartKeying, SendAnswer}, nil
	case Refused:
		return Failed, or(e.Reason, ReasonRefused), []Effect{SendRefusal}, nil
	case Timeout:
		return Failed, ReasonNoAnswer, []Effect{SendRefusal}, nil
	case LocalHangup:
		return Ended, ReasonLocalHangup, []Effect{SendRefusal}, nil
	case RemoteHangup:
		return Ended, ReasonCancelled, nil, nil
	case GatewayGone:
		return Failed, ReasonGatewayGone, nil, nil
	}
	return refused()
}

func or(r, fallback Reason) Reason {
	if r == ReasonNone {
		return fallback
	}
	return r
}
