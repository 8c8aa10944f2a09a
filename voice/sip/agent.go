package sip

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/emiago/sipgo"
	gosip "github.com/emiago/sipgo/sip"

	"rempart/voice/record"
)

// Config is what a user agent needs. All fields but Local are required.
type Config struct {
	// Self is our own certified address of record.
	Self AOR
	// Gateway is the gateway's inner address and SIP/TLS port.
	Gateway netip.AddrPort
	// Local is the inner address to speak from; zero lets the kernel choose.
	Local netip.Addr
	// Credentials yields our certificate with its signer, at each connection.
	Credentials func(context.Context) (tls.Certificate, error)
	// Roots is the authority of the signed policy.
	Roots *x509.CertPool
	// Incoming is called on a goroutine of its own for each call that reaches
	// us. It must end with Answer or Refuse.
	Incoming func(*Incoming)
	// Now is the wall clock for certificates; Clock is CLOCK_MONOTONIC in ns.
	Now   func() time.Time
	Clock func() int64
	// Timing of the connection; DefaultTiming serves.
	Timing Timing
}

// Timing is every time limit of the user agent.
type Timing struct {
	Dial     time.Duration // TCP and TLS to the gateway
	Register time.Duration // answer to a REGISTER
	Expires  time.Duration // life of a registration; refreshed at half
	Ping     time.Duration // RFC 5626 §3.5.1 keep-alive
	Idle     time.Duration // silence after which the connection is dead
	RetryMin time.Duration // first pause after a failure
	RetryMax time.Duration // longest pause
}

// DefaultTiming is what handsets run with.
func DefaultTiming() Timing {
	return Timing{Dial: 5 * time.Second, Register: 5 * time.Second, Expires: 2 * time.Minute, Ping: 10 * time.Second,
		Idle: 25 * time.Second, RetryMin: 50 * time.Millisecond, RetryMax: 5 * time.Second}
}

// Registration is what status shows of the signalling.
type Registration = record.Registration

// Errors that callers branch on.
var (
	// ErrNotRegistered: there is no registered connection to the gateway now.
	ErrNotRegistered = errors.New("not registered at the gateway")
	// ErrGatewayGone: the connection was lost under a call.
	ErrGatewayGone = errors.New("the connection to the gateway was lost")
	// ErrHungUp: the peer ended the call.
	ErrHungUp = errors.New("the peer hung up")
)

// Refusal is a final answer other than 2xx.
type Refusal struct {
	Status int    // RFC 3261 §21
	Phrase string // the reason phrase, for the journal
}

// Error gives the answer as it came.
func (r *Refusal) Error() string { return fmt.Sprintf("refused with %d %s", r.Status, r.Phrase) }

// Agent is the user agent. Run it once; the other methods are safe to call
// from any goroutine.
type Agent struct {
	cfg Config

	mu   sync.Mutex
	reg  Registration
	link *link // nil unless registered
	wake chan struct{}
}

// link is one connection to the gateway with the library around it.
type link struct {
	agent  *Agent
	ua     *sipgo.UserAgent
	client *sipgo.Client
	server *sipgo.Server
	conn   *watched
	local  netip.AddrPort

	mu       sync.Mutex
	dialogs  map[string]*Dialog       // by Call-ID, at most maxDialogs
	inviting map[string]chan struct{} // our unanswered calls; closed when decided
	ringing  int
}

// maxDialogs bounds dialogs and unanswered incoming calls of one connection.
const maxDialogs = 8

// NewAgent checks the configuration.
func NewAgent(cfg Config) (*Agent, error) {
	if _, err := ParseAOR(string(cfg.Self)); err != nil {
		return nil, err
	}
	if !cfg.Gateway.IsValid() || cfg.Credentials == nil || cfg.Roots == nil || cfg.Incoming == nil || cfg.Now == nil || cfg.Clock == nil {
		return nil, errors.New("cannot make a user agent of an incomplete configuration")
	}
	a := &Agent{cfg: cfg, wake: make(chan struct{})}
	a.reg = Registration{State: "connecting", Since: cfg.Clock(), Gateway: cfg.Gateway.String(), Name: string(cfg.Self)}
	return a, nil
}

// Status is the registration now.
func (a *Agent) Status() Registration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reg
}

// Changed is closed at the next change of Status.
func (a *Agent) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.wake
}

func (a *Agent) set(state, reason string, l *link, failed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.reg.State != state || a.reg.Reason != reason {
		a.reg.Since = a.cfg.Clock()
	}
	a.reg.State, a.reg.Reason, a.link = state, reason, l
	if failed {
		a.reg.Failures++
	} else if l != nil {
		a.reg.Failures = 0
	}
	close(a.wake)
	a.wake = make(chan struct{})
}

// Run keeps the handset registered until ctx ends; it returns ctx's error.
func (a *Agent) Run(ctx context.Context) error {
	pause := a.cfg.Timing.RetryMin
	for {
		registered, err := a.once(ctx)
		if ctx.Err() != nil {
			a.set("unregistered", "stopped", nil, false)
			return ctx.Err()
		}
		a.set("unregistered", err.Error(), nil, true)
		if registered {
			pause = a.cfg.Timing.RetryMin
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, a.cfg.Timing.RetryMax)
	}
}

// once opens one connection and serves it until it is lost.
func (a *Agent) once(ctx context.Context) (registered bool, err error) {
	l, err := a.open(ctx)
	if err != nil {
		return false, err
	}
	defer l.close()
	expires, err := l.register(ctx)
	if err != nil {
		return false, err
	}
	a.set("registered", "", l, false)
	ping := time.NewTicker(a.cfg.Timing.Ping)
	defer ping.Stop()
	refresh := time.NewTimer(expires / 2)
	defer refresh.Stop()
	for {
		select {
		case <-ctx.Done():
			return true, ctx.Err()
		case <-l.conn.closed:
			return true, ErrGatewayGone
		case <-ping.C:
			// A lone double CRLF is the keep-alive; the gateway answers CRLF.
			if err := l.ping(); err != nil {
				return true, fmt.Errorf("cannot keep the connection: %w", err)
			}
		case <-refresh.C:
			if expires, err = l.register(ctx); err != nil {
				return true, err
			}
			refresh.Reset(expires / 2)
		}
	}
}

func (l *link) ping() error {
	if err := l.conn.SetWriteDeadline(time.Now().Add(l.agent.cfg.Timing.Dial)); err != nil {
		return err
	}
	_, err := l.conn.Write([]byte("\r\n\r\n"))
	return err
}

// open dials the gateway and gives the connection to the library.
func (a *Agent) open(ctx context.Context) (*link, error) {
	dctx, cancel := context.WithTimeout(ctx, a.cfg.Timing.Dial)
	defer cancel()
	cert, err := a.cfg.Credentials(dctx)
	if err != nil {
		return nil, fmt.Errorf("cannot use this handset's certificate: %w", err)
	}
	var d net.Dialer
	if a.cfg.Local.IsValid() {
		d.LocalAddr = &net.TCPAddr{IP: a.cfg.Local.AsSlice()}
	}
	raw, err := d.DialContext(dctx, "tcp", a.cfg.Gateway.String())
	if err != nil {
		return nil, fmt.Errorf("cannot reach the gateway: %w", err)
	}
	tc := tls.Client(raw, ClientTLS(cert, a.cfg.Roots, a.cfg.Self.Domain(), a.cfg.Now))
	if err := tc.HandshakeContext(dctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("cannot agree on TLS with the gateway: %w", err)
	}
	l := &link{agent: a, conn: &watched{Conn: tc, closed: make(chan struct{})}, dialogs: map[string]*Dialog{}, inviting: map[string]chan struct{}{}}
	l.local, err = netip.ParseAddrPort(tc.LocalAddr().String())
	if err == nil {
		err = l.serve(dctx)
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// serve starts the library on the connection.
func (l *link) serve(ctx context.Context) (err error) {
	t := l.agent.cfg.Timing
	if l.ua, err = NewUserAgent(l.agent.cfg.Self.Domain(), Limits{Idle: t.Idle, Write: t.Dial}); err != nil {
		return err
	}
	if l.client, err = sipgo.NewClient(l.ua, sipgo.WithClientAddr(l.local.String())); err != nil {
		return err
	}
	if l.server, err = sipgo.NewServer(l.ua); err != nil {
		return err
	}
	l.server.OnInvite(l.onInvite)
	l.server.OnBye(l.onBye)
	l.server.OnAck(func(*gosip.Request, gosip.ServerTransaction) {})
	l.server.OnCancel(l.refuse(gosip.StatusCallTransactionDoesNotExists))
	l.server.OnOptions(l.refuse(gosip.StatusOK))
	l.server.OnNoRoute(l.refuse(gosip.StatusMethodNotAllowed))
	h := newHandover(l.conn)
	go func() {
		<-l.conn.closed
		h.Close()
	}()
	go l.server.ServeTLS(h) // ends with the handover; its error says only that
	select {
	case <-h.given:
		return nil
	case <-ctx.Done():
		h.Close()
		return fmt.Errorf("cannot start the connection: %w", ctx.Err())
	}
}

// close ends the connection and every dialog on it.
func (l *link) close() {
	l.agent.mu.Lock()
	if l.agent.link == l {
		l.agent.link = nil
	}
	l.agent.mu.Unlock()
	l.conn.Close()
	if l.ua != nil {
		l.ua.Close()
	}
	l.mu.Lock()
	open := make([]*Dialog, 0, len(l.dialogs))
	for _, d := range l.dialogs {
		open = append(open, d)
	}
	l.mu.Unlock()
	for _, d := range open {
		d.end(ErrGatewayGone)
	}
}

// current is the registered link.
func (a *Agent) current() (*link, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.link == nil {
		return nil, ErrNotRegistered
	}
	return a.link, nil
}
