package call

import (
	"errors"
	"fmt"
)

// State is where a call is.
//
//	outgoing                                   incoming
//
//	Dialling ──Ringing──► Ringing              Ringing (starts here)
//	    │                    │                    │
//	    │ Answered           │ Answered           │ Answered (by us)
//	    └─────────►──────────┴────► Keying ◄──────┘
//	                                  │ Keyed: the only door to audio
//	                                  ▼
//	                                Active
//	                                  │ hang-up of either side
//	                                  ▼
//	 any of the above ──► Failed    Ended ◄── hang-up in any of the above
//
// Ended and Failed are final; a Failed call carries the Reason.
type State uint8

// The states, in the order a call meets them.
const (
	Dialling State = iota
	Ringing
	Keying
	Active
	Ended
	Failed
)

// States lists every state, for tests and tables.
func States() []State { return []State{Dialling, Ringing, Keying, Active, Ended, Failed} }

var stateNames = [...]string{"dialling", "ringing", "keying", "active", "ended", "failed"}

// String is the name shown in records and status.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Over reports whether nothing can happen to the call any more.
func (s State) Over() bool { return s == Ended || s == Failed }

// AudioAllowed reports whether a microphone or a speaker may be open.
func (s State) AudioAllowed() bool { return s == Active }

// Direction says who placed the call.
type Direction uint8

// The two directions.
const (
	Outgoing Direction = iota
	Incoming
)

// Directions lists both, for tests and tables.
func Directions() []Direction { return []Direction{Outgoing, Incoming} }

// String is the name shown in records.
func (d Direction) String() string {
	if d == Incoming {
		return "incoming"
	}
	return "outgoing"
}

// Kind is what happened.
type Kind uint8

// The events.
const (
	// RingingSeen: the callee's handset says it rings (180).
	RingingSeen Kind = iota
	// Answered: outgoing, the callee answered (200); incoming, we answer.
	Answered
	// Keyed: both sides agreed on keys, names and level.
	Keyed
	// KeyingFailed: they did not; Event.Reason says why.
	KeyingFailed
	// Refused: the call was refused before it was answered; Event.Reason says why.
	Refused
	// LocalHangup: our user gave up or hung up.
	LocalHangup
	// RemoteHangup: the peer's CANCEL or BYE.
	RemoteHangup
	// Timeout: the time allowed in this state is over.
	Timeout
	// GatewayGone: the connection that carries the signalling is lost.
	GatewayGone
	// MediaLost: the sound path failed or stayed idle too long (FTA_SSL.3/MEDIA).
	MediaLost
)

// Kinds lists every event kind, for tests and tables.
func Kinds() []Kind {
	return []Kind{RingingSeen, Answered, Keyed, KeyingFailed, Refused, LocalHangup,
		RemoteHangup, Timeout, GatewayGone, MediaLost}
}

var kindNames = [...]string{"ringing", "answered", "keyed", "keying failed", "refused",
	"local hang-up", "remote hang-up", "timeout", "gateway gone", "media lost"}

// String is the name used in errors and the journal.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("event(%d)", uint8(k))
}

// Event is one thing that happened. Reason is read for Refused and
// KeyingFailed only; an empty one there becomes ReasonKeying or ReasonRefused.
type Event struct {
	Kind   Kind
	Reason Reason
}

// Effect is what the agent must do because of a transition, in order.
type Effect uint8

// The effects.
const (
	// StartKeying: open (outgoing) or await (incoming) the keying connection.
	StartKeying Effect = iota
	// SendAnswer: answer the INVITE (200).
	SendAnswer
	// SendCancel: CANCEL the INVITE.
	SendCancel
	// SendRefusal: answer the INVITE with a final failure.
	SendRefusal
	// SendBye: end the dialog.
	SendBye
	// OpenAudio: start microphone and speaker.
	OpenAudio
	// CloseAudio: stop both, before anything else is sent.
	CloseAudio
)

var effectNames = [...]string{"start keying", "send answer", "send cancel", "send refusal",
	"send bye", "open audio", "close audio"}

// String is the name used in tests.
func (e Effect) String() string {
	if int(e) < len(effectNames) {
		return effectNames[e]
	}
	return fmt.Sprintf("effect(%d)", uint8(e))
}

// ErrOver is the answer to every event of a call that has ended. It is the one
// refusal callers branch on: two hang-ups that cross on the wire are no fault.
var ErrOver = errors.New("call is over")

// RefusedTransition is the answer to an event that cannot happen in a state.
type RefusedTransition struct {
	Direction Direction
	State     State
	Event     Kind
}

// Error says which event was refused where.
func (e *RefusedTransition) Error() string {
	return fmt.Sprintf("cannot accept %q in state %s of an %s call", e.Event, e.State, e.Direction)
}
