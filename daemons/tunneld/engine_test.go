package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rempart/internal/run"
	"rempart/internal/secret"
	"rempart/vpn/tunnel"
	"rempart/vpn/wireguard"
)

// world is everything outside the engine, in virtual time: a gate, a key store,
// an init and a wire. It keeps the order of all that is asked of it, and fails
// the test when the tunnel is used while the gate does not admit it. The real
// ones are in world_test.go.
type world struct {
	mu      sync.Mutex
	t       *testing.T
	log     []string
	inForce string // admitted gateway, "" deny all
	known   bool   // the present egressd has said so itself

	gateDown, gateRefuses bool
	keyAfter              time.Duration
	keyErr, wishErr       error
	public                wireguard.Key
	answers               map[netip.AddrPort]time.Duration // how long the gateway takes, by address
	unreachable           map[netip.AddrPort]bool

	dev    *wire
	opened int
}

func (w *world) lock() (unlock func()) {
	w.mu.Lock()
	return w.mu.Unlock
}

// now changes the world under the engine's feet.
func (w *world) now(change func()) {
	defer w.lock()()
	change()
}

func (w *world) note(format string, args ...any) { w.log = append(w.log, fmt.Sprintf(format, args...)) }

func (w *world) Close(context.Context) error {
	defer w.lock()()
	if w.gateDown {
		return errors.New("cannot reach egressd")
	}
	w.note("close")
	w.inForce, w.known = "", true
	return nil
}

func (w *world) Admit(_ context.Context, gateway string) error {
	defer w.lock()()
	switch {
	case w.gateDown:
		return errors.New("cannot reach egressd")
	case w.gateRefuses:
		return fmt.Errorf("%w: no such gateway", errRefused)
	}
	w.note("admit %s", gateway)
	w.inForce = gateway
	return nil
}

func (w *world) Check(context.Context) error {
	defer w.lock()()
	if w.gateDown || !w.known {
		return errors.New("egressd is another")
	}
	return nil
}

func (w *world) Fetch(ctx context.Context) (credentials, error) {
	select {
	case <-time.After(w.keyAfter):
	case <-ctx.Done():
		return credentials{}, ctx.Err()
	}
	defer w.lock()()
	if w.keyErr != nil {
		return credentials{}, w.keyErr
	}
	w.note("key")
	return credentials{key: secret.New(make([]byte, 32)), public: w.public, inner: []netip.Addr{netip.MustParseAddr("10.77.0.11")}}, nil
}

func (w *world) setAddress(_ context.Context, p []netip.Prefix) error {
	defer w.lock()()
	if w.wishErr == nil {
		w.note("address %v", p)
	}
	return w.wishErr
}

func (w *world) openDevice(key *secret.Bytes) (device, error) {
	defer w.lock()()
	key.Wipe()
	w.opened++
	w.dev = &wire{world: w, done: make(chan struct{})}
	return w.dev, nil
}

// wire is a device whose other end answers after a while.
type wire struct {
	*world
	peer      wireguard.Peer
	asked     time.Time
	handshake time.Time
	dead      bool // the gateway answers nothing more
	received  uint64
	data      uint64
	peers     []wireguard.Peer
	listening bool
	done      chan struct{}
}

func (d *wire) Public() wireguard.Key { return wireguard.Key{7} }

func (d *wire) needs(what string) {
	if d.inForce == "" || !d.known {
		d.t.Errorf("%s while %q is in force (known: %v)", what, d.inForce, d.known)
	}
}

func (d *wire) Connect(p wireguard.Peer) error {
	defer d.lock()()
	d.needs("connect")
	d.note("connect %s", p.Endpoint)
	if d.unreachable[p.Endpoint] {
		return errors.New("network is unreachable")
	}
	d.peer, d.asked, d.handshake = p, time.Now(), time.Time{}
	return nil
}

func (d *wire) Listen(port uint16, peers []wireguard.Peer) error {
	defer d.lock()()
	d.needs("listen")
	d.note("listen %d with %d peers", port, len(peers))
	d.listening, d.peers = true, peers
	return nil
}

func (d *wire) SetPeers(p []wireguard.Peer) error {
	defer d.lock()()
	d.peers = p
	return nil
}

func (d *wire) Rehandshake() error {
	defer d.lock()()
	d.needs("rehandshake")
	d.note("rehandshake")
	d.asked = time.Now()
	return nil
}

func (d *wire) Down() error {
	defer d.lock()()
	d.note("down")
	d.asked, d.handshake, d.listening = time.Time{}, time.Time{}, false
	return nil
}

func (d *wire) Close() error {
	defer d.lock()()
	d.note("device closed")
	return nil
}

func (d *wire) Peers() ([]wireguard.Status, error) {
	defer d.lock()()
	after, answers := d.answers[d.peer.Endpoint]
	if answers && !d.dead && !d.asked.IsZero() && time.Since(d.asked) >= after && !d.handshake.After(d.asked) {
		d.handshake = time.Now()
		d.received += 92
	}
	return []wireguard.Status{{Key: d.peer.Key, Handshake: d.handshake, Received: d.received, Sent: d.data * 100}}, nil
}

func (d *wire) Traffic() wireguard.Traffic {
	defer d.lock()()
	return wireguard.Traffic{Data: d.data}
}

func (d *wire) Done() <-chan struct{} { return d.done }

var (
	north4 = netip.MustParseAddrPort("203.0.113.1:51820")
	north6 = netip.MustParseAddrPort("[2001:db8:113::1]:51820")
	south4 = netip.MustParseAddrPort("203.0.113.2:51820")
)

func testConfig(role tunnel.Role) config {
	c := config{plan: tunnel.Plan{Role: role, Targets: []tunnel.Target{{Gateway: "north", Endpoint: north4}}},
		keys: map[string]wireguard.Key{"north": {1}, "south": {2}}, inner: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/24")}}
	if role == tunnel.Handset {
		c.plan.Targets = append(c.plan.Targets, tunnel.Target{Gateway: "north", Endpoint: north6}, tunnel.Target{Gateway: "south", Endpoint: south4})
	}
	return c
}

// start runs an engine in the caller's bubble and ends it with the test.
func start(t *testing.T, w *world, role tunnel.Role) *engine {
	t.Helper()
	w.t = t
	if w.public == (wireguard.Key{}) {
		w.public = wireguard.Key{7}
	}
	e := newEngine(testConfig(role), deps{gate: w, keys: w, wish: w.setAddress, open: w.openDevice})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, run.ErrStopped) && !w.gateDown {
			t.Errorf("the engine ended with %v", err)
		}
		if w.inForce != "" && !w.gateDown {
			t.Errorf("%q is admitted after the end", w.inForce)
		}
	})
	return e
}

// after lets virtual time pass and returns the status then.
func after(e *engine, d time.Duration) *Status {
	e.gate.(*world).now(func() {}) // what the test read so far was before this
	time.Sleep(d)
	synctest.Wait()
	return e.shown.Load()
}

func wantState(t *testing.T, s *Status, want tunnel.Phase) {
	t.Helper()
	if s.State != want.String() {
		t.Fatalf("state is %+v, want %s", s, want)
	}
}

func TestUpInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{answers: map[netip.AddrPort]time.Duration{north4: 5 * time.Millisecond}, keyAfter: time.Second}
		e := start(t, w, tunnel.Handset)
		wantState(t, after(e, 500*time.Millisecond), tunnel.Locked)
		s := after(e, 508*time.Millisecond)
		wantState(t, s, tunnel.Up)
		if s.Gateway != "north" || s.Endpoint != north4.String() || s.LastHandshake.IsZero() || s.RxBytes == 0 {
			t.Errorf("status is %+v", s)
		}
		want := []string{"close", "key", "close", "admit north", "connect 203.0.113.1:51820", "address [10.77.0.11/24]"}
		if !slices.Equal(w.log, want) {
			t.Errorf("order is %q, want %q", w.log, want)
		}
	})
}

func TestGatewayGoneAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{answers: map[netip.AddrPort]time.Duration{north4: time.Millisecond}}
		e := start(t, w, tunnel.Handset)
		wantState(t, after(e, 10*time.Millisecond), tunnel.Up)
		w.now(func() {
			w.dev.dead, w.answers = true, nil
			w.dev.data++ // somebody speaks into the silence
		})
		gone := time.Now()
		wantState(t, after(e, 14*time.Second), tunnel.Up)
		wantState(t, after(e, 2*time.Second), tunnel.Stale)
		s := after(e, 5*time.Minute)
		if s.State == tunnel.Up.String() || s.Retries < 5 || s.Since.Sub(gone) > 17*time.Second || s.Reason == "" {
			t.Fatalf("five minutes later: %+v", s)
		}
		for s.NextRetry.IsZero() { // until it is in its backoff
			s = after(e, 100*time.Millisecond)
		}
		if w.inForce != "" || time.Until(s.NextRetry) > 30*time.Second {
			t.Errorf("in the error state %q is admitted, next retry in %v", w.inForce, time.Until(s.NextRetry))
		}
		w.now(func() { // a slow path, at the other address
			w.dev.dead, w.answers = false, map[netip.AddrPort]time.Duration{north6: 3 * time.Second}
		})
		s = after(e, time.Minute)
		wantState(t, s, tunnel.Up)
		if s.Retries != 0 || s.Endpoint != north6.String() {
			t.Errorf("after its return: %+v", s)
		}
	})
}

func TestIdleGatewayGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{answers: map[netip.AddrPort]time.Duration{north4: time.Millisecond}}
		e := start(t, w, tunnel.Handset)
		wantState(t, after(e, 170*time.Second), tunnel.Up)
		wantState(t, after(e, 11*time.Second), tunnel.Up) // stale, and answered at once
		if !slices.Contains(w.log, "rehandshake") {
			t.Errorf("no handshake was forced: %q", w.log)
		}
	})
}

func TestEgressdRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{answers: map[netip.AddrPort]time.Duration{north4: time.Millisecond}}
		e := start(t, w, tunnel.Handset)
		wantState(t, after(e, 10*time.Millisecond), tunnel.Up)
		w.now(func() { w.gateDown, w.known = true, false })
		s := after(e, 600*time.Millisecond)
		if s.State == tunnel.Up.String() || w.dev.asked != (time.Time{}) {
			t.Fatalf("the gate is lost: %+v", s)
		}
		w.now(func() { w.gateDown, w.inForce = false, "" })
		wantState(t, after(e, 3*time.Second), tunnel.Up)
		if w.opened != 1 {
			t.Errorf("the device was built %d times", w.opened)
		}
	})
}

func TestRefusalsAreRetriedAndSaid(t *testing.T) {
	for name, c := range map[string]struct {
		break_, mend func(*world)
		want         string
	}{
		"gate":    {func(w *world) { w.gateRefuses = true }, func(w *world) { w.gateRefuses = false }, "egressd refused: no such gateway"},
		"no gate": {func(w *world) { w.gateDown = true }, func(w *world) { w.gateDown = false }, "cannot reach egressd"},
		"key":     {func(w *world) { w.keyErr = errors.New("no certificate") }, func(w *world) { w.keyErr = nil }, "no certificate"},
		"address": {func(w *world) { w.wishErr = errors.New("not yours") }, func(w *world) { w.wishErr = nil }, "not yours"},
		"other key": {func(w *world) { w.public = wireguard.Key{8} }, func(w *world) { w.public = wireguard.Key{7} },
			"the certificate vouches for another tunnel key"},
		"route": {func(w *world) {
			w.unreachable = map[netip.AddrPort]bool{north4: true, north6: true, south4: true}
		}, func(w *world) { w.unreachable = nil }, "203.0.113.2:51820: network is unreachable"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &world{answers: map[netip.AddrPort]time.Duration{north4: time.Millisecond}}
				c.break_(w)
				e := start(t, w, tunnel.Handset)
				s := after(e, 10*time.Second)
				if s.Reason != c.want || s.Retries < 3 || s.State == tunnel.Up.String() || w.inForce != "" {
					t.Fatalf("status is %+v, %q admitted; want %q", s, w.inForce, c.want)
				}
				w.now(func() { c.mend(w) })
				wantState(t, after(e, 31*time.Second), tunnel.Up)
			})
		})
	}
}

func TestLostDeviceIsRebuiltWithAFreshKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{answers: map[netip.AddrPort]time.Duration{north4: time.Millisecond}}
		e := start(t, w, tunnel.Handset)
		wantState(t, after(e, 10*time.Millisecond), tunnel.Up)
		close(w.dev.done)
		s := after(e, time.Millisecond)
		wantState(t, s, tunnel.Locked)
		if w.inForce != "" || s.Reason != "the tunnel device is gone" {
			t.Errorf("status is %+v, %q admitted", s, w.inForce)
		}
		wantState(t, after(e, time.Second), tunnel.Up)
		if w.opened != 2 {
			t.Errorf("the device was built %d times", w.opened)
		}
	})
}

func TestGatewayServesThePeersItWasGiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{keyAfter: time.Second}
		e := start(t, w, tunnel.Gateway)
		set := func(peers ...wireguard.Peer) error {
			r := peersRequest{peers, make(chan error, 1)}
			e.requests <- r
			return <-r.answer
		}
		first := wireguard.Peer{Key: wireguard.Key{3}, Inner: wireguard.Hosts([]netip.Addr{netip.MustParseAddr("10.77.0.12")})}
		if err := set(first); err != nil { // before there is a key
			t.Fatal(err)
		}
		wantState(t, after(e, 2*time.Second), tunnel.Listening)
		if len(w.dev.peers) != 1 || !w.dev.listening {
			t.Fatalf("listens with %v", w.dev.peers)
		}
		if err := set(); err != nil || len(w.dev.peers) != 0 {
			t.Fatalf("after none: %v, %v", w.dev.peers, err)
		}
		own := wireguard.Peer{Key: wireguard.Key{4}, Inner: wireguard.Hosts([]netip.Addr{netip.MustParseAddr("10.77.0.11")})}
		if err := set(own); err == nil {
			t.Error("a peer took the gateway's own address")
		}
		if err := set(first); err != nil {
			t.Fatal(err)
		}
		// The set survives an egressd that restarts.
		w.now(func() { w.known, w.inForce = false, "" })
		wantState(t, after(e, time.Second), tunnel.Listening)
		if s := e.shown.Load(); len(w.dev.peers) != 1 || s.Peers != 1 || s.Retries != 0 {
			t.Errorf("after the gate came back: %v, %+v", w.dev.peers, s)
		}
	})
}
