package sip

import (
	"errors"
	"fmt"
	"sync"

	gosip "github.com/emiago/sipgo/sip"
)

// Incoming is a call that has reached us and is not answered yet. Exactly one
// of Answer and Refuse ends it.
type Incoming struct {
	// CallID names the call on both sides.
	CallID string
	// From is the caller as the gateway has certified it. The keys will say
	// whether that is true.
	From AOR
	// Offer is the caller's session description.
	Offer Session

	link   *link
	req    *gosip.Request
	tx     gosip.ServerTransaction
	ourTag string

	once      sync.Once
	final     chan struct{} // closed by Answer and Refuse
	cancelled chan struct{}
}

// ErrCancelled: the caller gave up, or the connection was lost, first.
var ErrCancelled = errors.New("the caller gave up")

// Cancelled is closed when the caller has given up.
func (in *Incoming) Cancelled() <-chan struct{} { return in.cancelled }

// GatewayGone is closed when the connection the call came on is lost.
func (in *Incoming) GatewayGone() <-chan struct{} { return in.link.conn.closed }

func (in *Incoming) response(status int) *gosip.Response {
	res := gosip.NewResponseFromRequest(in.req, status, Phrase(status), nil)
	if to := res.To(); to != nil {
		to.Params.Remove("tag")
		to.Params.Add("tag", in.ourTag)
	}
	res.AppendHeader(&gosip.ContactHeader{Address: in.link.agent.cfg.Self.URI()})
	return res
}

// Ring tells the caller that we ring (180).
func (in *Incoming) Ring() error {
	if err := in.tx.Respond(in.response(gosip.StatusRinging)); err != nil {
		return fmt.Errorf("cannot say that we ring: %w", err)
	}
	return nil
}

// Answer accepts the call with our session description (200).
func (in *Incoming) Answer(answer Session) (*Dialog, error) {
	if err := answer.Check(); err != nil {
		return nil, err
	}
	select {
	case <-in.cancelled:
		return nil, ErrCancelled
	default:
	}
	d := newDialog(in.link, in.CallID, in.From, in.Offer, in.ourTag, tag(in.req.From().Params), 0)
	if !in.link.add(d) {
		return nil, errors.New("cannot hold another dialog")
	}
	res := in.response(gosip.StatusOK)
	res.AppendHeader(gosip.NewHeader("Content-Type", "application/sdp"))
	res.SetBody(answer.Marshal())
	if err := in.tx.Respond(res); err != nil {
		d.end(ErrGatewayGone)
		return nil, fmt.Errorf("cannot answer: %w", errors.Join(ErrCancelled, err))
	}
	in.once.Do(func() { close(in.final) })
	select {
	case <-in.link.conn.closed:
		d.end(ErrGatewayGone)
	default:
	}
	return d, nil
}

// Refuse ends the call with a final status of 400 or more.
func (in *Incoming) Refuse(status int) error {
	err := in.tx.Respond(in.response(status))
	in.once.Do(func() { close(in.final) })
	if err != nil {
		return fmt.Errorf("cannot refuse: %w", err)
	}
	return nil
}

// onInvite checks an INVITE and hands it on. The library ends the transaction
// when this returns, so it stays until the final answer.
func (l *link) onInvite(r *gosip.Request, tx gosip.ServerTransaction) {
	cancelled := make(chan struct{})
	var once sync.Once
	giveUp := func() { once.Do(func() { close(cancelled) }) }
	if !tx.OnCancel(func(*gosip.Request) { giveUp() }) {
		return // cancelled before we saw it; the library has answered 487
	}
	in, status := l.incoming(r, tx)
	if status != 0 {
		respond(tx, r, status)
		return
	}
	in.cancelled = cancelled
	defer func() {
		l.mu.Lock()
		l.ringing--
		l.mu.Unlock()
	}()
	go l.agent.cfg.Incoming(in)
	select {
	case <-in.final:
	case <-cancelled:
	case <-l.conn.closed:
	case <-tx.Done():
		giveUp()
	}
}

// incoming reads what we need from an INVITE, or says with which status to
// refuse it. On success one unanswered call more is counted.
func (l *link) incoming(r *gosip.Request, tx gosip.ServerTransaction) (*Incoming, int) {
	if u, err := AOROf(&r.Recipient); err != nil || u != l.agent.cfg.Self {
		return nil, gosip.StatusNotFound
	}
	from, err := From(r)
	if err != nil || tag(r.From().Params) == "" {
		return nil, gosip.StatusBadRequest
	}
	to, err := To(r)
	if err != nil || to != l.agent.cfg.Self {
		return nil, gosip.StatusBadRequest
	}
	if tag(r.To().Params) != "" {
		// A change of a running call: this profile has none.
		return nil, gosip.StatusNotAcceptableHere
	}
	id, err := CallID(r)
	if err != nil {
		return nil, gosip.StatusBadRequest
	}
	offer, err := ParseSession(r.Body())
	if err != nil || offer.Keying != 0 {
		return nil, gosip.StatusNotAcceptableHere
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, taken := l.dialogs[id]; taken || l.ringing >= maxDialogs {
		return nil, gosip.StatusBusyHere
	}
	l.ringing++
	return &Incoming{CallID: id, From: from, Offer: offer, link: l, req: r, tx: tx,
		ourTag: gosip.GenerateTagN(16), final: make(chan struct{})}, 0
}
