// Package wish is what daemons without a capability may ask of init, which has them all and decides against the signed
// policy: tunneld, to give wg0 the inner addresses of the device's certificate; linkd, to give a radio the address that it
// has leased, or to take it back.
//
// One connection carries one request and one reply, each behind the 4 byte length of internal/frame:
//
//	request  1 (address wish) · number of prefixes (1) · per prefix: length of the address in bytes (1: 4 or 16) · address · prefix length (1)
//	request  2 (lease wish) · length of the device's name (1) · name · family in bytes of an address (1: 4 or 16) · seconds (4; 0: take it
//	         back, and nothing follows) · address · router
//	reply    1 · nothing, or 0 · error text in UTF-8
package wish

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
	"unicode/utf8"

	"rempart/internal/frame"
)

const (
	// MaxPrefixes bounds a wish: a few addresses of both families.
	MaxPrefixes = 16
	// MaxText is the longest error text in bytes; a longer one is cut.
	MaxText = 255
	// Timeout bounds a whole exchange, on either side, unless a context ends it before.
	Timeout = 5 * time.Second

	opAddress  = 1
	maxRequest = 2 + MaxPrefixes*18
	maxReply   = 1 + MaxText
)

// RefusedError is init's own answer to a wish that it did not grant.
type RefusedError struct{ Text string }

func (e *RefusedError) Error() string { return "cannot set an address: init: " + e.Text }

// Send asks the init that listens at path to set prefixes, addresses with the length of their network, and waits for the
// answer. A refusal is a *RefusedError; anything else means that the answer is not known.
func Send(ctx context.Context, path string, prefixes []netip.Prefix) error {
	request, err := Marshal(prefixes)
	if err != nil {
		return err
	}
	return send(ctx, path, request)
}

func send(ctx context.Context, path string, request []byte) error {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("cannot reach init: %w", err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	if err := frame.Write(c, request); err != nil {
		return fmt.Errorf("cannot ask init for an address: %w", errors.Join(err, ctx.Err()))
	}
	reply, err := frame.Read(c, maxReply)
	if err != nil {
		return fmt.Errorf("cannot hear init's answer: %w", errors.Join(err, ctx.Err()))
	}
	return parseReply(reply)
}

// Serve reads one wish from c, grants it through set, answers and closes c. The caller has checked who is at the other end.
// The error is for the journal: what set said, or why no wish was understood.
func Serve(c net.Conn, set func([]netip.Prefix) error) error { return serve(c, Parse, set) }

func serve[T any](c net.Conn, parse func([]byte) (T, error), set func(T) error) error {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(Timeout)); err != nil {
		return fmt.Errorf("cannot serve a wish: %w", err)
	}
	request, err := frame.Read(c, maxRequest)
	if err != nil {
		return fmt.Errorf("cannot read a wish: %w", err)
	}
	wished, err := parse(request)
	if err == nil {
		err = set(wished)
	}
	if answer := frame.Write(c, marshalReply(err)); answer != nil {
		return errors.Join(err, fmt.Errorf("cannot answer a wish: %w", answer))
	}
	return err
}

// Marshal returns the request for prefixes.
func Marshal(prefixes []netip.Prefix) ([]byte, error) {
	if len(prefixes) == 0 || len(prefixes) > MaxPrefixes {
		return nil, fmt.Errorf("cannot wish for %d addresses, 1 to %d", len(prefixes), MaxPrefixes)
	}
	b := []byte{opAddress, byte(len(prefixes))}
	for i, p := range prefixes {
		if err := check(p, prefixes[:i]); err != nil {
			return nil, fmt.Errorf("cannot wish for address %v: %w", p, err)
		}
		a := p.Addr().AsSlice()
		b = append(append(append(b, byte(len(a))), a...), byte(p.Bits()))
	}
	return b, nil
}

// Parse reads a request. It accepts only what Marshal writes.
func Parse(b []byte) ([]netip.Prefix, error) {
	if len(b) < 2 || len(b) > maxRequest || b[0] != opAddress {
		return nil, fmt.Errorf("cannot parse a wish of %d bytes: it is no address wish", len(b))
	}
	n, b := int(b[1]), b[2:]
	if n == 0 || n > MaxPrefixes {
		return nil, fmt.Errorf("cannot parse a wish: %d addresses, 1 to %d", n, MaxPrefixes)
	}
	prefixes := make([]netip.Prefix, 0, n)
	for i := range n {
		if len(b) == 0 || b[0] != 4 && b[0] != 16 || len(b) < 2+int(b[0]) {
			return nil, fmt.Errorf("cannot parse a wish: address %d is malformed", i)
		}
		end := 1 + int(b[0])
		a, _ := netip.AddrFromSlice(b[1:end])
		p := netip.PrefixFrom(a, int(b[end]))
		if err := check(p, prefixes); err != nil {
			return nil, fmt.Errorf("cannot parse a wish: address %d: %w", i, err)
		}
		prefixes, b = append(prefixes, p), b[end+1:]
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("cannot parse a wish: %d bytes too many", len(b))
	}
	return prefixes, nil
}

// check refuses what is no host address of a network, or was already named.
func check(p netip.Prefix, before []netip.Prefix) error {
	a := p.Addr()
	switch {
	case !p.IsValid() || p.Bits() == 0:
		return errors.New("no prefix")
	case a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast():
		return errors.New("no unicast address")
	}
	for _, b := range before {
		if b.Addr() == a {
			return errors.New("named twice")
		}
	}
	return nil
}

func marshalReply(err error) []byte {
	if err == nil {
		return []byte{1}
	}
	text := err.Error()
	if text == "" {
		text = "refused"
	}
	for len(text) > MaxText || !utf8.ValidString(text) {
		text = text[:min(len(text)-1, MaxText)]
	}
	return append([]byte{0}, text...)
}

func parseReply(b []byte) error {
	switch {
	case len(b) == 1 && b[0] == 1:
		return nil
	case len(b) > 1 && len(b) <= maxReply && b[0] == 0 && utf8.Valid(b[1:]):
		return &RefusedError{string(b[1:])}
	}
	return errors.New("cannot understand init's answer")
}
