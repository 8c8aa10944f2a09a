package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"rempart/internal/journal"
	"rempart/keystore/client/identity"
	"rempart/voice/call"
	"rempart/voice/record"
	"rempart/voice/sip"
)

// Limits are the times a call may take.
type Limits struct {
	// Answer is how long a call may ring.
	Answer time.Duration
	// Keying is how long the agreement of keys may take.
	Keying time.Duration
	// Idle is how long a peer may send no sound (FTA_SSL.3/MEDIA); zero is
	// voice/media's default.
	Idle time.Duration
}

// DefaultLimits is what handsets run with.
func DefaultLimits() Limits { return Limits{Answer: 30 * time.Second, Keying: 5 * time.Second} }

// Config is what an agent needs; Journal and Check may be nil.
type Config struct {
	Self        sip.AOR
	Inner       netip.Addr // our inner address, from our certificate
	Gateway     netip.AddrPort
	Roots       *x509.CertPool
	Credentials func(context.Context) (tls.Certificate, error)
	// Level is the rule for a call's level (vpn/levels CallLevel).
	Level func(local, peer identity.Identity) (string, error)
	// Sealer and StateFile keep the call log and the remembered peers.
	Sealer    Sealer
	StateFile string
	// Devices opens microphone and speaker; Check says before a call whether
	// they are usable, without opening them.
	Devices Devices
	Check   func() error
	// AutoAnswer answers every call at once: how lab handsets run.
	AutoAnswer bool
	// RTP and Keying are the ports; zero lets the kernel choose.
	RTP, Keying uint16
	Limits      Limits
	Timing      sip.Timing
	Journal     *journal.Journal
	Now         func() time.Time // wall clock
	Clock       func() int64     // CLOCK_MONOTONIC, ns
}

// Errors that callers branch on.
var (
	// ErrBusy: this handset is in a call.
	ErrBusy = errors.New("this handset is in a call already")
	// ErrNoCall: there is no such call, or it is over.
	ErrNoCall = errors.New("there is no such call")
	// ErrSound: the microphone or speaker cannot be used.
	ErrSound = errors.New("cannot use this handset's sound devices")
	// ErrCallee: the callee's name is not one.
	ErrCallee = errors.New("cannot call: not the name of another handset of this network")
)

// Agent is a handset's telephone.
type Agent struct {
	cfg   Config
	sip   *sip.Agent
	store *store

	mu      sync.Mutex
	current *line
	closing bool           // no call is taken any more
	saves   sync.WaitGroup // added to under mu, or while a call holds the line
}

// New reads the call log; everything else starts with Run.
func New(ctx context.Context, cfg Config) (*Agent, error) {
	if !cfg.Inner.IsValid() || cfg.Level == nil || cfg.Sealer == nil || cfg.StateFile == "" || cfg.Devices == nil ||
		cfg.Limits.Answer <= 0 || cfg.Limits.Keying <= 0 {
		return nil, errors.New("cannot make an agent of an incomplete configuration")
	}
	a := &Agent{cfg: cfg}
	var err error
	if a.store, err = openStore(ctx, cfg.StateFile, cfg.Sealer); a.store == nil {
		return nil, err
	} else if err != nil {
		cfg.Journal.Event(eventStore, "call log", journal.Failure, "reason", err.Error())
	}
	a.sip, err = sip.NewAgent(sip.Config{Self: cfg.Self, Gateway: cfg.Gateway, Local: cfg.Inner, Roots: cfg.Roots,
		Credentials: cfg.Credentials, Incoming: a.incoming, Now: cfg.Now, Clock: cfg.Clock, Timing: cfg.Timing})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// Run keeps the handset reachable until ctx ends, then hangs up; it returns
// ctx's error.
func (a *Agent) Run(ctx context.Context) error {
	// Signalling outlives ctx by the time of a hang-up, so that the peer hears it.
	signalling, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- a.sip.Run(signalling) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	a.mu.Lock()
	l := a.current
	a.closing = true
	a.mu.Unlock()
	if l != nil {
		l.send(event{Event: call.Event{Kind: call.LocalHangup}})
		<-l.finished
	}
	stop()
	<-ended
	a.saves.Wait()
	return ctx.Err()
}

// Status is what voiced's GET /v1/status shows.
type Status = record.Status

// Status is the registration, the call that is on and the last that was.
func (a *Agent) Status() Status {
	s := Status{Registration: a.sip.Status()}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current != nil {
		r := a.current.record()
		s.Current = &r
	}
	if r, ok := a.store.last(); ok {
		s.Last = &r
	}
	return s
}

// Callee is the address of record of a name as a person gives it: "b" or
// "sip:b@domain", in upper or lower case.
func (a *Agent) Callee(name string) (sip.AOR, error) {
	name = strings.ToLower(name) // ASCII in, or refused below
	if !strings.HasPrefix(name, "sip:") {
		name = "sip:" + name + "@" + a.cfg.Self.Domain()
	}
	aor, err := sip.ParseAOR(name)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrCallee, err)
	}
	if aor.Domain() != a.cfg.Self.Domain() {
		return "", fmt.Errorf("%w: %s is not of %s", ErrCallee, aor, a.cfg.Self.Domain())
	}
	if aor == a.cfg.Self {
		return "", fmt.Errorf("%w: %s is this handset", ErrCallee, aor)
	}
	return aor, nil
}

// Dial starts a call and returns its id at once.
func (a *Agent) Dial(name string) (string, error) {
	dialled, at := a.cfg.Clock(), a.cfg.Now()
	callee, err := a.Callee(name)
	if err != nil {
		return "", err
	}
	if a.cfg.Check != nil {
		if err := a.cfg.Check(); err != nil {
			return "", fmt.Errorf("%w: %w", ErrSound, err)
		}
	}
	l, err := a.seize(call.Outgoing, callee, randomID(16), dialled, at)
	if err != nil {
		return "", err
	}
	go l.run(nil)
	return l.rec.ID, nil
}

// Answer accepts a call that rings.
func (a *Agent) Answer(id string) error { return a.tell(id, call.Answered) }

// Hangup ends a call that is on, in whatever state.
func (a *Agent) Hangup(id string) error { return a.tell(id, call.LocalHangup) }

func (a *Agent) tell(id string, k call.Kind) error {
	a.mu.Lock()
	l := a.current
	a.mu.Unlock()
	if l == nil || l.rec.ID != id || !l.send(event{Event: call.Event{Kind: k}}) {
		return ErrNoCall
	}
	return nil
}

// Record is a call by its id: the one that is on, or one of the log.
func (a *Agent) Record(id string) (Record, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l := a.current; l != nil && l.rec.ID == id {
		return l.record(), nil
	}
	if r, ok := a.store.find(id); ok {
		return r, nil
	}
	return Record{}, ErrNoCall
}

// incoming takes a call or answers 486.
func (a *Agent) incoming(in *sip.Incoming) {
	l, err := a.seize(call.Incoming, in.From, in.CallID, a.cfg.Clock(), a.cfg.Now())
	if err != nil {
		a.cfg.Journal.Event(eventCall, string(in.From), journal.Refused, "direction", "incoming", "reason", string(call.ReasonBusy))
		in.Refuse(status(call.ReasonBusy)) // an answer that cannot be sent tells the same
		return
	}
	l.run(in)
}

// seize takes the one line.
func (a *Agent) seize(d call.Direction, peer sip.AOR, callID string, dialled int64, at time.Time) (*line, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current != nil || a.closing {
		return nil, ErrBusy
	}
	l := &line{a: a, machine: call.New(d), peer: peer, events: make(chan event), done: make(chan struct{}), finished: make(chan struct{}), answered: make(chan struct{})}
	l.rec = Record{ID: randomID(8), CallID: callID, Direction: d.String(), Peer: peer.Name(), PeerURI: string(peer),
		State: l.machine.State().String(), DialNS: dialled, At: at}
	a.current = l
	return l, nil
}

// release gives the line back and keeps the call's record.
func (a *Agent) release(l *line) {
	state, reason := l.machine.State(), l.machine.Reason()
	// One moment for everybody: the record is final, is in the log, and the
	// line is free.
	a.mu.Lock()
	l.change(func(r *Record) { r.State, r.Reason, r.Explanation = state.String(), string(reason), reason.Explain() })
	r := l.record()
	a.store.log(r)
	a.save()
	a.current = nil
	a.mu.Unlock()
	outcome := journal.Success
	if r.State == call.Failed.String() {
		outcome = journal.Failure
	}
	a.cfg.Journal.Event(eventCall, r.PeerURI, outcome, "direction", r.Direction, "state", r.State, "reason", r.Reason, "level", r.Level)
}

// save writes the store without anybody waiting for it.
func (a *Agent) save() {
	a.saves.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := a.store.save(ctx); err != nil {
			a.cfg.Journal.Event(eventStore, "call log", journal.Failure, "reason", err.Error())
		}
	})
}

// randomID is n random bytes in hex.
func randomID(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}
