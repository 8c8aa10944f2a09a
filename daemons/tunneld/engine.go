package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"rempart/internal/journal"
	"rempart/internal/run"
	"rempart/vpn/tunnel"
	"rempart/vpn/wireguard"
)

// How often the device is looked at. A handshake on a near path takes some
// milliseconds, and the boot waits for it.
const (
	pollConnecting = 2 * time.Millisecond
	pollPatient    = 20 * time.Millisecond // after pollEager in one attempt
	pollEager      = time.Second
	pollUp         = 250 * time.Millisecond
	// checkGate is how often is looked whether egressd has ended the connection.
	checkGate = 250 * time.Millisecond
	// lastWord bounds the effects of a shutdown.
	lastWord = 3 * time.Second
)

// engine runs the state machine: one goroutine, which alone touches the state,
// the gate and the device.
type engine struct {
	cfg config
	deps

	state  tunnel.State
	watch  tunnel.Watch
	began  time.Time // of the attempt that watch looks at
	device device    // nil without a key
	creds  credentials
	peers  []wireguard.Peer // role gateway: the set to serve

	timer    *time.Timer // of the phase
	asking   bool        // a Fetch is under way
	fetched  chan fetched
	requests chan peersRequest
	shown    atomic.Pointer[Status]
}

type fetched struct {
	creds credentials
	err   error
}

func newEngine(cfg config, d deps) *engine {
	e := &engine{cfg: cfg, deps: d, fetched: make(chan fetched, 1), requests: make(chan peersRequest)}
	e.timer = time.NewTimer(time.Hour)
	e.timer.Stop()
	e.shown.Store(&Status{State: tunnel.Locked.String()})
	return e
}

// run lives until ctx ends. It returns run.ErrStopped, or what could not be
// closed on the way out.
func (e *engine) run(ctx context.Context) error {
	state, effects, err := tunnel.Start(e.cfg.plan, time.Now())
	if err != nil {
		return err
	}
	e.state = state
	fetching, stop := context.WithCancel(ctx)
	defer stop()
	e.perform(fetching, effects)
	poll := time.NewTimer(0)
	defer poll.Stop()
	check := time.NewTicker(checkGate)
	defer check.Stop()
	for every := pollUp; ; {
		e.show()
		looked := false
		select {
		case <-ctx.Done():
			stop()
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWord)
			defer cancel()
			e.take(end, tunnel.Event{Kind: tunnel.Shutdown, At: time.Now()})
			e.show()
			if e.state.Why != "shut down" {
				return fmt.Errorf("cannot end cleanly: %s", e.state.Why)
			}
			return run.ErrStopped
		case <-e.timer.C:
			e.take(fetching, tunnel.Event{Kind: tunnel.TimerFired, At: time.Now()})
		case f := <-e.fetched:
			e.gotKey(fetching, f)
		case <-e.ended():
			e.take(fetching, tunnel.Event{Kind: tunnel.DeviceFailed, At: time.Now(), Why: "the tunnel device is gone"})
		case <-poll.C:
			e.look(fetching)
			looked = true
		case <-check.C:
			e.checkGate(fetching)
		case r := <-e.requests:
			r.answer <- e.setPeers(r.peers)
		}
		// Not at each turn: what comes as often as the poll would put it off for ever.
		if now := e.interval(); looked || now != every {
			every = now
			poll.Reset(every)
		}
	}
}

// interval is how soon the device is looked at again.
func (e *engine) interval() time.Duration {
	if e.state.Phase != tunnel.Connecting && e.state.Phase != tunnel.Stale {
		return pollUp
	}
	if time.Since(e.began) < pollEager {
		return pollConnecting
	}
	return pollPatient
}

// ended is closed when the device ended by itself; nil without a device.
func (e *engine) ended() <-chan struct{} {
	if e.device == nil {
		return nil
	}
	return e.device.Done()
}

// take gives one event to the machine and performs what follows, answers
// included, until nothing more follows.
func (e *engine) take(ctx context.Context, event tunnel.Event) {
	for more := true; more; {
		was := e.state
		state, effects, err := tunnel.Step(e.cfg.plan, e.state, event)
		if err != nil {
			// A fault of this program. Losing the gate is the event that every
			// phase knows and that leads through deny-all.
			e.fault(event.Kind.String(), err)
			event = tunnel.Event{Kind: tunnel.EgressLost, At: time.Now(), Why: err.Error()}
			if state, effects, err = tunnel.Step(e.cfg.plan, e.state, event); err != nil {
				return // only after Shutdown, when everything is closed
			}
		}
		e.state = state
		if was.Phase != state.Phase {
			e.timer.Stop()
			e.report(was)
		}
		event, more = e.perform(ctx, effects)
	}
}

func (e *engine) report(was tunnel.State) {
	outcome := journal.Success
	if e.state.Phase == tunnel.Failed || e.state.Phase == tunnel.Stale {
		outcome = journal.Failure
	}
	e.journal.Event(eventState, e.state.Gateway, outcome, "was", was.Phase.String(), "now", e.state.Phase.String(), "why", e.state.Why)
}

// perform runs all effects in order. The first failure is the answer; without
// one it is the last success. No list has two answers that the machine needs.
func (e *engine) perform(ctx context.Context, effects []tunnel.Effect) (answer tunnel.Event, any bool) {
	failed := false
	for _, effect := range effects {
		event, ok := e.do(ctx, effect)
		if !ok || failed {
			continue
		}
		answer, any = event, true
		failed = event.Kind != tunnel.EgressClosed && event.Kind != tunnel.EgressAdmitted && event.Kind != tunnel.AddressSet
	}
	answer.At = time.Now()
	return answer, any
}

// do runs one effect; ok tells whether it has an answer.
func (e *engine) do(ctx context.Context, effect tunnel.Effect) (event tunnel.Event, ok bool) {
	answer := func(err error, success, failure tunnel.Kind) (tunnel.Event, bool) {
		if err != nil {
			return tunnel.Event{Kind: failure, Why: err.Error()}, true
		}
		return tunnel.Event{Kind: success}, success != failure
	}
	switch effect.Act {
	case tunnel.Close:
		err := e.gate.Close(ctx)
		return answer(err, tunnel.EgressClosed, egressFailure(err))
	case tunnel.Admit:
		err := e.gate.Admit(ctx, effect.Gateway)
		return answer(err, tunnel.EgressAdmitted, egressFailure(err))
	case tunnel.FetchKey:
		e.fetch(ctx)
	case tunnel.Open:
		return answer(e.openDevice(), tunnel.DeviceFailed, tunnel.DeviceFailed)
	case tunnel.Connect:
		e.watch, e.began = tunnel.Watch{}, time.Now()
		return answer(e.connect(effect), tunnel.EndpointUnreachable, tunnel.EndpointUnreachable)
	case tunnel.Listen:
		e.watch, e.began = tunnel.Watch{}, time.Now()
		return answer(e.device.Listen(effect.Endpoint.Port(), e.peers), tunnel.EndpointUnreachable, tunnel.EndpointUnreachable)
	case tunnel.SetAddress:
		prefixes, err := e.cfg.prefixes(e.creds.inner)
		if err == nil {
			err = e.wish(ctx, prefixes)
		}
		return answer(err, tunnel.AddressSet, tunnel.AddressRefused)
	case tunnel.Rehandshake:
		// Without an answer the timer of Stale decides, failed send or not.
		e.began = time.Now()
		_ = e.device.Rehandshake()
	case tunnel.Disconnect:
		if e.device == nil {
			break
		}
		// The gate is closed, so a socket that would not close reaches nobody;
		// the next Connect or Listen fails on it and says so.
		if err := e.device.Down(); err != nil {
			e.fault("disconnect", err)
		}
	case tunnel.Destroy:
		e.destroy()
	case tunnel.SetTimer:
		e.timer.Reset(effect.After)
	}
	return tunnel.Event{}, false
}

func egressFailure(err error) tunnel.Kind {
	if errors.Is(err, errRefused) {
		return tunnel.EgressRefused
	}
	return tunnel.EgressLost
}

func (e *engine) fetch(ctx context.Context) {
	if e.asking {
		return
	}
	e.asking = true
	go func() {
		creds, err := e.keys.Fetch(ctx)
		if ctx.Err() != nil { // nobody will take it
			creds.key.Wipe()
			creds.key = nil
		}
		e.fetched <- fetched{creds, err}
	}()
}

func (e *engine) gotKey(ctx context.Context, f fetched) {
	e.asking = false
	if f.err != nil {
		e.take(ctx, tunnel.Event{Kind: tunnel.KeyRefused, At: time.Now(), Why: f.err.Error()})
		return
	}
	e.creds = f.creds
	e.take(ctx, tunnel.Event{Kind: tunnel.KeyAvailable, At: time.Now()})
}

func (e *engine) openDevice() error {
	key := e.creds.key
	e.creds.key = nil
	e.destroy()
	d, err := e.open(key)
	if err != nil {
		return err
	}
	e.device = d
	if d.Public() != wireguard.Key(e.creds.public) {
		return errors.New("the certificate vouches for another tunnel key")
	}
	return nil
}

func (e *engine) destroy() {
	e.creds.key.Wipe()
	e.creds.key = nil
	if e.device != nil {
		if err := e.device.Close(); err != nil {
			e.fault("destroy", err)
		}
		e.device = nil
	}
}

func (e *engine) fault(what string, err error) {
	e.journal.Event(eventFault, what, journal.Failure, "state", e.state.Phase.String(), "why", err.Error())
}

func (e *engine) connect(effect tunnel.Effect) error {
	err := e.device.Connect(wireguard.Peer{Key: e.cfg.keys[effect.Gateway], Endpoint: effect.Endpoint, Inner: e.cfg.inner})
	if err != nil {
		return fmt.Errorf("%s: %s", effect.Endpoint, wireguard.Reason(err))
	}
	return nil
}

// look samples the device.
func (e *engine) look(ctx context.Context) {
	if e.device == nil || e.state.Policy().DenyAll() {
		return
	}
	s, err := e.sample()
	if err != nil {
		e.take(ctx, tunnel.Event{Kind: tunnel.DeviceFailed, At: time.Now(), Why: err.Error()})
		return
	}
	if event, ok := e.watch.Next(e.state.Phase, s); ok {
		e.take(ctx, event)
	}
}

func (e *engine) sample() (tunnel.Sample, error) {
	traffic := e.device.Traffic()
	s := tunnel.Sample{At: time.Now(), Data: traffic.Data}
	if traffic.Failed != nil {
		s.Unreachable = wireguard.Reason(traffic.Failed)
	}
	peers, err := e.device.Peers()
	for _, p := range peers {
		s.Received += p.Received
		if p.Handshake.After(s.Handshake) {
			s.Handshake = p.Handshake
		}
	}
	return s, err
}

// checkGate notices an egressd that went away or came back: its policy is
// deny-all again, whatever this daemon was told.
func (e *engine) checkGate(ctx context.Context) {
	switch e.state.Phase {
	case tunnel.Connecting, tunnel.Up, tunnel.Stale, tunnel.Listening:
		if err := e.gate.Check(ctx); err != nil && ctx.Err() == nil {
			e.take(ctx, tunnel.Event{Kind: tunnel.EgressLost, At: time.Now(), Why: err.Error()})
		}
	}
}
