// Package vault is the life of the keystore's secrets in one boot, as a pure
// state machine: no TPM, no files, no clock.
package vault

import "fmt"

// State is where the vault is.
//
//	         Provisioned          Unsealed           CapExtended
//	Empty ───────────────▶ Sealed ──────────▶ Open ───────────────▶ Capped
//	  │                      │                  │                     │
//	  └──────────────────────┴────── Broken ────┴─────────────────────┘
//	                                   │
//	                                   ▼
//	                                 Failed
//
// Empty: this TPM holds nothing of ours. Sealed: it does, and the PIN was not
// given in this boot. Open: the secrets are in memory, and the TPM would open
// the boot secrets again. Capped: the secrets are in memory, and it would not.
// Failed: nothing opens in this boot, memory is wiped; it has no way out but a
// restart. A wrong PIN is no event: nothing changes.
type State int

// The states. The zero State is none of them.
const (
	Empty State = iota + 1
	Sealed
	Open
	Capped
	Failed
)

// States are all states.
func States() []State { return []State{Empty, Sealed, Open, Capped, Failed} }

// String returns the state's name as the socket gives it.
func (s State) String() string {
	switch s {
	case Empty:
		return "empty"
	case Sealed:
		return "sealed"
	case Open:
		return "open"
	case Capped:
		return "capped"
	case Failed:
		return "failed"
	}
	return fmt.Sprintf("state %d", int(s))
}

// Event is what happened.
type Event int

// The events. The zero Event is none of them.
const (
	Provisioned Event = iota + 1 // the vault file is on the disk
	Unsealed                     // user and boot secrets are in memory
	CapExtended                  // the TPM extended the cap
	Broken                       // the TPM is gone, or a step after the secrets were read failed
)

// Events are all events.
func Events() []Event { return []Event{Provisioned, Unsealed, CapExtended, Broken} }

// String returns the event in words.
func (e Event) String() string {
	switch e {
	case Provisioned:
		return "provisioned"
	case Unsealed:
		return "unsealed"
	case CapExtended:
		return "cap extended"
	case Broken:
		return "broken"
	}
	return fmt.Sprintf("event %d", int(e))
}

// Next returns the state after an event. An event that the state does not know
// is an error, and the state stays.
func Next(s State, e Event) (State, error) {
	switch {
	case s == Empty && e == Provisioned:
		return Sealed, nil
	case s == Sealed && e == Unsealed:
		return Open, nil
	case s == Open && e == CapExtended:
		return Capped, nil
	case s >= Empty && s <= Failed && e == Broken:
		return Failed, nil
	}
	return s, fmt.Errorf("cannot take event %q in state %q", e, s)
}

// Serves reports whether secrets may be given out or used: only behind the cap.
func (s State) Serves() bool { return s == Capped }
