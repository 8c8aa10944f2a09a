package watch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Direction of a frame of an admitted class, as a stranger sees it.
type Direction string

// The two directions, seen from the handset.
const (
	Out Direction = "out" // handset to gateway
	In  Direction = "in"  // gateway to handset
)

// Class is one admitted class of the signed policy: a gateway's address, UDP
// or TCP, and the gateway's port.
type Class struct {
	// Name is the class's purpose as the policy writes it, such as "tunnel".
	Name string
	// Gateway is the gateway's address on the internet. Required.
	Gateway netip.Addr
	// Protocol is the IP protocol number, 6 or 17. Required.
	Protocol uint8
	// Port is the gateway's port. Required.
	Port uint16
	// WireGuard demands that the UDP payload has the type and length of a
	// WireGuard message (WireGuard paper, section 5.4), so that clear text to
	// the tunnel's own port counts as outside the class.
	WireGuard bool
}

// Rules are what the policy admits on the internet link.
type Rules struct {
	// Handsets are the outer addresses of the handsets' radios: the only
	// other end an admitted frame may have. Required.
	Handsets []netip.Addr
	// Classes is the policy's list. Empty admits nothing.
	Classes []Class
	// Links are the handsets that lease their addresses.
	Links []Link
}

func (r Rules) check() error {
	for _, a := range r.Handsets {
		if !a.IsValid() || a.Is4In6() {
			return errors.New("cannot watch: invalid handset address")
		}
	}
	for _, c := range r.Classes {
		if c.Name == "" || !c.Gateway.IsValid() || c.Gateway.Is4In6() || c.Port == 0 || (c.Protocol != 6 && c.Protocol != 17) {
			return fmt.Errorf("cannot watch: incomplete class %q", c.Name)
		}
		if c.WireGuard && c.Protocol != 17 {
			return fmt.Errorf("cannot watch: class %q: WireGuard is UDP", c.Name)
		}
	}
	return nil
}

// Finding is the judgement of one frame.
type Finding struct {
	// Class is the admitted class's name, or "" for a frame outside of all.
	Class string
	// Direction is set for an admitted frame.
	Direction Direction
	// Why says of a frame outside what kept it outside, and between whom it
	// went: for a person, bounded to about 200 bytes.
	Why string
}

// Admitted reports whether a class of the policy admits the frame.
func (f Finding) Admitted() bool { return f.Class != "" }

func outside(format string, args ...any) Finding {
	return Finding{Why: fmt.Sprintf(format, args...)}
}

// Classify judges one whole Ethernet frame without its checksum.
func (r Rules) Classify(frame []byte) Finding {
	if len(frame) < 14 {
		return outside("frame of %d bytes", len(frame))
	}
	if f, ok := r.control(frame); ok {
		return f
	}
	etherType := binary.BigEndian.Uint16(frame[12:])
	switch etherType {
	case 0x0800:
		return r.ipv4(frame[14:])
	case 0x86DD:
		return r.ipv6(frame[14:])
	case 0x0806:
		return outside("ARP")
	}
	return outside("EtherType %#04x", etherType)
}

func (r Rules) ipv4(b []byte) Finding {
	if len(b) < 20 || b[0]>>4 != 4 {
		return outside("broken IPv4")
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	head, total := int(b[0]&0x0F)*4, int(binary.BigEndian.Uint16(b[2:]))
	switch {
	case head != 20:
		return outside("IPv4 with options or a bad header length, %s to %s", src, dst)
	case total < head || total > len(b):
		return outside("IPv4 with a wrong length, %s to %s", src, dst)
	case binary.BigEndian.Uint16(b[6:])&0xBFFF != 0:
		// Everything but "do not fragment": the evil bit, more fragments, an offset.
		return outside("IPv4 fragment, %s to %s", src, dst)
	case !padding(b[total:], total):
		return outside("bytes behind the IPv4 packet, %s to %s", src, dst)
	}
	return r.transport(src, dst, b[9], b[head:total])
}

func (r Rules) ipv6(b []byte) Finding {
	if len(b) < 40 || b[0]>>4 != 6 {
		return outside("broken IPv6")
	}
	src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	total := 40 + int(binary.BigEndian.Uint16(b[4:]))
	switch {
	case total > len(b):
		return outside("IPv6 with a wrong length, %s to %s", src, dst)
	case !padding(b[total:], total):
		return outside("bytes behind the IPv6 packet, %s to %s", src, dst)
	}
	return r.transport(src, dst, b[6], b[40:total])
}

// handset tells the address of a handset: one that it always has, or one that it may have leased.
func (r Rules) handset(a netip.Addr) bool {
	for _, l := range r.Links {
		if a == l.V4 || l.Prefix6.Contains(a) {
			return true
		}
	}
	return slices.Contains(r.Handsets, a)
}

// padding reports whether b is nothing but the zeros that bring a packet of n
// bytes up to Ethernet's minimum of 46 bytes of payload.
func padding(b []byte, n int) bool {
	if len(b) == 0 {
		return true
	}
	return n+len(b) <= 46 && !slices.ContainsFunc(b, func(c byte) bool { return c != 0 })
}

func (r Rules) transport(src, dst netip.Addr, proto uint8, b []byte) Finding {
	name, ok := map[uint8]string{1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}[proto]
	if !ok {
		name = fmt.Sprintf("IP protocol %d", proto)
	}
	if proto != 6 && proto != 17 {
		return outside("%s, %s to %s", name, src, dst)
	}
	if len(b) < 8 {
		return outside("cut %s, %s to %s", name, src, dst)
	}
	sport, dport := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	between := fmt.Sprintf("%s, %s to %s", name, netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport))
	for _, c := range r.Classes {
		if c.Protocol != proto {
			continue
		}
		f := Finding{Class: c.Name}
		switch {
		case dst == c.Gateway && dport == c.Port && r.handset(src):
			f.Direction = Out
		case src == c.Gateway && sport == c.Port && r.handset(dst):
			f.Direction = In
		default:
			continue
		}
		if proto == 17 && int(binary.BigEndian.Uint16(b[4:])) != len(b) {
			return outside("%s: wrong UDP length", between)
		}
		if c.WireGuard && !wireGuard(b[8:]) {
			return outside("%s: no WireGuard message in class %s", between, c.Name)
		}
		return f
	}
	return Finding{Why: between}
}

// tunnelMTU is the MTU of the tunnel device, in bytes.
const tunnelMTU = 1420

// wireGuard checks type and length of a message: initiation 148, response 92,
// cookie 64 bytes; data 32 bytes or more, padded to a multiple of 16.
func wireGuard(b []byte) bool {
	if len(b) < 32 || b[1] != 0 || b[2] != 0 || b[3] != 0 {
		return false
	}
	switch b[0] {
	case 1:
		return len(b) == 148
	case 2:
		return len(b) == 92
	case 3:
		return len(b) == 64
	case 4:
		// The padding stops at the tunnel's MTU (wireguard-go device/send.go, calculatePaddingSize).
		return len(b)%16 == 0 || len(b) == 32+tunnelMTU
	}
	return false
}
