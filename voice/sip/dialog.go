package sip

import (
	"context"
	"fmt"
	"sync"
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

// Dialog is an answered call (RFC 3261 §12). It ends by the peer's BYE, by
// ours, or with its connection.
type Dialog struct {
	// CallID names the call on both sides.
	CallID string
	// Peer is the other party as dialled or as certified to the gateway.
	Peer AOR
	// Remote is the peer's session description.
	Remote Session

	link             *link
	ourTag, theirTag string
	seq              uint32 // our last CSeq
	once             sync.Once
	done             chan struct{}
	err              error
	byeOnce          sync.Once
	byeTimeout       time.Duration
}

func newDialog(l *link, callID string, peer AOR, remote Session, ourTag, theirTag string, seq uint32) *Dialog {
	return &Dialog{CallID: callID, Peer: peer, Remote: remote, link: l, ourTag: ourTag, theirTag: theirTag,
		seq: seq, done: make(chan struct{}), byeTimeout: 2 * time.Second}
}

// Done is closed when the dialog has ended; then Err says how.
func (d *Dialog) Done() <-chan struct{} { return d.done }

// Err is ErrHungUp, ErrGatewayGone or nil for our own BYE; call it after Done.
func (d *Dialog) Err() error {
	<-d.done
	return d.err
}

// Bye hangs up. It returns when the peer's answer has come or after two
// seconds; the dialog is over either way. A second Bye does nothing.
func (d *Dialog) Bye(ctx context.Context) error {
	var err error
	d.byeOnce.Do(func() {
		select {
		case <-d.done:
			return
		default:
		}
		d.end(nil)
		ctx, cancel := context.WithTimeout(ctx, d.byeTimeout)
		defer cancel()
		r := d.link.request(gosip.BYE, d.Peer.URI(), d.Peer, d.ourTag, d.theirTag, d.CallID, d.seq+1)
		var res *gosip.Response
		if res, err = d.link.do(ctx, r); err == nil && !res.IsSuccess() {
			err = fmt.Errorf("cannot hang up: %w", &Refusal{Status: res.StatusCode, Phrase: res.Reason})
		}
	})
	return err
}

// end is the one way out.
func (d *Dialog) end(err error) {
	d.once.Do(func() {
		d.err = err
		d.link.mu.Lock()
		if d.link.dialogs[d.CallID] == d {
			delete(d.link.dialogs, d.CallID)
		}
		d.link.mu.Unlock()
		close(d.done)
	})
}

// add takes a dialog into the bounded table.
func (l *link) add(d *Dialog) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, taken := l.dialogs[d.CallID]; taken || len(l.dialogs) >= maxDialogs {
		return false
	}
	l.dialogs[d.CallID] = d
	return true
}

// find is the dialog a request belongs to: same Call-ID, both tags, and From
// the party the call is with.
func (l *link) find(r *gosip.Request) *Dialog {
	id, err := CallID(r)
	if err != nil {
		return nil
	}
	from, err := From(r)
	if err != nil {
		return nil
	}
	l.mu.Lock()
	d := l.dialogs[id]
	l.mu.Unlock()
	if d == nil || d.Peer != from || tag(r.From().Params) != d.theirTag || r.To() == nil || tag(r.To().Params) != d.ourTag {
		return nil
	}
	return d
}

func tag(p gosip.HeaderParams) string {
	t, _ := p.Get("tag")
	return t
}

// onBye ends the dialog that the request names and nothing else.
func (l *link) onBye(r *gosip.Request, tx gosip.ServerTransaction) {
	d := l.find(r)
	if d == nil && l.undecided(r) {
		d = l.find(r)
	}
	if d == nil {
		respond(tx, r, gosip.StatusCallTransactionDoesNotExists)
		return
	}
	// First the end, then the answer: the microphone does not wait for a write.
	d.end(ErrHungUp)
	respond(tx, r, gosip.StatusOK)
}

// undecided waits until a call of ours that the request may belong to is
// answered or refused; false when there is none.
func (l *link) undecided(r *gosip.Request) bool {
	id, err := CallID(r)
	if err != nil {
		return false
	}
	l.mu.Lock()
	c := l.inviting[id]
	l.mu.Unlock()
	if c == nil {
		return false
	}
	select {
	case <-c:
		return true
	case <-time.After(2 * time.Second):
		return false
	}
}
