package sip

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/emiago/sipgo"
	gosip "github.com/emiago/sipgo/sip"
)

// request is one of ours, complete but for what its method adds. Every request
// goes to the gateway over the link, whatever its Request-URI.
func (l *link) request(method gosip.RequestMethod, uri gosip.Uri, to AOR, fromTag, toTag, callID string, seq uint32) *gosip.Request {
	r := gosip.NewRequest(method, uri)
	from := &gosip.FromHeader{Address: l.agent.cfg.Self.URI()}
	from.Params.Add("tag", fromTag)
	dest := &gosip.ToHeader{Address: to.URI()}
	if toTag != "" {
		dest.Params.Add("tag", toTag)
	}
	id := gosip.CallIDHeader(callID)
	hops := gosip.MaxForwardsHeader(70)
	r.AppendHeader(from)
	r.AppendHeader(dest)
	r.AppendHeader(&id)
	r.AppendHeader(&gosip.CSeqHeader{SeqNo: seq, MethodName: method})
	r.AppendHeader(&hops)
	r.AppendHeader(&gosip.ContactHeader{Address: l.agent.cfg.Self.URI()})
	r.SetTransport("TLS")
	r.SetDestination(l.conn.RemoteAddr().String())
	return r
}

// send starts a client transaction over the link.
func (l *link) send(ctx context.Context, r *gosip.Request) (gosip.ClientTransaction, error) {
	if r.Body() == nil {
		r.SetBody(nil)
	}
	return l.client.TransactionRequest(ctx, r, sipgo.ClientRequestAddVia)
}

// do sends a request and waits for its final answer.
func (l *link) do(ctx context.Context, r *gosip.Request) (*gosip.Response, error) {
	tx, err := l.send(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("cannot send %s: %w", r.Method, err)
	}
	return l.wait(ctx, r, tx)
}

// finish sends a request that already carries its Via and waits for its answer.
func (l *link) finish(ctx context.Context, r *gosip.Request) (*gosip.Response, error) {
	keep := func(*sipgo.Client, *gosip.Request) error { return nil }
	tx, err := l.client.TransactionRequest(ctx, r, keep)
	if err != nil {
		return nil, fmt.Errorf("cannot send %s: %w", r.Method, err)
	}
	return l.wait(ctx, r, tx)
}

// wait is the final answer of a transaction.
func (l *link) wait(ctx context.Context, r *gosip.Request, tx gosip.ClientTransaction) (*gosip.Response, error) {
	defer tx.Terminate()
	for {
		select {
		case res := <-tx.Responses():
			if res.IsProvisional() {
				continue
			}
			return res, nil
		case <-tx.Done():
			return nil, fmt.Errorf("cannot get an answer to %s: %w", r.Method, errors.Join(ErrGatewayGone, tx.Err()))
		case <-l.conn.closed:
			return nil, ErrGatewayGone
		case <-ctx.Done():
			return nil, fmt.Errorf("cannot wait for the answer to %s: %w", r.Method, ctx.Err())
		}
	}
}

// register binds our name to this connection (RFC 3261 §10) and returns for
// how long.
func (l *link) register(ctx context.Context) (time.Duration, error) {
	cfg := l.agent.cfg
	ctx, cancel := context.WithTimeout(ctx, cfg.Timing.Register)
	defer cancel()
	r := l.request(gosip.REGISTER, gosip.Uri{Scheme: "sip", Host: cfg.Self.Domain()}, cfg.Self,
		gosip.GenerateTagN(16), "", gosip.GenerateTagN(22), 1)
	expires := gosip.ExpiresHeader(max(1, uint32(cfg.Timing.Expires/time.Second)))
	r.AppendHeader(&expires)
	res, err := l.do(ctx, r)
	if err != nil {
		return 0, err
	}
	if !res.IsSuccess() {
		return 0, fmt.Errorf("cannot register: %w", &Refusal{Status: res.StatusCode, Phrase: res.Reason})
	}
	granted := cfg.Timing.Expires
	if h := res.GetHeader("Expires"); h != nil {
		if n, err := strconv.ParseUint(h.Value(), 10, 16); err == nil && n > 0 {
			granted = min(granted, time.Duration(n)*time.Second)
		}
	}
	return granted, nil
}

// refuse answers a request with one status.
func (l *link) refuse(status int) sipgo.RequestHandler {
	return func(r *gosip.Request, tx gosip.ServerTransaction) { respond(tx, r, status) }
}

// respond answers; a failure to write shows as the end of the connection.
func respond(tx gosip.ServerTransaction, r *gosip.Request, status int) error {
	return tx.Respond(gosip.NewResponseFromRequest(r, status, Phrase(status), nil))
}

// Phrase is the reason phrase of the answers this network gives (RFC 3261 §21).
func Phrase(status int) string {
	switch status {
	case 100:
		return "Trying"
	case 180:
		return "Ringing"
	case 200:
		return "OK"
	case 400:
		return "Bad Request"
	case 403:
		return "Forbidden"
	case 404:
		return "Not Found"
	case 405:
		return "Method Not Allowed"
	case 408:
		return "Request Timeout"
	case 480:
		return "Temporarily Unavailable"
	case 481:
		return "Call/Transaction Does Not Exist"
	case 483:
		return "Too Many Hops"
	case 486:
		return "Busy Here"
	case 487:
		return "Request Terminated"
	case 488:
		return "Not Acceptable Here"
	case 503:
		return "Service Unavailable"
	case 603:
		return "Decline"
	}
	return "Status " + strconv.Itoa(status)
}
