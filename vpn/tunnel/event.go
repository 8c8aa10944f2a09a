package tunnel

import (
	"fmt"
	"net/netip"
	"time"
)

// Kind names what happened.
type Kind uint8

// The events. Answers to an effect say which.
const (
	// KeyAvailable: the tunnel key is here (answer to FetchKey).
	KeyAvailable Kind = iota
	// KeyRefused: the key store would not or could not give it (FetchKey).
	KeyRefused
	// EgressClosed: the gate says that deny-all is in force (Close).
	EgressClosed
	// EgressAdmitted: the gate says that the gateway's policy is in force (Admit).
	EgressAdmitted
	// EgressRefused: the gate answered no (Close, Admit).
	EgressRefused
	// EgressLost: the gate did not answer, or what is in force is not what it
	// said (Close, Admit, or the watch over the gate).
	EgressLost
	// HandshakeSeen: a handshake newer than any before completed.
	HandshakeSeen
	// HandshakeStale: the last handshake is too old or data goes unanswered.
	HandshakeStale
	// EndpointUnreachable: the address cannot be sent to (Connect, Listen, or
	// the watch).
	EndpointUnreachable
	// AddressSet: init has set the inner addresses (SetAddress).
	AddressSet
	// AddressRefused: init would not or could not (SetAddress).
	AddressRefused
	// TimerFired: the timer of this phase ended (SetTimer).
	TimerFired
	// DeviceFailed: the TUN device or the WireGuard device is gone (Open, or
	// the watch).
	DeviceFailed
	// Shutdown: the process is to end.
	Shutdown
	kinds // number of kinds, for tests that walk them
)

// String is the event's name as the diagram has it.
func (k Kind) String() string {
	names := [...]string{"KeyAvailable", "KeyRefused", "EgressClosed", "EgressAdmitted", "EgressRefused",
		"EgressLost", "HandshakeSeen", "HandshakeStale", "EndpointUnreachable", "AddressSet",
		"AddressRefused", "TimerFired", "DeviceFailed", "Shutdown"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("event(%d)", uint8(k))
}

// Event is one thing that happened.
type Event struct {
	Kind Kind
	// At is when. Required: the machine has no clock.
	At time.Time
	// Why is the reason of a refusal or loss, for people; it names no key.
	Why string
	// Handshake is the time of the handshake, for HandshakeSeen.
	Handshake time.Time
}

// Act names what is to be done.
type Act uint8

// The effects. The daemon runs a list in its order and runs all of it.
const (
	// Close: put deny-all in force and await the gate's word. Always the first
	// of its list.
	Close Act = iota
	// FetchKey: ask the key store for the tunnel key; the answer comes later.
	// Asking while an answer is awaited changes nothing.
	FetchKey
	// Open: build the device from the inherited TUN and the fetched key; wipe
	// the key.
	Open
	// Admit: put the policy of Effect.Gateway in force and await the gate's word.
	Admit
	// Connect: start a handshake with Effect.Endpoint at once, with nothing left
	// of an earlier attempt.
	Connect
	// Listen: bind Effect.Endpoint's port and wait for handsets.
	Listen
	// SetAddress: ask init to set the certificate's inner addresses.
	SetAddress
	// Rehandshake: force a new handshake without dropping the session.
	Rehandshake
	// Disconnect: close the sockets and forget the sessions; the key stays.
	Disconnect
	// Destroy: close the device and wipe the key.
	Destroy
	// SetTimer: TimerFired after Effect.After, unless the phase is left before.
	// Each list that arms a timer replaces the one before; leaving a phase stops it.
	SetTimer
	acts // number of acts, for tests
)

// String is the effect's name.
func (a Act) String() string {
	names := [...]string{"Close", "FetchKey", "Open", "Admit", "Connect", "Listen", "SetAddress",
		"Rehandshake", "Disconnect", "Destroy", "SetTimer"}
	if int(a) < len(names) {
		return names[a]
	}
	return fmt.Sprintf("act(%d)", uint8(a))
}

// Effect is one thing to do.
type Effect struct {
	Act Act
	// Gateway is whom to admit, connect to or listen as.
	Gateway string
	// Endpoint is where to connect, or the port to listen on.
	Endpoint netip.AddrPort
	// After is the timer's length.
	After time.Duration
}

// UnexpectedError is an event that has no meaning in the phase it met. The
// state is unchanged by it; a daemon that gets one has a fault and must close.
type UnexpectedError struct {
	Phase Phase
	Kind  Kind
}

// Error names the pair.
func (e *UnexpectedError) Error() string {
	return fmt.Sprintf("cannot take event %s in state %s", e.Kind, e.Phase)
}
