package sip

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/emiago/sipgo"
	gosip "github.com/emiago/sipgo/sip"
)

// Invite places a call and waits for its end: the Dialog of a 2xx, a *Refusal,
// ErrNotRegistered, ErrGatewayGone, an ErrSession, or ctx's error after the
// INVITE has been cancelled. ringing (may be nil) is called at each 180.
func (a *Agent) Invite(ctx context.Context, callee AOR, callID string, offer Session, ringing func()) (*Dialog, error) {
	if err := offer.Check(); err != nil {
		return nil, err
	}
	l, err := a.current()
	if err != nil {
		return nil, err
	}
	decided, err := l.begin(callID)
	if err != nil {
		return nil, err
	}
	defer decided()
	r := l.request(gosip.INVITE, callee.URI(), callee, gosip.GenerateTagN(16), "", callID, 1)
	r.AppendHeader(gosip.NewHeader("Content-Type", "application/sdp"))
	r.SetBody(offer.Marshal())
	tx, err := l.send(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("cannot send INVITE: %w", errors.Join(ErrGatewayGone, err))
	}
	defer tx.Terminate()
	provisional := false
	for {
		select {
		case res := <-tx.Responses():
			if res.IsProvisional() {
				provisional = true
				if res.StatusCode == gosip.StatusRinging && ringing != nil {
					ringing()
				}
				continue
			}
			return l.answered(r, res, callee, callID)
		case <-tx.Done():
			return nil, fmt.Errorf("cannot get an answer to INVITE: %w", errors.Join(ErrGatewayGone, tx.Err()))
		case <-l.conn.closed:
			return nil, ErrGatewayGone
		case <-ctx.Done():
			l.cancelled(r, tx, provisional, callee, callID)
			return nil, ctx.Err()
		}
	}
}

// begin notes that a call of ours is on its way. The library handles every
// message on a goroutine of its own, so the peer's BYE can overtake the 200 it
// follows: onBye waits for the call to be decided.
func (l *link) begin(callID string) (decided func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, taken := l.inviting[callID]; taken || len(l.inviting) >= maxDialogs {
		return nil, errors.New("cannot place another call")
	}
	c := make(chan struct{})
	l.inviting[callID] = c
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.inviting, callID)
		close(c)
	}, nil
}

// answered turns a final answer into a dialog or a reason.
func (l *link) answered(r *gosip.Request, res *gosip.Response, callee AOR, callID string) (*Dialog, error) {
	if !res.IsSuccess() {
		return nil, &Refusal{Status: res.StatusCode, Phrase: res.Reason}
	}
	if res.To() == nil || tag(res.To().Params) == "" {
		return nil, errors.New("cannot accept an answer without a tag")
	}
	d := newDialog(l, callID, callee, Session{}, tag(r.From().Params), tag(res.To().Params), 1)
	if err := l.ack(d); err != nil {
		return nil, errors.Join(ErrGatewayGone, err)
	}
	answer, err := ParseSession(res.Body())
	if err == nil && answer.Keying == 0 {
		err = fmt.Errorf("cannot find where the callee agrees on keys: %w", ErrSession)
	}
	if err == nil {
		d.Remote = answer
		if !l.add(d) {
			err = errors.New("cannot hold another dialog")
		}
	}
	if err != nil {
		d.Bye(context.Background())
		return nil, err
	}
	select {
	case <-l.conn.closed: // lost before the dialog was in the table
		d.end(ErrGatewayGone)
		return nil, ErrGatewayGone
	default:
		return d, nil
	}
}

// ack acknowledges a 2xx: a request of its own, outside any transaction (RFC
// 3261 §13.2.2.4).
func (l *link) ack(d *Dialog) error {
	r := l.request(gosip.ACK, d.Peer.URI(), d.Peer, d.ourTag, d.theirTag, d.CallID, 1)
	r.SetBody(nil)
	if err := l.client.WriteRequest(r, sipgo.ClientRequestAddVia); err != nil {
		return fmt.Errorf("cannot send ACK: %w", err)
	}
	return nil
}

// cancelled takes back an INVITE (RFC 3261 §9.1). An answer that crosses the
// CANCEL is acknowledged and hung up, so that no side is left in a call.
func (l *link) cancelled(r *gosip.Request, tx gosip.ClientTransaction, provisional bool, callee AOR, callID string) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	final := func(res *gosip.Response) bool {
		if res.IsProvisional() {
			provisional = true
			return false
		}
		if d, err := l.answered(r, res, callee, callID); err == nil {
			d.Bye(ctx)
		}
		return true
	}
	// A CANCEL must not overtake its INVITE: wait for any answer first.
	for !provisional {
		select {
		case res := <-tx.Responses():
			if final(res) {
				return
			}
		case <-tx.Done():
			return
		case <-ctx.Done():
			return
		}
	}
	go l.finish(ctx, CancelOf(r)) // its answer tells nothing: the INVITE's own does
	for {
		select {
		case res := <-tx.Responses():
			if final(res) {
				return
			}
		case <-tx.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

// CancelOf is the CANCEL of a request that was sent: same Request-URI, top Via,
// From, To, Call-ID and CSeq number (RFC 3261 §9.1).
func CancelOf(sent *gosip.Request) *gosip.Request {
	r := gosip.NewRequest(gosip.CANCEL, sent.Recipient)
	if via := sent.Via(); via != nil {
		r.AppendHeader(via.Clone())
	}
	for _, h := range []gosip.Header{sent.From(), sent.To(), sent.CallID()} {
		r.AppendHeader(gosip.HeaderClone(h))
	}
	hops := gosip.MaxForwardsHeader(70)
	r.AppendHeader(&gosip.CSeqHeader{SeqNo: sent.CSeq().SeqNo, MethodName: gosip.CANCEL})
	r.AppendHeader(&hops)
	r.SetBody(nil)
	r.SetTransport(sent.Transport())
	r.SetDestination(sent.Destination())
	return r
}
