package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"rempart/internal/frame"
	"rempart/internal/proof"
	"rempart/internal/secret"
	"rempart/vpn/egress"
	"rempart/vpn/tunnel"
	"rempart/vpn/wireguard"
)

// answer is what becomes of one request to change what is in force.
type answer uint8

const (
	done    answer = iota // done, and said so
	refuses               // not done, and said so
	dies                  // not done, no answer: the connection is gone
	forgets               // done, no answer
	halves                // done on the first device only, and said that it failed
	differs               // another policy than asked for is in force, which the digest shows
	answers
)

func (a answer) String() string {
	return [...]string{"done", "refuses", "dies", "forgets", "halves", "differs"}[a]
}

// stranger is a gateway that the policy has and nobody has asked for.
const stranger = "stranger"

// kernel is egressd and two devices behind it: the real frames, what is in force on each device, and answers as planned.
type kernel struct {
	mu      sync.Mutex
	table   egress.Policy
	inForce [2]string // by device; "" is deny all
	plan    []answer  // of the next changes; after them all are done
	asked   []string  // changes
	unsure  bool      // the last change asked for was a close that was not confirmed
}

func (k *kernel) locked(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
}

func (k *kernel) digest(gateway string) [32]byte {
	if gateway == "" {
		return egress.DenyAll().Digest()
	}
	return k.table.For(gateway).Digest()
}

func (k *kernel) serve(t *testing.T, path string) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go k.converse(c)
		}
	}()
}

func (k *kernel) converse(c net.Conn) {
	defer c.Close()
	for {
		b, err := frame.Read(c, egress.MaxRequest)
		if err != nil {
			return
		}
		r, err := egress.ParseRequest(b)
		if err != nil {
			return
		}
		s, alive := k.change(r)
		if !alive {
			return
		}
		reply, err := egress.MarshalStatus(s)
		if err != nil || frame.Write(c, reply) != nil {
			return
		}
	}
}

// change does one request as planned.
func (k *kernel) change(r egress.Request) (s egress.Status, alive bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	a := done
	if len(k.plan) > 0 {
		a, k.plan = k.plan[0], k.plan[1:]
	}
	what := "close"
	if r.Op == egress.OpAdmit {
		what = "admit " + r.Gateway
	}
	k.asked = append(k.asked, what)
	k.unsure = r.Op == egress.OpClose && a != done
	switch a {
	case done, forgets:
		k.inForce = [2]string{r.Gateway, r.Gateway}
	case halves:
		k.inForce[0] = r.Gateway
	case differs:
		k.inForce = [2]string{stranger, stranger}
	}
	s = egress.Status{Admitted: r.Gateway, Digest: k.digest(k.inForce[0])}
	if a == refuses || a == halves {
		s.Err = "cannot swap"
	}
	return s, a != dies && a != forgets
}

// line is a tunnel device that says when it is used while the gate is not as it must be.
type line struct {
	k         *kernel
	fails     bool // connecting and listening
	connected bool
	wrong     []string
}

func (l *line) use(what string) error {
	l.k.mu.Lock()
	defer l.k.mu.Unlock()
	if l.k.unsure || l.k.inForce[0] == "" || l.k.inForce[0] != l.k.inForce[1] || l.k.inForce[0] == stranger {
		l.wrong = append(l.wrong, fmt.Sprintf("%s while %q is in force", what, l.k.inForce))
	}
	if l.fails {
		return errors.New("network is unreachable")
	}
	l.connected = true
	return nil
}

func (l *line) Public() wireguard.Key                      { return wireguard.Key{7} }
func (l *line) Connect(wireguard.Peer) error               { return l.use("connect") }
func (l *line) Listen(uint16, []wireguard.Peer) error      { return l.use("listen") }
func (l *line) Rehandshake() error                         { return l.use("rehandshake") }
func (l *line) SetPeers([]wireguard.Peer) error            { return nil }
func (l *line) Down() error                                { l.connected = false; return nil }
func (l *line) Close() error                               { l.connected = false; return nil }
func (l *line) Peers() ([]wireguard.Status, error)         { return nil, nil }
func (l *line) Traffic() wireguard.Traffic                 { return wireguard.Traffic{} }
func (l *line) Done() <-chan struct{}                      { return nil }
func (l *line) Fetch(context.Context) (credentials, error) { return credentials{}, errors.New("later") }

// here is a state of the machine and what is in force in it.
type here struct {
	state   tunnel.State
	inForce string
	unsure  bool
}

// states are those that the machine is in, reached by its own steps: every phase, and where a phase has a target, each.
func states(t *testing.T, plan tunnel.Plan) (all []here) {
	t.Helper()
	now := time.Now()
	s, _, err := tunnel.Start(plan, now)
	if err != nil {
		t.Fatal(err)
	}
	step := func(kinds ...tunnel.Kind) {
		t.Helper()
		for _, k := range kinds {
			if s, _, err = tunnel.Step(plan, s, tunnel.Event{Kind: k, At: now, Handshake: now}); err != nil {
				t.Fatal(err)
			}
		}
	}
	keep := func() {
		h := here{state: s, inForce: s.Policy().Gateway}
		if s.Phase == tunnel.Admitting {
			h.inForce = "" // asked for, not yet in force
		}
		all = append(all, h)
	}
	keep()
	all = append(all, here{s, "north", true}) // what a process before this one has left, and the first close failed
	step(tunnel.KeyAvailable)
	for {
		keep() // closed
		all = append(all, here{s, "north", true})
		step(tunnel.EgressClosed)
		keep() // admitting
		step(tunnel.EgressAdmitted)
		keep() // connecting or listening
		if plan.Role == tunnel.Gateway {
			step(tunnel.EgressLost, tunnel.EgressLost)
			break
		}
		at := s
		step(tunnel.AddressSet)
		keep()
		step(tunnel.HandshakeSeen)
		keep() // up
		step(tunnel.HandshakeStale)
		keep() // stale
		s = at
		if step(tunnel.EndpointUnreachable); s.Phase == tunnel.Failed {
			break
		}
		if s.Phase == tunnel.Connecting { // the gateway's other address, without a new policy
			keep()
			if step(tunnel.EndpointUnreachable); s.Phase == tunnel.Failed {
				break
			}
		}
	}
	keep() // failed
	all = append(all, here{s, "north", true})
	step(tunnel.Shutdown)
	keep() // stopped
	return append(all, here{s, "north", true})
}

// happenings are the events and what else goes wrong while the machine acts on one.
type happening struct {
	kind        tunnel.Kind
	plan        []answer
	unreachable bool // Connect and Listen fail
	unaddressed bool // init refuses the address
}

func happenings() (all []happening) {
	var plans [][]answer
	for a := range answers {
		for b := range answers {
			plans = append(plans, []answer{a, b})
		}
		// Four in a row: a close is asked for again where its connection was gone.
		plans = append(plans, []answer{a, a, a, a})
	}
	for kind := tunnel.KeyAvailable; kind <= tunnel.Shutdown; kind++ {
		for _, p := range plans {
			all = append(all, happening{kind: kind, plan: p})
		}
		for a := range answers {
			all = append(all, happening{kind, []answer{a}, true, false}, happening{kind, []answer{a}, false, true}, happening{kind, []answer{done, a}, true, true})
		}
	}
	return all
}

// TestEveryStateAndEvent walks all pairs of a state and an event, with every way in which egressd may fail at what follows. What
// is then in force is never looser than the state allows, but where egressd has not confirmed a close; there the state allows
// nothing, nothing is connected, and the next thing asked for is to close again.
func TestEveryStateAndEvent(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "TestWalkNoticesALooseGate")
	for name, role := range map[string]tunnel.Role{"handset": tunnel.Handset, "gateway": tunnel.Gateway} {
		t.Run(name, func(t *testing.T) {
			pairs := map[[2]uint8]int{}
			for w := range walks(t, role) {
				pairs[[2]uint8{uint8(w.from.state.Phase), uint8(w.what.kind)}]++
				if wrong := w.run(t); len(wrong) > 0 {
					t.Errorf("%s (%q in force, unsure %v), %s, egressd %v, unreachable %v, unaddressed %v: ends in %s with %q in force: %q", w.from.state.Phase, w.from.inForce, w.from.unsure,
						w.what.kind, w.what.plan, w.what.unreachable, w.what.unaddressed, w.engine.state.Phase, w.k.inForce, wrong)
				}
			}
			// Every phase of the role, every event.
			if want := map[tunnel.Role]int{tunnel.Handset: 8, tunnel.Gateway: 6}[role] * int(tunnel.Shutdown+1); len(pairs) != want {
				t.Errorf("%d pairs were walked, want %d", len(pairs), want)
			}
		})
	}
}

// TestWalkNoticesALooseGate is the twin: a gate that lies is noticed.
func TestWalkNoticesALooseGate(t *testing.T) {
	noticed := 0
	for w := range walks(t, tunnel.Handset) {
		if w.what.kind != tunnel.EgressLost || w.from.state.Phase != tunnel.Up || len(w.what.plan) != 2 || w.what.plan[0] != done {
			continue
		}
		w.lies = true
		if len(w.run(t)) > 0 {
			noticed++
		}
	}
	if noticed == 0 {
		t.Error("a gate that does not close and says that it did was not noticed")
	}
}

// walk is one pair, in an engine of its own.
type walk struct {
	from   here
	what   happening
	k      *kernel
	engine *engine
	dev    *line
	lies   bool
}

func walks(t *testing.T, role tunnel.Role) func(yield func(*walk) bool) {
	t.Helper()
	cfg := testConfig(role)
	k := &kernel{}
	for i, name := range []string{"north", "south", stranger} {
		k.table.Classes = append(k.table.Classes, egress.Class{Gateway: name, Addr: netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)}), Proto: egress.UDP, Port: 51820,
			Purpose: egress.Tunnel, Cgroup: 7})
	}
	digests := map[string][32]byte{"": k.digest(""), "north": k.digest("north"), "south": k.digest("south")}
	path := filepath.Join(t.TempDir(), "s")
	k.serve(t, path)
	return func(yield func(*walk) bool) {
		for _, from := range states(t, cfg.plan) {
			for _, what := range happenings() {
				w := &walk{from: from, what: what, k: k, dev: &line{k: k, fails: what.unreachable, connected: !from.state.Policy().DenyAll()}}
				g := &gate{path: path, digests: digests, last: from.inForce}
				w.engine = newEngine(cfg, deps{gate: g, keys: w.dev,
					wish: func(context.Context, []netip.Prefix) error {
						if what.unaddressed {
							return errors.New("not yours")
						}
						return nil
					},
					open: func(key *secret.Bytes) (device, error) { key.Wipe(); return w.dev, nil }})
				w.engine.state = from.state
				if from.state.Phase != tunnel.Locked && from.state.Phase != tunnel.Stopped {
					w.engine.device = w.dev
				}
				ok := yield(w)
				if g.client != nil {
					_ = g.client.Close()
				}
				if !ok {
					return
				}
			}
		}
	}
}

// possible leaves out what egressd does not say: a close or an admission that is not so.
func (w *walk) possible() bool {
	switch w.what.kind {
	case tunnel.EgressClosed:
		return w.from.inForce == "" && !w.from.unsure
	case tunnel.EgressAdmitted:
		return w.from.inForce != ""
	}
	return true
}

// run lets it happen and returns what does not hold.
func (w *walk) run(t *testing.T) (wrong []string) {
	t.Helper()
	k, e := w.k, w.engine
	k.locked(func() {
		k.inForce, k.unsure, k.plan, k.asked = [2]string{w.from.inForce, w.from.inForce}, w.from.unsure, slices.Clone(w.what.plan), nil
	})
	if w.possible() {
		w.happen(t)
	}
	if w.lies { // the close that was confirmed did not happen
		k.locked(func() { k.inForce = [2]string{"north", "north"} })
	}
	if loose := w.loose(); loose != "" {
		wrong = append(wrong, loose)
	}
	// What comes next is at most a timer. With an egressd that is well again it leads to a close before all else.
	unsure := false
	k.locked(func() { k.plan, k.asked, unsure = nil, nil, k.unsure })
	w.dev.fails = false
	if e.state.Phase != tunnel.Stopped {
		e.take(t.Context(), tunnel.Event{Kind: tunnel.TimerFired, At: time.Now()})
		if loose := w.loose(); loose != "" {
			wrong = append(wrong, "and after the next timer "+loose)
		}
		k.locked(func() {
			if unsure && (len(k.asked) == 0 || k.asked[0] != "close") {
				wrong = append(wrong, fmt.Sprintf("after a close that was not confirmed egressd was asked %q", k.asked))
			}
			if k.unsure {
				wrong = append(wrong, "the gate is still unsure after the next timer")
			}
		})
	}
	e.timer.Stop()
	return append(wrong, w.dev.wrong...)
}

func (w *walk) happen(t *testing.T) {
	t.Helper()
	now := time.Now()
	switch w.what.kind {
	case tunnel.KeyAvailable:
		w.engine.gotKey(t.Context(), fetched{creds: credentials{key: secret.New(make([]byte, 32)), public: wireguard.Key{7}, inner: []netip.Addr{netip.MustParseAddr("10.77.0.11")}}})
	case tunnel.KeyRefused:
		w.engine.gotKey(t.Context(), fetched{err: errors.New("no")})
	default:
		w.engine.take(t.Context(), tunnel.Event{Kind: w.what.kind, At: now, Handshake: now})
	}
}

// loose compares what is in force with what the state allows.
func (w *walk) loose() string {
	w.k.mu.Lock()
	defer w.k.mu.Unlock()
	allowed := w.engine.state.Policy()
	for _, g := range w.k.inForce {
		if (tunnel.Policy{Gateway: g}).Within(allowed) {
			continue
		}
		switch {
		case !w.k.unsure:
			return fmt.Sprintf("%q is in force and %q allowed", w.k.inForce, allowed.Gateway)
		case !allowed.DenyAll():
			return fmt.Sprintf("%q is in force, its close was not confirmed, and %q is allowed", w.k.inForce, allowed.Gateway)
		case w.dev.connected:
			return fmt.Sprintf("%q is in force, its close was not confirmed, and the tunnel is connected", w.k.inForce)
		}
	}
	return ""
}
