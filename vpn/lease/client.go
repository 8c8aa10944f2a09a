package lease

import (
	"net/netip"
	"time"

	"rempart/vpn/egress"
)

// state of the client.
//
//	selecting ── offer ──▶ requesting ── ACK ──▶ bound ── T1 ──▶ renewing ── ACK ──▶ bound
//	    ▲                      │ NAK, 3 tries                       │ NAK, end of lease
//	    └──────────────────────┴────────────────────────────────────┘
type state int

const (
	selecting state = iota
	requesting
	bound
	renewing
)

// Times between tries: the first, doubling to the longest (RFC 2131 section 4.1 begins at 4 s; a phone that boots begins
// earlier, within the gate's rate). A renewal is tried again at half of what is left.
const (
	firstPause   = 2 * time.Second
	longestPause = 64 * time.Second
	requestTries = 3
	leastRenewal = 15 * time.Second
)

// Held is an address that is in use until a time.
type Held struct {
	Address netip.Addr
	Router  netip.Addr
	Until   time.Duration // on the caller's clock
}

// Client is the DHCP client of one device. The zero value but for MAC begins at once.
type Client struct {
	MAC [6]byte

	state state
	xid   [4]byte
	offer Reply
	held  Held
	tries int
	pause time.Duration // the last one between discoveries; grows until a lease is there
	next  time.Duration
}

// Held returns what is held; the zero value is nothing.
func (c *Client) Held() Held { return c.held }

// Next is when Step wants to be called again.
func (c *Client) Next() time.Duration {
	if c.held != (Held{}) {
		return min(c.next, c.held.Until)
	}
	return c.next
}

// Step does what is due at a time and returns the message to send, if any. XID is a fresh random number.
func (c *Client) Step(now time.Duration, xid [4]byte) []byte {
	if c.held != (Held{}) && now >= c.held.Until {
		c.held = Held{}
		c.restart(now)
	}
	if now < c.next {
		return nil
	}
	facts := egress.LinkFacts{MAC: c.MAC, Addr4: c.held.Address}
	if c.state == requesting && c.tries >= requestTries {
		c.back()
	}
	switch c.state {
	case selecting:
		c.pause = min(max(2*c.pause, firstPause), longestPause)
		c.xid, c.next = xid, now+c.pause
		return facts.DHCP(egress.DHCPDiscover, c.xid, netip.Addr{}, netip.Addr{})
	case requesting:
		c.tries++
		c.next = now + firstPause
		return facts.DHCP(egress.DHCPSelect, c.xid, c.offer.Address, c.offer.Server)
	default: // bound, renewing
		c.state, c.xid = renewing, xid
		c.next = now + max((c.held.Until-now)/2, leastRenewal)
		return facts.DHCP(egress.DHCPRenew, c.xid, netip.Addr{}, netip.Addr{})
	}
}

// unsentPause is how soon a message is tried again that did not leave the device: a phone that boots is closed to everyone
// until all of it runs.
const unsentPause = 250 * time.Millisecond

// Unsent takes back the message of the last Step, which was refused: no server is waited for.
func (c *Client) Unsent(now time.Duration) {
	c.next = now + unsentPause
	switch c.state {
	case selecting:
		c.pause /= 2
	case requesting:
		c.tries--
	}
}

// Heard takes a reply. What does not belong to the question that was asked last is passed over.
func (c *Client) Heard(now time.Duration, r Reply) {
	if r.XID != c.xid {
		return
	}
	switch {
	case c.state == selecting && r.Kind == Offer:
		c.state, c.offer, c.tries, c.next = requesting, r, 0, now
	case c.state == requesting && r.Server != c.offer.Server:
	case c.state == requesting && r.Kind == ACK && r.Address == c.offer.Address, c.state == renewing && r.Kind == ACK && r.Address == c.held.Address:
		c.state, c.pause = bound, 0
		c.held = Held{Address: r.Address, Router: r.Router, Until: now + r.Lease}
		c.next = now + r.Lease/2
		if r.Renew > 0 {
			c.next = now + r.Renew
		}
	case r.Kind == NAK && (c.state == requesting || c.state == renewing):
		c.held = Held{}
		c.restart(now)
	}
}

// Refuse gives back a lease that cannot be used, and asks again later.
func (c *Client) Refuse(now time.Duration) {
	c.held = Held{}
	c.restart(now)
}

// restart asks for an address anew, after a pause that grows while no lease is there: who answers every request with a
// refusal gets no more requests for it.
func (c *Client) restart(now time.Duration) {
	c.back()
	c.pause = min(max(2*c.pause, firstPause), longestPause)
	c.next = now + c.pause
}

func (c *Client) back() { c.state, c.tries, c.offer = selecting, 0, Reply{} }
