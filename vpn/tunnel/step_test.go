package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

var epoch = time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC)

func handsetPlan() Plan {
	return Plan{Targets: []Target{
		{"north", netip.MustParseAddrPort("203.0.113.1:51820")},
		{"north", netip.MustParseAddrPort("[2001:db8:113::1]:51820")},
		{"south", netip.MustParseAddrPort("203.0.113.2:51820")},
	}}
}

func gatewayPlan() Plan {
	return Plan{Role: Gateway, Targets: []Target{{"north", netip.MustParseAddrPort("203.0.113.1:51820")}}}
}

// expected is the whole table: what each event leads to from each phase, with
// the state that `at` makes. A pair that is not here must be refused.
var expected = map[Phase]map[Kind]Phase{
	Locked: {KeyAvailable: Closed, KeyRefused: Locked, EgressClosed: Locked, EgressRefused: Locked,
		EgressLost: Locked, TimerFired: Locked, Shutdown: Stopped},
	Closed: {EgressClosed: Admitting, EgressRefused: Failed, EgressLost: Failed, DeviceFailed: Locked,
		Shutdown: Stopped},
	Admitting: {EgressAdmitted: Connecting, EgressRefused: Closed, EgressLost: Failed, DeviceFailed: Locked,
		Shutdown: Stopped},
	Connecting: {HandshakeSeen: Connecting, AddressSet: Connecting, AddressRefused: Failed,
		EndpointUnreachable: Connecting, TimerFired: Connecting, EgressLost: Closed, DeviceFailed: Locked,
		Shutdown: Stopped},
	Up: {HandshakeSeen: Up, HandshakeStale: Stale, EndpointUnreachable: Stale, EgressLost: Closed,
		DeviceFailed: Locked, Shutdown: Stopped},
	Stale: {HandshakeSeen: Up, TimerFired: Failed, EndpointUnreachable: Failed, EgressLost: Closed,
		DeviceFailed: Locked, Shutdown: Stopped},
	Failed: {EgressClosed: Failed, EgressRefused: Failed, EgressLost: Failed, TimerFired: Closed,
		DeviceFailed: Locked, Shutdown: Stopped},
	Listening: {HandshakeSeen: Listening, AddressSet: Listening, AddressRefused: Failed,
		EndpointUnreachable: Failed, EgressLost: Closed, DeviceFailed: Locked, Shutdown: Stopped},
	Stopped: {EgressClosed: Stopped, EgressRefused: Stopped, EgressLost: Stopped},
}

// at is a state as it is on arriving in p at the first target.
func at(p Phase) (Plan, State) {
	plan := handsetPlan()
	if p == Listening {
		plan = gatewayPlan()
	}
	return plan, State{Phase: p, Gateway: "north", Since: epoch, DownSince: epoch}
}

func TestEveryPairOfStateAndEvent(t *testing.T) {
	for p := Phase(0); p < phases; p++ {
		for k := Kind(0); k < kinds; k++ {
			t.Run(fmt.Sprintf("%s/%s", p, k), func(t *testing.T) {
				plan, before := at(p)
				after, effects, err := Step(plan, before, Event{Kind: k, At: epoch.Add(time.Second)})
				want, known := expected[p][k]
				if !known {
					var unexpected *UnexpectedError
					if !errors.As(err, &unexpected) || unexpected.Phase != p || unexpected.Kind != k {
						t.Fatalf("got error %v, want an UnexpectedError of this pair", err)
					}
					if after != before || effects != nil {
						t.Fatalf("a refused event changed the state to %+v with effects %v", after, effects)
					}
					return
				}
				if err != nil || after.Phase != want {
					t.Fatalf("got %s, %v; want %s", after.Phase, err, want)
				}
				checkEffects(t, before, after, effects)
			})
		}
	}
	if len(expected) != int(phases) {
		t.Fatalf("the table has %d phases of %d", len(expected), phases)
	}
}

// checkEffects is the law that the package doc states, for one transition.
func checkEffects(t *testing.T, before, after State, effects []Effect) {
	t.Helper()
	for i, e := range effects {
		if e.Act == Close && i != 0 {
			t.Errorf("Close is effect %d of %v, it must be the first", i, effects)
		}
		switch e.Act {
		case Admit:
			if after.Phase != Admitting || before.Phase == Admitting || e.Gateway != after.Gateway {
				t.Errorf("%s → %s admits %q", before.Phase, after.Phase, e.Gateway)
			}
		case Connect, Listen:
			if after.Policy().DenyAll() || e.Gateway != after.Policy().Gateway {
				t.Errorf("%s %q in %s, which allows %+v", e.Act, e.Gateway, after.Phase, after.Policy())
			}
		case SetTimer:
			if e.After <= 0 {
				t.Errorf("%s → %s arms a timer of %v", before.Phase, after.Phase, e.After)
			}
		}
	}
	if tighter := !before.Policy().Within(after.Policy()); tighter {
		if len(effects) == 0 || effects[0].Act != Close {
			t.Errorf("%s → %s tightens the policy without closing first: %v", before.Phase, after.Phase, effects)
		}
	}
	waits := after.Phase == Failed || after.Phase == Connecting || after.Phase == Stale
	if waits && before.Phase != after.Phase && !slices.ContainsFunc(effects, func(e Effect) bool { return e.Act == SetTimer }) {
		t.Errorf("%s is entered without a timer", after.Phase)
	}
}

// walk runs events through the machine and returns the last state.
func walk(t *testing.T, plan Plan, s State, now time.Time, kinds ...Kind) (State, []Effect) {
	t.Helper()
	var effects []Effect
	for _, k := range kinds {
		before := s
		var err error
		if s, effects, err = Step(plan, s, Event{Kind: k, At: now, Handshake: now}); err != nil {
			t.Fatalf("%s: %v", k, err)
		}
		checkEffects(t, before, s, effects)
	}
	return s, effects
}

func start(t *testing.T, plan Plan) State {
	t.Helper()
	s, effects, err := Start(plan, epoch)
	if err != nil {
		t.Fatal(err)
	}
	if len(effects) != 2 || effects[0].Act != Close || effects[1].Act != FetchKey {
		t.Fatalf("start does %v, want Close then FetchKey", effects)
	}
	return s
}

func TestHandsetComesUp(t *testing.T) {
	for _, last := range [][]Kind{{AddressSet, HandshakeSeen}, {HandshakeSeen, AddressSet}} {
		plan := handsetPlan()
		s := start(t, plan)
		s, effects := walk(t, plan, s, epoch, EgressClosed, KeyAvailable, EgressClosed, EgressAdmitted)
		want := []Effect{{Act: Connect, Gateway: "north", Endpoint: plan.Targets[0].Endpoint}, {Act: SetAddress},
			{Act: SetTimer, After: 500 * time.Millisecond}}
		if !slices.Equal(effects, want) {
			t.Fatalf("connecting does %v, want %v", effects, want)
		}
		s, _ = walk(t, plan, s, epoch.Add(time.Second), last...)
		if s.Phase != Up || s.Retries != 0 || !s.DownSince.IsZero() || s.Trouble != "" || s.Handshake.IsZero() {
			t.Fatalf("got %+v, want up with nothing to report", s)
		}
	}
}

func TestGatewayListens(t *testing.T) {
	plan := gatewayPlan()
	s, effects := walk(t, plan, start(t, plan), epoch, EgressClosed, KeyAvailable, EgressClosed, EgressAdmitted)
	if s.Phase != Listening || len(effects) != 2 || effects[0].Act != Listen || effects[1].Act != SetAddress {
		t.Fatalf("got %s with %v, want listening", s.Phase, effects)
	}
	if s.Policy() != (Policy{"north"}) {
		t.Fatalf("listening allows %+v", s.Policy())
	}
}

func TestAddressesAreTriedInOrder(t *testing.T) {
	plan := handsetPlan()
	s, _ := walk(t, plan, start(t, plan), epoch, EgressClosed, KeyAvailable, EgressClosed, EgressAdmitted, AddressSet)
	s, effects := walk(t, plan, s, epoch, TimerFired)
	if s.Phase != Connecting || effects[0].Act != Connect || effects[0].Endpoint != plan.Targets[1].Endpoint {
		t.Fatalf("after the first address: %s with %v", s.Phase, effects)
	}
	if !strings.Contains(s.Trouble, "203.0.113.1") {
		t.Errorf("trouble is %q, want the address that did not answer", s.Trouble)
	}
	s, effects = walk(t, plan, s, epoch, EndpointUnreachable)
	if s.Phase != Closed || s.Gateway != "south" || effects[0].Act != Close {
		t.Fatalf("another gateway without deny-all between: %+v with %v", s, effects)
	}
	s, effects = walk(t, plan, s, epoch, EgressClosed)
	if effects[0].Act != Admit || effects[0].Gateway != "south" {
		t.Fatalf("got %v, want the second gateway admitted", effects)
	}
	s, _ = walk(t, plan, s, epoch, EgressAdmitted, TimerFired)
	if s.Phase != Failed || s.Retries != 1 || s.Gateway != "north" || !s.Policy().DenyAll() {
		t.Fatalf("after the last address: %+v", s)
	}
	if !s.NextRetry.Equal(epoch.Add(250 * time.Millisecond)) {
		t.Errorf("next retry at %v", s.NextRetry)
	}
}

func TestRefusedGatewayIsSkipped(t *testing.T) {
	plan := handsetPlan()
	s, _ := walk(t, plan, start(t, plan), epoch, EgressClosed, KeyAvailable, EgressClosed, EgressRefused)
	if s.Phase != Closed || s.Gateway != "south" {
		t.Fatalf("got %s %s, want the other gateway", s.Phase, s.Gateway)
	}
	s, _ = walk(t, plan, s, epoch, EgressClosed, EgressRefused)
	if s.Phase != Failed || s.Gateway != "north" {
		t.Fatalf("got %s %s, want failed and the first gateway next", s.Phase, s.Gateway)
	}
}

func TestTroubleSaysSinceWhenAndWhy(t *testing.T) {
	plan := handsetPlan()
	s, _ := walk(t, plan, start(t, plan), epoch, EgressClosed, KeyAvailable, EgressClosed, EgressAdmitted,
		AddressSet, HandshakeSeen)
	gone := epoch.Add(time.Hour)
	s, _, err := Step(plan, s, Event{Kind: HandshakeStale, At: gone, Why: "nothing received for 15 s"})
	if err != nil {
		t.Fatal(err)
	}
	s, _ = walk(t, plan, s, gone.Add(StaleGrace), TimerFired)
	for round := range 10 {
		if s.Phase != Failed || !s.DownSince.Equal(gone) || s.Trouble == "" || s.Retries != round+1 {
			t.Fatalf("round %d: %+v", round, s)
		}
		s, _ = walk(t, plan, s, gone.Add(time.Minute), TimerFired, EgressClosed, EgressAdmitted, TimerFired,
			TimerFired, EgressClosed, EgressAdmitted, TimerFired)
	}
	s, _ = walk(t, plan, s, gone.Add(time.Hour), TimerFired, EgressClosed, EgressAdmitted, HandshakeSeen, AddressSet)
	if s.Phase != Up || s.Retries != 0 || s.Trouble != "" {
		t.Fatalf("after the gateway came back: %+v", s)
	}
}

func TestTheGateRestarted(t *testing.T) {
	plan := handsetPlan()
	s, _ := walk(t, plan, start(t, plan), epoch, EgressClosed, KeyAvailable, EgressClosed, EgressAdmitted,
		AddressSet, HandshakeSeen)
	s, effects := walk(t, plan, s, epoch, EgressLost)
	if s.Phase != Closed || effects[0].Act != Close || effects[1].Act != Disconnect {
		t.Fatalf("got %s with %v", s.Phase, effects)
	}
	s, _ = walk(t, plan, s, epoch, EgressClosed)
	if s.Phase != Admitting || s.Addressed || s.Shaken {
		t.Fatalf("got %+v, want a fresh admission", s)
	}
}

func TestBackoffDoublesToItsBound(t *testing.T) {
	want := []time.Duration{250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000}
	for i, ms := range want {
		if got := Backoff(i + 1); got != ms*time.Millisecond {
			t.Errorf("backoff %d is %v, want %v", i+1, got, ms*time.Millisecond)
		}
	}
	if got := Backoff(1 << 30); got != 30*time.Second {
		t.Errorf("backoff of many is %v", got)
	}
	for i, ms := range []time.Duration{500, 1000, 2000, 4000, 5000, 5000} {
		if got := Patience(i); got != ms*time.Millisecond {
			t.Errorf("patience %d is %v, want %v", i, got, ms*time.Millisecond)
		}
	}
}

func TestPlansThatAreRefused(t *testing.T) {
	v4 := netip.MustParseAddrPort("203.0.113.1:51820")
	for name, plan := range map[string]Plan{
		"nothing":      {},
		"no name":      {Targets: []Target{{"", v4}}},
		"no port":      {Targets: []Target{{"a", netip.AddrPortFrom(v4.Addr(), 0)}}},
		"no address":   {Targets: []Target{{"a", netip.AddrPortFrom(netip.Addr{}, 1)}}},
		"torn apart":   {Targets: []Target{{"a", v4}, {"b", v4}, {"a", v4}}},
		"two gateways": {Role: Gateway, Targets: []Target{{"a", v4}, {"b", v4}}},
		"too many":     {Targets: slices.Repeat([]Target{{"a", v4}}, MaxTargets+1)},
	} {
		if _, effects, err := Start(plan, epoch); err == nil || effects != nil {
			t.Errorf("%s: started with %v", name, effects)
		}
	}
	if err := handsetPlan().Check(); err != nil {
		t.Error(err)
	}
}

func TestNamesAreWhole(t *testing.T) {
	seen := map[string]bool{}
	check := func(s string) {
		if seen[s] || s == "" || strings.ContainsRune(s, '(') {
			t.Errorf("name %q is empty, unknown or used twice", s)
		}
		seen[s] = true
	}
	for p := Phase(0); p < phases; p++ {
		check(p.String())
	}
	for k := Kind(0); k < kinds; k++ {
		check(k.String())
	}
	for a := Act(0); a < acts; a++ {
		check(a.String())
	}
	if phases.String() != "phase(9)" || kinds.String() != "event(14)" || acts.String() != "act(11)" {
		t.Error("an unknown value has a name")
	}
}
