package proxy

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/emiago/sipgo"
	gosip "github.com/emiago/sipgo/sip"

	"rempart/gateway/registrar"
	"rempart/internal/journal"
	"rempart/voice/sip"
)

// route is where a request goes, or the status to refuse it with: an unknown
// name is 404, a known one without a connection 480.
func (p *Proxy) route(r *gosip.Request) (registrar.Binding, int) {
	callee, err := sip.AOROf(&r.Recipient)
	if err != nil || callee.Domain() != p.cfg.Domain || !p.cfg.Known(callee) {
		return registrar.Binding{}, 404
	}
	to, err := sip.To(r)
	if err != nil || to != callee {
		return registrar.Binding{}, 400
	}
	b, ok := p.cfg.Table.Lookup(callee)
	if !ok {
		return registrar.Binding{}, 480
	}
	return b, 0
}

// forward is the request as the callee will see it: written anew from what
// was checked.
func forward(sender sip.AOR, r *gosip.Request, to registrar.Binding) (*gosip.Request, int) {
	hops := uint32(70)
	if h := r.MaxForwards(); h != nil {
		hops = h.Val()
	}
	if hops == 0 {
		return nil, 483
	}
	f := gosip.NewRequest(r.Method, to.AOR.URI())
	f.AppendHeader(r.Via().Clone())
	from := &gosip.FromHeader{Address: sender.URI()}
	dest := &gosip.ToHeader{Address: to.AOR.URI()}
	if !copyTag(r.From().Params, &from.Params) || !copyTag(r.To().Params, &dest.Params) {
		return nil, 400
	}
	id := gosip.CallIDHeader(r.CallID().Value())
	left := gosip.MaxForwardsHeader(min(hops, 70) - 1)
	f.AppendHeader(from)
	f.AppendHeader(dest)
	f.AppendHeader(&id)
	f.AppendHeader(&gosip.CSeqHeader{SeqNo: r.CSeq().SeqNo, MethodName: r.Method})
	f.AppendHeader(&left)
	f.AppendHeader(&gosip.ContactHeader{Address: sender.URI()})
	body(r, f)
	f.SetTransport("TLS")
	f.SetDestination(to.Source)
	return f, 0
}

// body carries a session description over and no other kind of content.
func body(from, to gosip.Message) {
	b := from.Body()
	if len(b) == 0 || len(b) > sip.MaxSDP {
		to.SetBody(nil)
		return
	}
	to.AppendHeader(gosip.NewHeader("Content-Type", "application/sdp"))
	to.SetBody(b)
}

// maxTag bounds a tag, in bytes.
const maxTag = 64

// copyTag copies a tag of token characters (RFC 3261 §25.1); false refuses it.
func copyTag(from gosip.HeaderParams, to *gosip.HeaderParams) bool {
	t, ok := from.Get("tag")
	if !ok {
		return true
	}
	if t == "" || len(t) > maxTag {
		return false
	}
	for i := range len(t) {
		c := t[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	to.Add("tag", t)
	return true
}

// relay sends a request on and its answers back (RFC 3261 §16.6, §16.7).
func (p *Proxy) relay(sender sip.AOR, r *gosip.Request, tx gosip.ServerTransaction) {
	to, status := p.route(r)
	var f *gosip.Request
	if status == 0 {
		f, status = forward(sender, r, to)
	}
	if status != 0 {
		p.done(sender, r, status)
		refuse(tx, r, status)
		return
	}
	cancelled := make(chan struct{})
	if r.IsInvite() && !tx.OnCancel(func(*gosip.Request) { close(cancelled) }) {
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), p.cfg.Answer)
	defer stop()
	out, err := p.client.TransactionRequest(ctx, f, sipgo.ClientRequestAddVia)
	if err != nil {
		// The connection went between the look-up and the write.
		p.cfg.Table.Drop(to.Source)
		p.done(sender, r, 480)
		refuse(tx, r, 480)
		return
	}
	defer out.Terminate()
	heard := false
	silence := time.NewTimer(p.cfg.Unheard)
	defer silence.Stop()
	for {
		select {
		case <-silence.C:
			if heard {
				continue
			}
			// Not even 100 Trying: switched off or out of reach, and TCP does not know yet.
			p.done(sender, r, 480)
			refuse(tx, r, 480)
			p.takeBack(f, out, heard)
			return
		case res := <-out.Responses():
			if res.Source() != to.Source {
				continue // not from the connection that was asked
			}
			heard = true
			back, ok := backward(r, res, to.AOR)
			if !ok {
				p.done(sender, r, 502)
				refuse(tx, r, 502)
				return
			}
			if back == nil {
				continue // 100 Trying is hop by hop
			}
			if err := tx.Respond(back); err != nil {
				p.takeBack(f, out, heard)
				return
			}
			if !res.IsProvisional() {
				p.done(sender, r, res.StatusCode)
				return
			}
		case <-out.Done():
			status := 480
			if errors.Is(out.Err(), gosip.ErrTransactionTimeout) {
				status = 408
			}
			p.done(sender, r, status)
			refuse(tx, r, status)
			return
		case <-ctx.Done():
			p.done(sender, r, 408)
			refuse(tx, r, 408)
			p.takeBack(f, out, heard)
			return
		case <-cancelled:
			p.done(sender, r, 487)
			p.takeBack(f, out, heard)
			return
		case <-tx.Done(): // the caller's connection ended
			p.takeBack(f, out, heard)
			return
		}
	}
}

// backward is an answer as the caller will see it: nil for 100, false for one
// that cannot be carried.
func backward(r *gosip.Request, res *gosip.Response, callee sip.AOR) (*gosip.Response, bool) {
	if res.StatusCode == 100 {
		return nil, true
	}
	if res.StatusCode < 100 || res.StatusCode > 699 {
		return nil, false
	}
	back := gosip.NewResponseFromRequest(r, res.StatusCode, sip.Phrase(res.StatusCode), nil)
	if to := res.To(); to != nil && back.To() != nil {
		var params gosip.HeaderParams
		if !copyTag(to.Params, &params) {
			return nil, false
		}
		back.To().Params = params
	}
	back.AppendHeader(&gosip.ContactHeader{Address: callee.URI()})
	body(res, back)
	return back, true
}

// takeBack cancels a forwarded INVITE and waits for it to end. A call that was
// answered in that moment is hung up by its caller, who has seen no answer: the
// callee's keying wait ends it too.
func (p *Proxy) takeBack(f *gosip.Request, out gosip.ClientTransaction, heard bool) {
	if !f.IsInvite() {
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Second)
	defer stop()
	sent := false
	for {
		if heard && !sent {
			sent = true
			keep := func(*sipgo.Client, *gosip.Request) error { return nil }
			c, err := p.client.TransactionRequest(ctx, sip.CancelOf(f), keep)
			if err != nil {
				return
			}
			defer c.Terminate()
			go drain(ctx, c)
		}
		select {
		case res := <-out.Responses():
			heard = true
			if !res.IsProvisional() {
				return
			}
		case <-out.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

// drain takes the answers of a transaction whose answers tell nothing.
func drain(ctx context.Context, tx gosip.ClientTransaction) {
	for {
		select {
		case <-tx.Responses():
		case <-tx.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

// ack carries the acknowledgement of a 2xx; it has no answer, so a bad one is
// dropped.
func (p *Proxy) ack(r *gosip.Request, _ gosip.ServerTransaction) {
	sender, status := p.sender(r)
	if status != 0 {
		return
	}
	to, status := p.route(r)
	if status != 0 {
		return
	}
	f, status := forward(sender, r, to)
	if status != 0 {
		return
	}
	// A failed write is the end of that connection; the callee's dialog ends with it.
	p.client.WriteRequest(f, sipgo.ClientRequestAddVia)
}

// done records what came of a call.
func (p *Proxy) done(sender sip.AOR, r *gosip.Request, status int) {
	if !r.IsInvite() {
		return
	}
	outcome := journal.Success
	if status >= 300 {
		outcome = journal.Refused
	}
	p.cfg.Journal.Event(eventCall, string(sender), outcome, "status", strconv.Itoa(status))
}
