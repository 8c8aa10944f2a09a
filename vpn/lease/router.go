package lease

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Advertisement is what is read of a router advertisement: who the router is, for how long it routes, and the first prefix
// that addresses may be made of.
type Advertisement struct {
	Router   netip.Addr    // link-local
	Lifetime time.Duration // 0: it is no router (any more)
	Prefix   netip.Prefix  // zero: it names none
	Valid    time.Duration // of the prefix
}

// Solicitation is a router solicitation (RFC 4861 section 4.1) with the source's link address, which every frame shows anyway:
// a router that answers to the device alone need not ask for it first. The kernel adds the checksum.
func Solicitation(mac [6]byte) []byte {
	return append([]byte{133, 0, 0, 0, 0, 0, 0, 0, 1, 1}, mac[:]...)
}

// ParseAdvertisement reads the ICMPv6 message of an advertisement that came from an address. Routes (RFC 4191), name servers,
// MTU, captive portals and everything else that it may carry are passed over by their length.
func ParseAdvertisement(b []byte, from netip.Addr) (Advertisement, error) {
	a, err := parseAdvertisement(b, from)
	if err != nil {
		return Advertisement{}, fmt.Errorf("cannot read a router advertisement: %w", err)
	}
	return a, nil
}

func parseAdvertisement(b []byte, from netip.Addr) (Advertisement, error) {
	if len(b) < 16 || len(b) > maxReply || b[0] != 134 || b[1] != 0 {
		return Advertisement{}, fmt.Errorf("%d bytes of another message", len(b))
	}
	if !from.Is6() || !from.IsLinkLocalUnicast() || from.Zone() != "" {
		return Advertisement{}, fmt.Errorf("%v is no link-local address", from)
	}
	a := Advertisement{Router: from, Lifetime: time.Duration(binary.BigEndian.Uint16(b[6:])) * time.Second}
	for b = b[16:]; len(b) > 0; {
		if len(b) < 8 || b[1] == 0 || len(b) < 8*int(b[1]) {
			return Advertisement{}, errors.New("an option is cut")
		}
		option := b[:8*int(b[1])]
		b = b[len(option):]
		if option[0] != 3 || a.Prefix.IsValid() {
			continue
		}
		if len(option) != 32 {
			return Advertisement{}, fmt.Errorf("a prefix of %d bytes", len(option))
		}
		const autonomous = 0x40
		p := netip.PrefixFrom(netip.AddrFrom16([16]byte(option[16:])), int(option[2]))
		valid := time.Duration(binary.BigEndian.Uint32(option[4:])) * time.Second
		if option[3]&autonomous == 0 || p.Bits() != 64 || !unicast6(p.Addr()) || p.Masked() != p || valid < Shortest {
			continue // not of use; another one may be
		}
		a.Prefix, a.Valid = p, min(valid, Longest)
	}
	return a, nil
}

// unicast6 tells a global address: not the low ::/64 with loopback and mapped IPv4 in it, not link-local, no group.
func unicast6(a netip.Addr) bool {
	b := a.As16()
	return [8]byte(b[:8]) != [8]byte{} && !a.IsLinkLocalUnicast() && !a.IsMulticast() && !a.Is4In6()
}

// Times of a host that looks for routers (RFC 4861 section 10): three solicitations four seconds apart, then now and then.
const (
	solicitPause   = 4 * time.Second
	solicitTries   = 3
	solicitSeldom  = time.Minute
	leastRouterFor = time.Minute
)

// Host makes an address of what routers advertise. The zero value but for MAC begins at once.
type Host struct {
	MAC [6]byte

	held   Held
	prefix netip.Prefix
	tries  int
	next   time.Duration
}

// Held returns what is held; the zero value is nothing.
func (h *Host) Held() Held { return h.held }

// Next is when Step wants to be called again.
func (h *Host) Next() time.Duration {
	if h.held != (Held{}) {
		return min(h.next, h.held.Until)
	}
	return h.next
}

// Step does what is due at a time and returns the message to send, if any.
func (h *Host) Step(now time.Duration) []byte {
	if h.held != (Held{}) && now >= h.held.Until {
		h.lose(now)
	}
	if now < h.next {
		return nil
	}
	h.tries++
	h.next = now + solicitPause
	if h.tries >= solicitTries {
		h.next = now + solicitSeldom
	}
	return Solicitation(h.MAC)
}

// Unsent takes back the message of the last Step, as [Client.Unsent] does.
func (h *Host) Unsent(now time.Duration) { h.tries, h.next = h.tries-1, now+unsentPause }

// Heard takes an advertisement. The first router that is of use is kept until it says that it is none, or its time is over.
// Identifier is a fresh random number: the lower half of an address lasts as long as its prefix is in use and is never made
// of the link address (as in RFC 8981; RFC 7217's would be the same again in every visit to a network).
func (h *Host) Heard(now time.Duration, a Advertisement, identifier [8]byte) {
	if h.held != (Held{}) && a.Router != h.held.Router {
		return
	}
	if a.Lifetime < leastRouterFor || !a.Prefix.IsValid() {
		if h.held != (Held{}) && a.Lifetime == 0 {
			h.lose(now)
		}
		return
	}
	if h.held == (Held{}) || h.prefix != a.Prefix {
		b := a.Prefix.Addr().As16()
		identifier[0] &^= 3 // neither universal nor a group, as no link address is behind it
		copy(b[8:], identifier[:])
		h.held.Address, h.prefix = netip.AddrFrom16(b), a.Prefix
	}
	life := min(a.Lifetime, a.Valid)
	h.held.Router, h.held.Until = a.Router, now+life
	h.tries, h.next = 0, now+life*3/4
}

// Refuse gives back an address that cannot be used; routers are asked again later.
func (h *Host) Refuse(now time.Duration) { h.lose(now); h.next = now + solicitSeldom }

func (h *Host) lose(now time.Duration) {
	h.held, h.prefix, h.tries, h.next = Held{}, netip.Prefix{}, 0, now+solicitPause
}
