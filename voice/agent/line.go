package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"rempart/internal/journal"
	"rempart/voice/call"
	"rempart/voice/keying"
	"rempart/voice/sip"
)

// event is a call's event with what came with it.
type event struct {
	call.Event
	err    error
	dialog *sip.Dialog
	keys   *keying.Result
}

// line is one call. Its goroutine run owns everything but rec and sound, which
// mu guards, and feeds the machine one event at a time.
type line struct {
	a       *Agent
	machine *call.Machine
	peer    sip.AOR

	// events is not buffered: what is sent is handled, or not sent (done).
	events   chan event
	done     chan struct{} // closed when no event is taken any more
	finished chan struct{} // closed when the other side has been told, too
	answered chan struct{} // closed when an incoming call has been answered

	ctx    context.Context
	cancel context.CancelFunc
	invite context.CancelFunc
	creds  chan credentials
	udp    *net.UDPConn
	ln     *net.TCPListener
	in     *sip.Incoming
	dialog *sip.Dialog
	remote sip.Session
	keys   *keying.Result
	tasks  sync.WaitGroup // what tells the other side

	mu    sync.Mutex
	rec   Record
	sound *sound
}

type credentials struct {
	cert tls.Certificate
	err  error
}

// record is the call as it is now.
func (l *line) record() Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.rec
	if l.sound != nil {
		sounds(&r, l.sound.session.Stats())
	}
	return r
}

func (l *line) change(f func(*Record)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(&l.rec)
}

// send delivers an event; false when the call is over.
func (l *line) send(e event) bool {
	select {
	case l.events <- e:
		return true
	case <-l.done:
		return false
	}
}

// run is the call from its first event to its end; in is nil for our own.
func (l *line) run(in *sip.Incoming) {
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.in = in
	l.creds = make(chan credentials, 1)
	// The certificate is fetched while the other side rings.
	go func() {
		cert, err := l.a.cfg.Credentials(l.ctx)
		l.creds <- credentials{cert, err}
	}()
	l.begin()
	timer := time.NewTimer(l.a.cfg.Limits.Answer)
	defer timer.Stop()
	for !l.machine.State().Over() {
		before := l.machine.State()
		select {
		case e := <-l.events:
			l.step(e)
		case <-timer.C:
			l.step(event{Event: call.Event{Kind: call.Timeout}})
		}
		if now := l.machine.State(); now != before {
			timer.Stop()
			if now == call.Keying {
				// The agreement has its own limit; this one is for its failing to keep it.
				timer.Reset(l.a.cfg.Limits.Keying + time.Second)
			} else if now == call.Ringing {
				timer.Reset(l.a.cfg.Limits.Answer)
			}
		}
	}
	l.end()
}

// begin opens the sound port and starts what an unanswered call does. No sound
// is sent or heard by an open port: that takes a session.
func (l *line) begin() {
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(l.a.cfg.Inner, l.a.cfg.RTP)))
	if err != nil {
		l.step(event{Event: call.Event{Kind: call.Refused, Reason: call.ReasonNotReady}, err: fmt.Errorf("cannot open the sound port: %w", err)})
		return
	}
	l.udp = udp
	if l.in == nil {
		ctx, cancel := context.WithCancel(l.ctx)
		l.invite = cancel
		l.tasks.Go(func() { l.dial(ctx) })
		return
	}
	l.remote = l.in.Offer
	go func() {
		select {
		case <-l.in.Cancelled():
			l.send(event{Event: call.Event{Kind: call.RemoteHangup}})
		case <-l.in.GatewayGone():
			l.send(event{Event: call.Event{Kind: call.GatewayGone}})
		case <-l.answered:
		case <-l.done:
		}
	}()
	if err := l.in.Ring(); err != nil {
		l.step(event{Event: call.Event{Kind: call.GatewayGone}, err: err})
		return
	}
	l.change(func(r *Record) { r.RingingNS = l.a.cfg.Clock() })
	if l.a.cfg.AutoAnswer {
		l.step(event{Event: call.Event{Kind: call.Answered}})
	}
}

// session is our session description, with the keying port of an answer.
func (l *line) session(keying uint16) sip.Session {
	return sip.Session{ID: uint64(l.rec.DialNS), Addr: l.a.cfg.Inner, RTP: portOf(l.udp.LocalAddr()), Keying: keying}
}

func portOf(a net.Addr) uint16 {
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return 0 // Session.Check refuses it
	}
	return p.Port()
}

// dial places the call.
func (l *line) dial(ctx context.Context) {
	d, err := l.a.sip.Invite(ctx, l.peer, l.rec.CallID, l.session(0), func() {
		l.send(event{Event: call.Event{Kind: call.RingingSeen}})
	})
	if err != nil {
		l.send(event{Event: refusal(err), err: err})
		return
	}
	if !l.send(event{Event: call.Event{Kind: call.Answered}, dialog: d}) {
		d.Bye(context.Background())
	}
}

// step feeds one event to the machine and carries out its effects.
func (l *line) step(e event) {
	effects, err := l.machine.Step(e.Event)
	if err != nil {
		// What came with a refused event is still ours to put away.
		if e.dialog != nil {
			l.bye(e.dialog)
		}
		if e.keys != nil {
			e.keys.Wipe()
		}
		if !errors.Is(err, call.ErrOver) {
			l.a.cfg.Journal.Event(eventCall, string(l.peer), journal.Refused, "reason", err.Error())
		}
		return
	}
	if e.dialog != nil {
		l.take(e.dialog)
		l.remote = e.dialog.Remote
	}
	if e.keys != nil {
		l.keyed(e.keys)
	}
	now := l.a.cfg.Clock()
	l.change(func(r *Record) {
		// "ended" and "failed" are shown by release: when audio is closed and the
		// line is free.
		if !l.machine.State().Over() {
			r.State = l.machine.State().String()
		}
		if e.err != nil {
			r.Detail = e.err.Error()
		}
		switch {
		case e.Kind == call.RingingSeen && r.RingingNS == 0:
			r.RingingNS = now
		case e.Kind == call.Answered:
			r.AnsweredNS = now
		case l.machine.State().Over():
			r.EndedNS = now
		}
	})
	var follow []event
	for _, effect := range effects {
		if err := l.carryOut(effect); err != nil {
			follow = append(follow, l.failure(effect, err))
		}
	}
	for _, f := range follow {
		l.step(f)
	}
}

// failure is the event that a failed effect is.
func (l *line) failure(effect call.Effect, err error) event {
	switch effect {
	case call.OpenAudio:
		return event{Event: call.Event{Kind: call.MediaLost}, err: err}
	case call.SendAnswer:
		if errors.Is(err, sip.ErrCancelled) {
			return event{Event: call.Event{Kind: call.RemoteHangup}, err: err}
		}
		return event{Event: call.Event{Kind: call.GatewayGone}, err: err}
	}
	return event{Event: call.Event{Kind: call.KeyingFailed, Reason: call.ReasonKeying}, err: err}
}

// carryOut does one effect. It must not wait for the other side.
func (l *line) carryOut(effect call.Effect) error {
	switch effect {
	case call.StartKeying:
		return l.startKeying()
	case call.SendAnswer:
		if l.ln == nil {
			return errors.New("cannot answer without a keying port")
		}
		d, err := l.in.Answer(l.session(portOf(l.ln.Addr())))
		if err != nil {
			return err
		}
		close(l.answered)
		l.take(d)
	case call.SendCancel:
		l.invite()
	case call.SendRefusal:
		// A caller that cannot be told has left.
		l.in.Refuse(status(l.machine.Reason()))
	case call.SendBye:
		if l.dialog != nil {
			l.bye(l.dialog)
		} else if l.in != nil {
			l.in.Refuse(status(call.ReasonKeying))
		}
	case call.OpenAudio:
		return l.openAudio()
	case call.CloseAudio:
		l.closeAudio()
	}
	return nil
}

// take holds a dialog and listens for its end.
func (l *line) take(d *sip.Dialog) {
	l.dialog = d
	go func() {
		select {
		case <-d.Done():
		case <-l.done:
			return
		}
		switch err := d.Err(); {
		case errors.Is(err, sip.ErrHungUp):
			l.send(event{Event: call.Event{Kind: call.RemoteHangup}})
		case err != nil:
			l.send(event{Event: call.Event{Kind: call.GatewayGone}, err: err})
		}
	}()
}

// bye hangs up without waiting.
func (l *line) bye(d *sip.Dialog) {
	l.tasks.Go(func() {
		if err := d.Bye(context.Background()); err != nil {
			l.a.cfg.Journal.Event(eventCall, string(l.peer), journal.Failure, "reason", err.Error())
		}
	})
}

// startKeying begins the agreement; its outcome is an event.
func (l *line) startKeying() error {
	agree := func(ctx context.Context, cert tls.Certificate) (*keying.Result, error) {
		return l.a.dialKeys(ctx, cert, l.rec.CallID, l.peer, l.remote)
	}
	if l.in != nil {
		ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.a.cfg.Inner, l.a.cfg.Keying)))
		if err != nil {
			return fmt.Errorf("cannot open the keying port: %w", err)
		}
		l.ln = ln
		agree = func(ctx context.Context, cert tls.Certificate) (*keying.Result, error) {
			return l.a.acceptKeys(ctx, ln, cert, l.rec.CallID, l.peer, l.remote)
		}
	}
	go func() {
		c := <-l.creds
		if c.err != nil {
			l.send(event{Event: keyingFailure(c.err), err: c.err})
			return
		}
		k, err := agree(l.ctx, c.cert)
		if err != nil {
			l.send(event{Event: keyingFailure(err), err: err})
			return
		}
		if !l.send(event{Event: call.Event{Kind: call.Keyed}, keys: k}) {
			k.Wipe()
		}
	}()
	return nil
}

// keyed notes what was agreed.
func (l *line) keyed(k *keying.Result) {
	l.keys = k
	l.change(func(r *Record) { agreed(r, k) })
	r := l.record()
	seen := l.a.store.seen(r.PeerURI, r.PeerCertificate)
	l.change(func(r *Record) { r.PeerSeenBefore = seen })
	l.a.store.remember(r, l.a.cfg.Now())
	l.a.cfg.Journal.Event(eventKeys, r.PeerURI, journal.Success, "level", r.Level, "certificate", r.PeerCertificate)
}

// openAudio is the one place where a microphone is opened.
func (l *line) openAudio() error {
	remote := netip.AddrPortFrom(l.remote.Addr, l.remote.RTP)
	s, err := openSound(l.a.cfg.Devices, l.udp, remote, l.keys, l.a.cfg.Limits.Idle, func(err error) {
		l.send(event{Event: call.Event{Kind: call.MediaLost}, err: err})
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.sound, l.rec.Started = s, l.a.cfg.Clock()
	l.mu.Unlock()
	l.a.cfg.Journal.Event(eventAudio, string(l.peer), journal.Success, "audio", "open")
	l.a.save() // the peer is remembered even if this handset dies in the call
	return nil
}

func (l *line) closeAudio() {
	l.mu.Lock()
	s := l.sound
	l.mu.Unlock()
	if s == nil {
		return // it could not be opened
	}
	stats, err := s.stop()
	l.mu.Lock()
	sounds(&l.rec, stats)
	l.sound = nil
	l.mu.Unlock()
	if err != nil {
		l.a.cfg.Journal.Event(eventAudio, string(l.peer), journal.Failure, "reason", err.Error())
	}
	l.a.cfg.Journal.Event(eventAudio, string(l.peer), journal.Success, "audio", "closed")
}

// end closes the ports, forgets the keys and gives the line back.
func (l *line) end() {
	if l.keys != nil {
		l.keys.Wipe()
	}
	// Signalling of the end goes on beside; ports and line are free at once. An
	// INVITE that is being cancelled must outlive the line: its context is done,
	// its CANCEL is not.
	l.cancel()
	if l.udp != nil {
		l.udp.Close()
	}
	if l.ln != nil {
		l.ln.Close()
	}
	close(l.done)
	l.a.release(l)
	l.tasks.Wait()
	close(l.finished)
}
