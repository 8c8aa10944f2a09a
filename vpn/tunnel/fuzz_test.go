package tunnel

import (
	"errors"
	"testing"
	"time"
)

// gate is a model of egressd and the kernel's policy.
type gate struct {
	inForce Policy
	failed  bool // the last Close was not done
}

// FuzzPolicyIsNeverLooserThanTheState feeds event sequences of any order. The
// gate may fail at any effect; whatever happens, what is in force is within what
// the state allows, unless the gate itself refused to close, and then nothing
// is connected and the next thing asked of it is to close again.
func FuzzPolicyIsNeverLooserThanTheState(f *testing.F) {
	f.Add([]byte{0, byte(EgressClosed), byte(KeyAvailable), byte(EgressClosed), byte(EgressAdmitted), byte(AddressSet), byte(HandshakeSeen), byte(EgressLost)})
	f.Add([]byte{1, byte(EgressClosed), byte(KeyAvailable), byte(EgressClosed), byte(EgressAdmitted), byte(EgressLost), byte(Shutdown)})
	f.Add([]byte{0, byte(EgressClosed), byte(KeyAvailable), byte(EgressClosed), byte(EgressAdmitted), byte(TimerFired), byte(TimerFired), byte(EgressClosed), byte(EgressAdmitted), byte(TimerFired), byte(TimerFired)})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) == 0 {
			return
		}
		plan := handsetPlan()
		if script[0]&1 == 1 {
			plan = gatewayPlan()
		}
		s, effects, err := Start(plan, epoch)
		if err != nil {
			t.Fatal(err)
		}
		g := gate{inForce: Policy{"left by a crash"}}
		now := epoch
		for i, b := range script[1:] {
			g.run(t, s, effects, b&0x80 != 0)
			if !g.failed && !g.inForce.Within(s.Policy()) {
				t.Fatalf("step %d: %+v is in force in %s, which allows %+v", i, g.inForce, s.Phase, s.Policy())
			}
			now = now.Add(time.Duration(b) * time.Millisecond)
			e := Event{Kind: Kind(b & 0x7f % byte(kinds)), At: now, Handshake: now}
			if !g.possible(e.Kind, s) {
				effects = nil
				continue
			}
			before := s
			s, effects, err = Step(plan, s, e)
			var unexpected *UnexpectedError
			if err != nil && (!errors.As(err, &unexpected) || s != before || effects != nil) {
				t.Fatalf("step %d: %v with %v", i, err, effects)
			}
			if err == nil {
				checkEffects(t, before, s, effects)
			}
			if s.Target < 0 || s.Target >= len(plan.Targets) || s.Gateway != plan.Targets[s.Target].Gateway {
				t.Fatalf("step %d: aims at target %d, gateway %q", i, s.Target, s.Gateway)
			}
		}
	})
}

// possible leaves out answers that the gate did not give: it never says closed
// or admitted when that is not so.
func (g *gate) possible(k Kind, s State) bool {
	switch k {
	case EgressClosed:
		return g.inForce.DenyAll() && !g.failed
	case EgressAdmitted:
		return !g.inForce.DenyAll() && g.inForce == s.Policy()
	}
	return true
}

func (g *gate) run(t *testing.T, s State, effects []Effect, fail bool) {
	t.Helper()
	for _, e := range effects {
		switch e.Act {
		case Close:
			g.failed = fail
			if !fail {
				g.inForce = Policy{}
			}
		case Admit:
			if g.failed {
				t.Fatalf("%s admits %q after a Close that was not confirmed", s.Phase, e.Gateway)
			}
			// Done even when the answer is lost: the worst case.
			g.inForce = Policy{e.Gateway}
		case Connect, Listen:
			if g.failed || g.inForce != (Policy{e.Gateway}) {
				t.Fatalf("%s to %q while %+v is in force", e.Act, e.Gateway, g.inForce)
			}
		}
	}
}

func TestWatch(t *testing.T) {
	var w Watch
	at := func(d time.Duration) time.Time { return epoch.Add(d) }
	steps := []struct {
		name  string
		phase Phase
		s     Sample
		want  Kind // kinds means nothing
	}{
		{"no handshake", Connecting, Sample{At: at(1)}, kinds},
		{"unreachable", Connecting, Sample{At: at(2), Unreachable: "no route"}, EndpointUnreachable},
		{"handshake", Connecting, Sample{At: at(3), Handshake: at(3), Received: 92}, HandshakeSeen},
		{"same handshake", Up, Sample{At: at(4), Handshake: at(3), Received: 92}, kinds},
		{"data out", Up, Sample{At: at(time.Second), Handshake: at(3), Received: 92, Data: 1}, kinds},
		{"not yet silent", Up, Sample{At: at(15 * time.Second), Handshake: at(3), Received: 92, Data: 9}, kinds},
		{"answered", Up, Sample{At: at(15500 * time.Millisecond), Handshake: at(3), Received: 150, Data: 9}, kinds},
		{"data again", Up, Sample{At: at(17 * time.Second), Handshake: at(3), Received: 150, Data: 10}, kinds},
		{"silent", Up, Sample{At: at(32 * time.Second), Handshake: at(3), Received: 150, Data: 12}, HandshakeStale},
		{"rekey", Stale, Sample{At: at(33 * time.Second), Handshake: at(33 * time.Second), Received: 300, Data: 12}, HandshakeSeen},
		{"idle", Up, Sample{At: at(212 * time.Second), Handshake: at(33 * time.Second), Received: 300, Data: 12}, kinds},
		{"too old", Up, Sample{At: at(213 * time.Second), Handshake: at(33 * time.Second), Received: 300, Data: 12}, HandshakeStale},
		{"stale already", Stale, Sample{At: at(214 * time.Second), Handshake: at(33 * time.Second), Received: 300, Data: 12}, kinds},
		{"the clock was set back", Stale, Sample{At: at(215 * time.Second), Handshake: at(-time.Hour), Received: 400, Data: 12}, HandshakeSeen},
		{"fresh by our own time", Up, Sample{At: at(394 * time.Second), Handshake: at(-time.Hour), Received: 400, Data: 12}, kinds},
		{"and then too old", Up, Sample{At: at(395 * time.Second), Handshake: at(-time.Hour), Received: 400, Data: 12}, HandshakeStale},
		{"closed", Closed, Sample{At: at(396 * time.Second), Handshake: at(215 * time.Second)}, kinds},
	}
	for _, st := range steps {
		e, ok := w.Next(st.phase, st.s)
		if ok != (st.want != kinds) || ok && e.Kind != st.want {
			t.Errorf("%s: got %v %v, want %v", st.name, e, ok, st.want)
		}
		if ok && !e.At.Equal(st.s.At) {
			t.Errorf("%s: the event has no time", st.name)
		}
	}
}
