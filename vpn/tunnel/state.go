package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Phase is where the tunnel stands.
//
//	            ┌──────────────────── DeviceFailed (any phase with a key) ───────────────┐
//	            ▼                                                                        │
//	start ──► Locked ──KeyAvailable──► Closed ──EgressClosed──► Admitting                │
//	[Close]     │ ▲                    ▲ │  ▲                     │    │                 │
//	            └─┘ KeyRefused,        │ │  │      EgressAdmitted │    │ EgressRefused   │
//	                Timer (backoff)    │ │  │ handset ┌───────────┴──┐ │                 │
//	                                   │ │  │         ▼      gateway ▼ │                 │
//	     other gateway ────────────────┼─┼──┼── Connecting     Listening                 │
//	     (next in the policy's order)  │ │  │   │ │  ▲ └┘ other address of this gateway  │
//	                                   │ │  │   │ │  │                                   │
//	                 EgressLost ───────┘ │  │   │ └──┼─HandshakeSeen+AddressSet─► Up ────┤
//	                 (phases with Admit) │  │   │    │                           │ ▲     │
//	                                     │  │   │    │            HandshakeStale │ │     │
//	                EgressRefused, -Lost │  │   │ all addresses tried            ▼ │ Hand│
//	                                     ▼  │   ▼    │                         Stale ──┘ shakeSeen
//	                                   Failed ◄──────┴──────── Timer ────────────┘
//	                                        └── Timer (backoff) ──► Closed
//
//	any phase ──Shutdown──► Stopped
//
// The gate is shut (deny all) in Locked, Closed, Failed and Stopped.
type Phase uint8

// The phases. The zero value is the strictest that is still alive.
const (
	// Locked: this process holds no tunnel key. The gate has been asked to close.
	Locked Phase = iota
	// Closed: the key is in the device; the gate must say that it is closed
	// before anything more is asked of it.
	Closed
	// Admitting: the gate has been asked to admit one gateway.
	Admitting
	// Connecting: a handshake with one address of that gateway is under way.
	Connecting
	// Up: a handshake is fresh and the inner addresses are set.
	Up
	// Stale: the gateway stopped answering; a new handshake has been forced.
	Stale
	// Failed: every address was tried; the gate is closed until the backoff ends.
	Failed
	// Listening: role gateway; handsets may connect.
	Listening
	// Stopped: shut down; nothing leads out of it.
	Stopped
	phases // number of phases, for tests that walk them
)

// String is the word that status shows.
func (p Phase) String() string {
	switch p {
	case Locked:
		return "locked"
	case Closed:
		return "closed"
	case Admitting:
		return "admitting"
	case Connecting:
		return "connecting"
	case Up:
		return "up"
	case Stale:
		return "stale"
	case Failed:
		return "error"
	case Listening:
		return "listening"
	case Stopped:
		return "stopped"
	}
	return fmt.Sprintf("phase(%d)", uint8(p))
}

// carries reports whether the tunnel is of use in this phase.
func (p Phase) carries() bool { return p == Up || p == Listening }

// Role is which end of the tunnel this device is.
type Role uint8

const (
	// Handset opens the tunnel.
	Handset Role = iota
	// Gateway waits for handsets.
	Gateway
)

// Target is one address of one gateway of the signed policy.
type Target struct {
	// Gateway is its name in the policy. Required.
	Gateway string
	// Endpoint is the outer address and UDP port. Required for a Handset;
	// for a Gateway only its port is used.
	Endpoint netip.AddrPort
}

// MaxTargets bounds the list; a policy with more is refused.
const MaxTargets = 64

// Plan is what the signed policy says about the tunnel; it never changes while
// the process lives.
type Plan struct {
	Role Role
	// Targets in the order in which they are tried. All addresses of one
	// gateway stand together. A Gateway has exactly one: itself.
	Targets []Target
}

// Check refuses a plan that the machine could not follow.
func (p Plan) Check() error {
	var errs []error
	if len(p.Targets) == 0 {
		errs = append(errs, errors.New("cannot plan a tunnel without a gateway address"))
	}
	if len(p.Targets) > MaxTargets {
		errs = append(errs, fmt.Errorf("cannot plan a tunnel with %d addresses, at most %d", len(p.Targets), MaxTargets))
	}
	if p.Role == Gateway && len(p.Targets) > 1 {
		errs = append(errs, fmt.Errorf("cannot listen as %d gateways, a gateway is one", len(p.Targets)))
	}
	left := map[string]bool{} // gateways whose run of addresses has ended
	for i, t := range p.Targets {
		if t.Gateway == "" {
			errs = append(errs, fmt.Errorf("cannot use address %d, its gateway has no name", i))
		}
		if t.Endpoint.Port() == 0 {
			errs = append(errs, fmt.Errorf("cannot use address %d of gateway %q without a port", i, t.Gateway))
		}
		if p.Role == Handset && !t.Endpoint.Addr().IsValid() {
			errs = append(errs, fmt.Errorf("cannot use address %d of gateway %q, it is no address", i, t.Gateway))
		}
		if i > 0 && p.Targets[i-1].Gateway != t.Gateway {
			left[p.Targets[i-1].Gateway] = true
		}
		if left[t.Gateway] {
			errs = append(errs, fmt.Errorf("cannot use address %d, the addresses of gateway %q do not stand together", i, t.Gateway))
		}
	}
	return errors.Join(errs...)
}

// Policy is what the gate may let through: nothing (the zero value), or the
// admitted classes of one gateway.
type Policy struct {
	// Gateway is the admitted gateway; empty means deny all.
	Gateway string
}

// DenyAll reports whether nothing is admitted.
func (p Policy) DenyAll() bool { return p.Gateway == "" }

// Within reports whether p lets through nothing that q does not. Two gateways
// are never within each other: going from one to the other passes deny-all.
func (p Policy) Within(q Policy) bool { return p.DenyAll() || p == q }

// State is all that the machine remembers. It is a value: Step returns a new one.
type State struct {
	Phase Phase
	// Target is the index in Plan.Targets that is in use or will be tried next.
	Target int
	// Gateway is the gateway that Phase is about; its policy is in force or
	// being put in force in the phases that allow one.
	Gateway string
	// Since is when Phase began; Why says what led to it, in a few words that
	// name no key.
	Since time.Time
	Why   string
	// DownSince is since when the tunnel carries nothing; zero while it does.
	// Trouble is the last reason of a failure since then, kept through the
	// phases of the next attempt; empty when there was none.
	DownSince time.Time
	Trouble   string
	// Retries counts the rounds and refusals since the tunnel was last up.
	Retries int
	// NextRetry is when the backoff ends; zero where no backoff runs.
	NextRetry time.Time
	// Handshake is when the last handshake was seen; zero means never.
	Handshake time.Time
	// Addressed: init has set the inner addresses during this attempt.
	Addressed bool
	// Shaken: a handshake was seen during this attempt.
	Shaken bool
}

// Policy is the loosest egress policy that the state allows. Deny-all in every
// phase that does not need a gateway, error states included.
func (s State) Policy() Policy {
	switch s.Phase {
	case Admitting, Connecting, Up, Stale, Listening:
		return Policy{Gateway: s.Gateway}
	}
	return Policy{}
}

// Time limits. Those of the protocol are WireGuard's own (whitepaper §6.1).
const (
	// RejectAfter is the age at which WireGuard refuses a session's keys.
	RejectAfter = 180 * time.Second
	// SilentAfter is how long data may go unanswered before the gateway counts
	// as gone: WireGuard's keepalive timeout plus its rekey timeout (10 s + 5 s).
	SilentAfter = 15 * time.Second
	// StaleGrace is how long a forced handshake may take. Longer than
	// WireGuard's 5 s between two initiations, so that one is surely sent.
	StaleGrace = 6 * time.Second

	backoffFirst  = 250 * time.Millisecond
	backoffMost   = 30 * time.Second
	patienceFirst = 500 * time.Millisecond
	patienceMost  = 5 * time.Second
)

// Backoff is the wait after the given number of retries in a row (from 1):
// 0.25 s, doubling, at most 30 s.
func Backoff(retries int) time.Duration { return doubling(backoffFirst, backoffMost, retries-1) }

// Patience is how long one address may take to answer in a round: 0.5 s in the
// first, doubling, at most 5 s. It starts short because a lost first
// packet costs a boot its time, and grows because a slow path is no dead path.
func Patience(retries int) time.Duration { return doubling(patienceFirst, patienceMost, retries) }

func doubling(first, most time.Duration, times int) time.Duration {
	d := first
	for range times {
		if d *= 2; d >= most {
			return most
		}
	}
	return d
}
