package lease

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Kind is the type of a DHCP reply (RFC 2132 section 9.6).
type Kind uint8

// The replies that a client hears.
const (
	Offer Kind = 2
	ACK   Kind = 5
	NAK   Kind = 6
)

// Bounds on what is read. A lease shorter than a minute would keep the link busy with itself; of a longer one than a day
// only a day is used.
const (
	maxReply = 1500
	Shortest = time.Minute
	Longest  = 24 * time.Hour
)

// Reply is what a client reads of a DHCP reply. In a NAK only Kind, XID and Server count.
type Reply struct {
	Kind    Kind
	XID     [4]byte
	Address netip.Addr
	Router  netip.Addr
	Server  netip.Addr
	Lease   time.Duration
	Renew   time.Duration // T1; 0 if the server does not say, or says nonsense
}

// ParseReply reads a reply to the device with this link address. Options that stand twice, are cut, or have a wrong length
// make the whole reply unreadable; options that are not read are passed over by their length. Option overload (RFC 2132
// section 9.3) is not followed: what stands in the fields of other names is not read.
func ParseReply(b []byte, mac [6]byte) (Reply, error) {
	r, err := parseReply(b, mac)
	if err != nil {
		return Reply{}, fmt.Errorf("cannot read a DHCP reply: %w", err)
	}
	return r, nil
}

func parseReply(b []byte, mac [6]byte) (Reply, error) {
	if len(b) < 241 || len(b) > maxReply {
		return Reply{}, fmt.Errorf("%d bytes", len(b))
	}
	if b[0] != 2 || b[1] != 1 || b[2] != 6 || [4]byte(b[236:]) != [4]byte{99, 130, 83, 99} {
		return Reply{}, errors.New("no reply for Ethernet")
	}
	if [6]byte(b[28:]) != mac {
		return Reply{}, errors.New("it is for another device")
	}
	options, err := readOptions(b[240:])
	if err != nil {
		return Reply{}, err
	}
	r := Reply{XID: [4]byte(b[4:]), Address: netip.AddrFrom4([4]byte(b[16:]))}
	kind, ok := options[53]
	if !ok || len(kind) != 1 {
		return Reply{}, errors.New("no message type")
	}
	r.Kind = Kind(kind[0])
	if r.Server, err = options.addr(54); err != nil {
		return Reply{}, err
	}
	switch r.Kind {
	case NAK:
		return Reply{Kind: NAK, XID: r.XID, Server: r.Server}, nil
	case Offer, ACK:
	default:
		return Reply{}, fmt.Errorf("message type %d", r.Kind)
	}
	if r.Router, err = options.addr(3); err != nil {
		return Reply{}, err
	}
	if !unicast4(r.Address) || !unicast4(r.Router) || r.Address == r.Router || !unicast4(r.Server) {
		return Reply{}, fmt.Errorf("address %v, router %v, server %v are not three hosts of use", r.Address, r.Router, r.Server)
	}
	if r.Lease, err = options.seconds(51); err != nil {
		return Reply{}, err
	}
	if r.Lease < Shortest {
		return Reply{}, fmt.Errorf("a lease of %v", r.Lease)
	}
	r.Lease = min(r.Lease, Longest)
	if t1, err := options.seconds(58); err == nil && t1 >= Shortest/2 && t1 < r.Lease {
		r.Renew = t1
	}
	return r, nil
}

// options are those that are read.
type options map[byte][]byte

func readOptions(b []byte) (options, error) {
	got := options{}
	for len(b) > 0 {
		code := b[0]
		switch code {
		case 0:
			b = b[1:]
			continue
		case 255:
			return got, nil
		}
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return nil, fmt.Errorf("option %d is cut", code)
		}
		value := b[2 : 2+int(b[1])]
		b = b[2+len(value):]
		switch code {
		case 3, 51, 53, 54, 58:
			// RFC 3396 would join the parts of a long option; none of these is long.
			if _, twice := got[code]; twice {
				return nil, fmt.Errorf("option %d stands twice", code)
			}
			got[code] = value
		}
	}
	return nil, errors.New("the options do not end")
}

// addr is the first address of an option; of several routers the first is the one to use (RFC 2132 section 3.5).
func (o options) addr(code byte) (netip.Addr, error) {
	v := o[code]
	if len(v) < 4 || len(v)%4 != 0 || code == 54 && len(v) != 4 {
		return netip.Addr{}, fmt.Errorf("option %d has %d bytes", code, len(v))
	}
	return netip.AddrFrom4([4]byte(v)), nil
}

func (o options) seconds(code byte) (time.Duration, error) {
	if len(o[code]) != 4 {
		return 0, fmt.Errorf("option %d has %d bytes", code, len(o[code]))
	}
	return time.Duration(binary.BigEndian.Uint32(o[code])) * time.Second, nil
}

// unicast4 tells the address of a host: not this network, not loopback, not link-local, no group, nothing reserved.
func unicast4(a netip.Addr) bool {
	b := a.As4()
	return b[0] != 0 && b[0] != 127 && b[0] < 224 && !a.IsLinkLocalUnicast()
}
