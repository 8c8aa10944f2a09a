package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/emiago/sipgo"
	gosip "github.com/emiago/sipgo/sip"

	"rempart/gateway/registrar"
	"rempart/internal/journal"
	"rempart/voice/sip"
)

// Config is what the proxy needs; every field but Journal is required.
type Config struct {
	// Domain is the SIP domain, as certified.
	Domain string
	// Roots is the authority of the signed policy.
	Roots *x509.CertPool
	// Credentials yields the gateway's certificate, at each handshake.
	Credentials func(context.Context) (tls.Certificate, error)
	// Known says whether a name has been enrolled at this gateway.
	Known func(sip.AOR) bool
	// Table is where registrations are kept.
	Table *registrar.Table
	// Journal takes the audit events.
	Journal *journal.Journal
	// Now is the wall clock, for certificates.
	Now func() time.Time
	// Answer bounds how long a call may ring; zero means one minute.
	Answer time.Duration
	// Unheard bounds the wait for a handset's first word on a request; then it counts as not
	// registered. Zero means three seconds: longer than a lost packet costs, shorter than a person waits.
	Unheard time.Duration
}

// maxExpires bounds a registration's life.
const maxExpires = 5 * time.Minute

// maxPending bounds unanswered requests of one party.
const maxPending = 8

// Proxy is the registrar and proxy.
type Proxy struct {
	cfg    Config
	client *sipgo.Client
	server *sipgo.Server
	ua     *sipgo.UserAgent
	ln     *listener

	mu      sync.Mutex
	pending map[sip.AOR]int
}

// New checks the configuration.
func New(cfg Config) (*Proxy, error) {
	if cfg.Domain == "" || cfg.Roots == nil || cfg.Credentials == nil || cfg.Known == nil || cfg.Table == nil || cfg.Now == nil {
		return nil, errors.New("cannot make a proxy of an incomplete configuration")
	}
	if cfg.Answer == 0 {
		cfg.Answer = time.Minute
	}
	if cfg.Unheard == 0 {
		cfg.Unheard = 3 * time.Second
	}
	return &Proxy{cfg: cfg, pending: map[sip.AOR]int{}}, nil
}

// Serve takes TCP connections from every listener, one per inner address, and
// serves them until ctx ends; it closes them. Call it once.
func (p *Proxy) Serve(ctx context.Context, lns ...net.Listener) (err error) {
	if len(lns) == 0 {
		return errors.New("cannot serve calls on no address")
	}
	if p.ua, err = sip.NewUserAgent(p.cfg.Domain, sip.Limits{Idle: idleLimit, Write: writeLimit}); err != nil {
		return fmt.Errorf("cannot start the proxy: %w", err)
	}
	defer p.ua.Close()
	if p.client, err = sipgo.NewClient(p.ua, sipgo.WithClientAddr(lns[0].Addr().String())); err != nil {
		return fmt.Errorf("cannot start the proxy: %w", err)
	}
	if p.server, err = sipgo.NewServer(p.ua); err != nil {
		return fmt.Errorf("cannot start the proxy: %w", err)
	}
	p.ln = newListener(p, lns)
	p.server.OnRegister(p.certified(p.register))
	p.server.OnInvite(p.certified(p.relay))
	p.server.OnBye(p.certified(p.relay))
	p.server.OnAck(p.ack)
	p.server.OnCancel(func(r *gosip.Request, tx gosip.ServerTransaction) { refuse(tx, r, 481) })
	p.server.OnNoRoute(func(r *gosip.Request, tx gosip.ServerTransaction) { refuse(tx, r, 405) })
	ended := make(chan error, 1+len(lns))
	for _, raw := range lns {
		go func() { ended <- p.ln.run(ctx, raw) }()
	}
	go func() { ended <- p.server.ServeTLS(p.ln) }()
	running := cap(ended)
	select {
	case <-ctx.Done():
	case err = <-ended:
		err = fmt.Errorf("cannot serve calls: %w", err)
		running--
	}
	p.ln.Close()
	for range running {
		<-ended
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// certified runs a handler only for requests whose sender is proven and whose
// From is that sender.
func (p *Proxy) certified(h func(sip.AOR, *gosip.Request, gosip.ServerTransaction)) sipgo.RequestHandler {
	return func(r *gosip.Request, tx gosip.ServerTransaction) {
		sender, status := p.sender(r)
		if status != 0 {
			refuse(tx, r, status)
			return
		}
		if !p.enter(sender) {
			refuse(tx, r, 503)
			return
		}
		defer p.exit(sender)
		h(sender, r, tx)
	}
}

// sender is the certified sender of a request, or the status to refuse it with.
func (p *Proxy) sender(r *gosip.Request) (sip.AOR, int) {
	sender, ok := p.ln.sender(r.Source())
	if !ok {
		return "", 403
	}
	from, err := sip.From(r)
	if err != nil || from != sender {
		claimed := ""
		if h := r.From(); h != nil {
			claimed = h.Address.String()
		}
		p.cfg.Journal.Event(eventForged, string(sender), journal.Refused, "method", r.Method.String(), "claimed", claimed)
		return "", 403
	}
	if !p.cfg.Known(sender) {
		return "", 403
	}
	if len(r.GetHeaders("Via")) != 1 {
		return "", 400 // a handset is the first hop, always
	}
	if _, err := sip.CallID(r); err != nil {
		return "", 400
	}
	if r.CSeq() == nil || r.CSeq().MethodName != r.Method {
		return "", 400
	}
	return sender, 0
}

func (p *Proxy) enter(a sip.AOR) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pending[a] >= maxPending {
		return false
	}
	p.pending[a]++
	return true
}

func (p *Proxy) exit(a sip.AOR) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pending[a]--; p.pending[a] <= 0 {
		delete(p.pending, a)
	}
}

// register binds the sender to its connection (RFC 3261 §10.3). The contact is
// the connection, whatever a Contact header says.
func (p *Proxy) register(sender sip.AOR, r *gosip.Request, tx gosip.ServerTransaction) {
	if r.Recipient.String() != "sip:"+p.cfg.Domain {
		refuse(tx, r, 404)
		return
	}
	if to, err := sip.To(r); err != nil || to != sender {
		claimed := ""
		if h := r.To(); h != nil {
			claimed = h.Address.String()
		}
		p.cfg.Journal.Event(eventForged, string(sender), journal.Refused, "method", "REGISTER", "claimed", claimed)
		refuse(tx, r, 403)
		return
	}
	ttl := maxExpires
	if h := r.GetHeader("Expires"); h != nil {
		n, err := strconv.ParseUint(h.Value(), 10, 16)
		if err != nil {
			refuse(tx, r, 400)
			return
		}
		ttl = min(ttl, time.Duration(n)*time.Second)
	}
	if ttl == 0 {
		p.cfg.Table.Unregister(sender, r.Source())
		p.cfg.Journal.Event(eventRegister, string(sender), journal.Success, "expires", "0")
	} else {
		_, before := p.cfg.Table.Lookup(sender)
		if err := p.cfg.Table.Register(sender, r.Source(), ttl); err != nil {
			p.cfg.Journal.Event(eventRegister, string(sender), journal.Refused, "reason", err.Error())
			refuse(tx, r, 503)
			return
		}
		if _, open := p.ln.sender(r.Source()); !open {
			p.cfg.Table.Drop(r.Source()) // it ended meanwhile
		}
		if !before {
			p.cfg.Journal.Event(eventRegister, string(sender), journal.Success)
		}
	}
	res := gosip.NewResponseFromRequest(r, 200, sip.Phrase(200), nil)
	expires := gosip.ExpiresHeader(ttl / time.Second)
	res.AppendHeader(&gosip.ContactHeader{Address: sender.URI()})
	res.AppendHeader(&expires)
	tx.Respond(res) // a failed write is the end of the connection, which drops the binding
}

// refuse answers with a failure; a failed write is the end of the connection.
func refuse(tx gosip.ServerTransaction, r *gosip.Request, status int) {
	tx.Respond(gosip.NewResponseFromRequest(r, status, sip.Phrase(status), nil))
}
