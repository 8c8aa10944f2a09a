package sip

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Session is what two handsets tell each other about a call's sound (SDP, RFC
// 8866): where the RTP goes and where keys are agreed. The keys themselves are
// never in it.
type Session struct {
	// ID is the o= session id, any number.
	ID uint64
	// Addr is the inner address for both sound and keys; it must be one that
	// the peer's certificate carries, which the agent checks.
	Addr netip.Addr
	// RTP is the UDP port sound is received on, 1..65535.
	RTP uint16
	// Keying is the TCP port the answerer awaits the keying connection on.
	// Zero in an offer: the caller opens that connection (RFC 4145 roles).
	Keying uint16
}

// MaxSDP bounds a session description, in bytes.
const MaxSDP = 1024

// ErrSession is in the chain of every refused session description.
var ErrSession = errors.New("not a session description of this profile")

// Marshal is the description, CRLF lines. The value must pass Check.
func (s Session) Marshal() []byte {
	family := "IP4"
	if s.Addr.Is6() {
		family = "IP6"
	}
	setup := "a=setup:active\r\n"
	if s.Keying != 0 {
		setup = "a=setup:passive\r\na=x-rempart-keying:" + strconv.Itoa(int(s.Keying)) + "\r\n"
	}
	return fmt.Appendf(nil, "v=0\r\no=- %d 1 IN %s %s\r\ns=-\r\nc=IN %s %s\r\nt=0 0\r\n"+
		"m=audio %d RTP/SAVP 111\r\na=rtpmap:111 opus/48000/2\r\na=ptime:20\r\na=sendrecv\r\n%s",
		s.ID, family, s.Addr, family, s.Addr, s.RTP, setup)
}

// Check refuses what must never be sent or taken: no address, one that is not
// a plain unicast address, no RTP port.
func (s Session) Check() error {
	if !s.Addr.IsValid() || s.Addr.Zone() != "" || s.Addr.Is4In6() || s.Addr.IsUnspecified() || s.Addr.IsMulticast() {
		return fmt.Errorf("cannot use address %s: %w", s.Addr, ErrSession)
	}
	if s.RTP == 0 || s.RTP == s.Keying {
		return fmt.Errorf("cannot use ports %d and %d: %w", s.RTP, s.Keying, ErrSession)
	}
	return nil
}

// ParseSession reads a description strictly: it accepts exactly the bytes that
// Marshal writes, so there is no second way to say a thing and nothing that two
// readers could understand differently.
func ParseSession(b []byte) (Session, error) {
	if len(b) > MaxSDP {
		return Session{}, fmt.Errorf("cannot read %d bytes of session description: %w", len(b), ErrSession)
	}
	var s Session
	lines := strings.Split(string(b), "\r\n")
	if len(lines) < 10 {
		return Session{}, fmt.Errorf("cannot read %d lines: %w", len(lines), ErrSession)
	}
	origin := strings.Fields(lines[1])
	media := strings.Fields(lines[5])
	if len(origin) != 6 || len(media) != 4 {
		return Session{}, fmt.Errorf("cannot read origin or media line: %w", ErrSession)
	}
	var err error
	if s.ID, err = strconv.ParseUint(origin[1], 10, 64); err != nil {
		return Session{}, fmt.Errorf("cannot read session id: %w", ErrSession)
	}
	if s.Addr, err = netip.ParseAddr(origin[5]); err != nil {
		return Session{}, fmt.Errorf("cannot read address: %w", ErrSession)
	}
	if s.RTP, err = port(media[1]); err != nil {
		return Session{}, err
	}
	for _, l := range lines {
		if v, ok := strings.CutPrefix(l, "a=x-rempart-keying:"); ok {
			if s.Keying, err = port(v); err != nil {
				return Session{}, err
			}
		}
	}
	if err := s.Check(); err != nil {
		return Session{}, err
	}
	if !bytes.Equal(s.Marshal(), b) {
		return Session{}, fmt.Errorf("cannot accept other or further lines: %w", ErrSession)
	}
	return s, nil
}

func port(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("cannot use port %.8q: %w", s, ErrSession)
	}
	return uint16(n), nil
}
