package egress

import (
	"encoding/binary"
	"net/netip"
)

// DHCPMessage is one of the three messages that a handset ever sends (RFC 2131): it declines nothing, releases nothing and
// asks for nothing else. A renewal is broadcast, so that no message names a server that the gate would have to know.
type DHCPMessage int

// The messages; the values are the indices of the gate's templates.
const (
	DHCPDiscover DHCPMessage = iota // who gives addresses?
	DHCPSelect                      // this one, from that server
	DHCPRenew                       // the one that I have
	DHCPMessages
)

// DHCPLen is the length of every outgoing message, the least that RFC 2131 lets a relay expect.
const DHCPLen = 300

const (
	dhcpAt      = ethLen + ipv4Len + 8 // where the message begins in a frame
	dhcpFrame   = dhcpAt + DHCPLen
	dhcpOptions = 240 // where the options begin in a message
)

// Options of RFC 2132, in the order of every message.
const (
	optionMask      = 1
	optionRouter    = 3
	optionLease     = 51
	optionRequested = 50
	optionType      = 53
	optionServer    = 54
	optionList      = 55
	optionRenewal   = 58
	optionRebinding = 59
	optionClient    = 61
	optionEnd       = 255
)

// dhcpMessage is the message with its free fields zero, and where they are. It follows the anonymity profile of RFC 7844:
// no name, no vendor class, the client identifier is the link address, no earlier address is asked for, every list is
// fixed, options stand in one order, and the rest is zeros to a fixed length.
func (f LinkFacts) dhcpMessage(m DHCPMessage) (body [DHCPLen]byte, free [][2]int) {
	body[0], body[1], body[2] = 1, 1, 6 // request, Ethernet, 6 bytes
	free = append(free, [2]int{4, 8})   // xid
	body[10] = 0x80                     // answer by broadcast
	if m == DHCPRenew && f.Addr4.IsValid() {
		copy(body[12:], f.Addr4.AsSlice())
	}
	copy(body[28:], f.MAC[:])
	copy(body[236:], []byte{99, 130, 83, 99})
	at := dhcpOptions
	option := func(code byte, value ...byte) {
		body[at], body[at+1] = code, byte(len(value))
		copy(body[at+2:], value)
		at += 2 + len(value)
	}
	kind := byte(3)
	if m == DHCPDiscover {
		kind = 1
	}
	option(optionType, kind)
	option(optionClient, append([]byte{1}, f.MAC[:]...)...)
	if m == DHCPSelect {
		option(optionRequested, 0, 0, 0, 0)
		free = append(free, [2]int{at - 4, at})
		option(optionServer, 0, 0, 0, 0)
		free = append(free, [2]int{at - 4, at})
	}
	option(optionList, optionMask, optionRouter, optionLease, optionServer, optionRenewal, optionRebinding)
	body[at] = optionEnd
	return body, free
}

// DHCP returns the message m as linkd sends it. Address and server are those of an offer, for [DHCPSelect] alone.
func (f LinkFacts) DHCP(m DHCPMessage, xid [4]byte, address, server netip.Addr) []byte {
	body, free := f.dhcpMessage(m)
	copy(body[free[0][0]:], xid[:])
	if m == DHCPSelect {
		copy(body[free[1][0]:free[1][1]], address.AsSlice())
		copy(body[free[2][0]:free[2][1]], server.AsSlice())
	}
	return body[:]
}

// DHCPTemplate is a whole outgoing frame for the gate: a frame passes whose bytes equal Value wherever Mask is not zero.
type DHCPTemplate struct {
	Value, Mask [dhcpFrame]byte
}

// Template returns the frame of message m as this kernel sends it from a UDP socket: identification 0 with "don't
// fragment", TTL 64. Free are the checksums, the transaction's number and, in a selection, what the offer said. The zero
// template, which admits nothing, is that of a renewal without an address.
func (f LinkFacts) Template(m DHCPMessage) (t DHCPTemplate) {
	if !f.Set() || f.Linkd == 0 || m == DHCPRenew && !f.Addr4.IsValid() {
		return t
	}
	for i := range t.Mask {
		t.Mask[i] = 0xff
	}
	copy(t.Value[:], broadcastMAC[:])
	copy(t.Value[6:], f.MAC[:])
	ip := t.Value[ethLen:]
	copy(t.Value[12:], []byte{8, 0, 0x45, 0})
	binary.BigEndian.PutUint16(ip[2:], ipv4Len+8+DHCPLen)
	ip[6], ip[8], ip[9] = 0x40, 64, UDP
	if m == DHCPRenew {
		copy(ip[12:], f.Addr4.AsSlice())
	}
	copy(ip[16:], []byte{255, 255, 255, 255})
	udp := ip[ipv4Len:]
	udp[1], udp[3] = 68, 67
	binary.BigEndian.PutUint16(udp[4:], 8+DHCPLen)
	body, free := f.dhcpMessage(m)
	copy(t.Value[dhcpAt:], body[:])
	free = append(free, [2]int{ethLen + 10 - dhcpAt, ethLen + 12 - dhcpAt}, [2]int{-2, 0}) // the two checksums
	for _, field := range free {
		clear(t.Mask[dhcpAt+field[0] : dhcpAt+field[1]])
	}
	return t
}

// messageOf picks the template that the gate compares an outgoing frame with.
func messageOf(frame []byte) DHCPMessage {
	switch {
	case frame[dhcpAt+dhcpOptions+2] == 1:
		return DHCPDiscover
	case zero(frame[dhcpAt+12 : dhcpAt+16]):
		return DHCPSelect
	}
	return DHCPRenew
}

func (f *LinkFacts) dhcpOut(frame []byte) bool {
	if len(frame) != dhcpFrame {
		return false
	}
	t := f.Template(messageOf(frame))
	if zero(t.Mask[:]) {
		return false
	}
	for i, b := range frame {
		if (b^t.Value[i])&t.Mask[i] != 0 {
			return false
		}
	}
	return true
}

// dhcpIn admits a reply to the last request, as long as one is expected. Its options are linkd's to read.
func (l *Link) dhcpIn(frame []byte) bool {
	f := &l.Facts
	if f.Linkd == 0 || len(frame) < dhcpAt+dhcpOptions {
		return false
	}
	ip, udp, body := frame[ethLen:], frame[ethLen+ipv4Len:], frame[dhcpAt:]
	src, dst := netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
	mac := [6]byte(frame)
	return int(binary.BigEndian.Uint16(udp[4:])) == len(udp) && host(src) &&
		(mac == broadcastMAC || mac == f.MAC) && (dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}) || dst == f.Addr4) &&
		body[0] == 2 && body[1] == 1 && body[2] == 6 && [6]byte(body[28:]) == f.MAC && [4]byte(body[236:]) == [4]byte{99, 130, 83, 99} &&
		l.Now < l.State.dhcpUntil && [4]byte(body[4:]) == l.State.xid
}

// Chunks is the template in the form of the gate's map (struct dhcp_chunk): per 57 bytes of the frame 64 of value and 64 of
// mask. Those of message m begin at entry m * [DHCPChunks].
func (t DHCPTemplate) Chunks() (b [DHCPChunks][128]byte) {
	for i := range b {
		copy(b[i][:64], t.Value[i*dhcpChunk:(i+1)*dhcpChunk])
		copy(b[i][64:], t.Mask[i*dhcpChunk:(i+1)*dhcpChunk])
	}
	return b
}

// DHCPChunks is how many entries of the gate's map a template has.
const DHCPChunks = 6

const dhcpChunk = dhcpFrame / DHCPChunks // without a rest
