package wish

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Lease is an address that linkd has for a radio. Without an address it takes the family's address back.
type Lease struct {
	Device  string
	Six     bool // IPv6
	Address netip.Addr
	Router  netip.Addr    // the next hop for everything; link-local in IPv6
	For     time.Duration // whole seconds, at most MaxLease
}

// MaxLease is the longest time that a wish can be for.
const MaxLease = 24 * time.Hour

const (
	opLease   = 2
	maxDevice = 15 // IFNAMSIZ without its zero
)

// SendLease asks the init that listens at path for a lease, as [Send] does for inner addresses.
func SendLease(ctx context.Context, path string, l Lease) error {
	request, err := l.Marshal()
	if err != nil {
		return err
	}
	return send(ctx, path, request)
}

// ServeLease reads one lease wish from c, as [Serve] does for inner addresses.
func ServeLease(c net.Conn, set func(Lease) error) error { return serve(c, ParseLease, set) }

// Marshal returns the request.
func (l Lease) Marshal() ([]byte, error) {
	if err := l.check(); err != nil {
		return nil, fmt.Errorf("cannot wish for %+v: %w", l, err)
	}
	b := append([]byte{opLease, byte(len(l.Device))}, l.Device...)
	b = append(b, l.bytes())
	b = binary.BigEndian.AppendUint32(b, uint32(l.For/time.Second))
	return append(append(b, l.Address.AsSlice()...), l.Router.AsSlice()...), nil
}

// ParseLease reads a request. It accepts only what Marshal writes.
func ParseLease(b []byte) (Lease, error) {
	l, err := parseLease(b)
	if err == nil {
		err = l.check()
	}
	if err != nil {
		return Lease{}, fmt.Errorf("cannot parse a lease wish: %w", err)
	}
	return l, nil
}

func parseLease(b []byte) (l Lease, err error) {
	if len(b) < 2 || b[0] != opLease || len(b) < 2+int(b[1])+5 {
		return l, fmt.Errorf("%d bytes that are none", len(b))
	}
	l.Device, b = string(b[2:2+int(b[1])]), b[2+int(b[1]):]
	size := int(b[0])
	l.Six, l.For = size == 16, time.Duration(binary.BigEndian.Uint32(b[1:]))*time.Second
	b = b[5:]
	switch {
	case size != 4 && size != 16:
		return l, fmt.Errorf("addresses of %d bytes", size)
	case l.For == 0 && len(b) == 0:
		return l, nil
	case len(b) != 2*size:
		return l, fmt.Errorf("%d bytes for two addresses", len(b))
	}
	l.Address, _ = netip.AddrFromSlice(b[:size])
	l.Router, _ = netip.AddrFromSlice(b[size:])
	return l, nil
}

func (l Lease) bytes() byte {
	if l.Six {
		return 16
	}
	return 4
}

// check refuses what is no wish; whether an address may be had is init's to decide.
func (l Lease) check() error {
	if len(l.Device) < 1 || len(l.Device) > maxDevice || strings.ContainsAny(l.Device, "/ \t\n:%\x00") {
		return errors.New("no device")
	}
	if l == (Lease{Device: l.Device, Six: l.Six}) {
		return nil
	}
	for _, a := range []netip.Addr{l.Address, l.Router} {
		if !a.IsValid() || a.Is6() != l.Six || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			return fmt.Errorf("%v is no unicast address of its family", a)
		}
	}
	if l.For < time.Second || l.For > MaxLease || l.For%time.Second != 0 {
		return fmt.Errorf("%v is no time for a lease", l.For)
	}
	return nil
}
