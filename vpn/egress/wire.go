package egress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// The frames of egressd.sock. One request, one reply, each behind the 4 byte
// length of internal/frame; numbers big endian; a connection may carry any number
// of them in turn.
//
//	request  op (1), then: table: the byte form of a policy · attach: ifindex (4) ·
//	         admit: name · close, status: nothing · levels: the byte form of a level
//	         table · drops: since (8) · link: ifindex (4), link facts (72)
//	reply    ok (1: 0 or 1) · error text · admitted gateway · digest of the policy in
//	         force (32) · changes (8) · digest and rights of the level table in force
//	         (32 each) · LevelHooks × LevelReasons counters (8) · number of devices (1) ·
//	         per device: ifindex (4), hook (1), 2 × Reasons counters (8)
//	to drops ok · error text · next, missed, left out (8 each) · number of samples (1) ·
//	         the samples (72 each)
//
// A name or text is a length byte and that many bytes.
//
// What tunneld has had admitted is in force as long as its connection lasts: egressd ends that when another takes it away.
const (
	// MaxRequest is the longest request in bytes.
	MaxRequest = 1 + max(MaxMarshal, MaxLevelMarshal)
	// MaxDevices bounds how many black devices a handset has.
	MaxDevices = 16
	// MaxText is the longest error text in bytes.
	MaxText = 255
	// MaxReply is the longest reply in bytes.
	MaxReply  = 1 + 1 + MaxText + 1 + MaxName + 32 + 8 + 2*32 + int(LevelHooks)*int(LevelReasons)*8 + 1 + MaxDevices*deviceLen
	deviceLen = 4 + 1 + 2*int(Reasons)*8
)

// Op is what a request asks for.
type Op uint8

// Operations, and who may ask.
const (
	OpTable  Op = iota + 1 // init: the classes of every gateway of the signed policy
	OpAttach               // init: put the gate on a device
	OpAdmit                // tunneld: admit one gateway's classes, and no other's
	OpClose                // init, tunneld: deny all
	OpStatus               // any daemon
	OpLevels               // init: the level table
	OpDrops                // any daemon: a part of the drop record
	OpLink                 // init: the facts of a device's link
)

func (o Op) String() string {
	switch o {
	case OpTable:
		return "table"
	case OpAttach:
		return "attach"
	case OpAdmit:
		return "admit"
	case OpClose:
		return "close"
	case OpStatus:
		return "status"
	case OpLevels:
		return "levels"
	case OpDrops:
		return "drops"
	case OpLink:
		return "link"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Request is one request to egressd. Fields that the operation does not have are zero.
type Request struct {
	Op      Op
	Table   Policy     // OpTable
	Ifindex int        // OpAttach, OpLink, 1 to 2^31-1
	Gateway string     // OpAdmit
	Link    LinkFacts  // OpLink
	Levels  LevelTable // OpLevels
	Since   uint64     // OpDrops: samples behind this number
}

// MarshalRequest returns the bytes of r.
func MarshalRequest(r Request) ([]byte, error) {
	b := []byte{byte(r.Op)}
	switch r.Op {
	case OpTable:
		table, err := r.Table.Marshal()
		if err != nil {
			return nil, err
		}
		b = append(b, table...)
	case OpAttach, OpLink:
		if r.Ifindex < 1 || r.Ifindex > 1<<31-1 {
			return nil, fmt.Errorf("cannot marshal a request: interface index %d", r.Ifindex)
		}
		b = binary.BigEndian.AppendUint32(b, uint32(r.Ifindex))
		if r.Op == OpLink {
			if err := r.Link.Check(); err != nil {
				return nil, fmt.Errorf("cannot marshal a request: %w", err)
			}
			facts := r.Link.Bytes()
			b = append(b, facts[:]...)
		}
	case OpAdmit:
		if !validName(r.Gateway) {
			return nil, fmt.Errorf("cannot marshal a request: gateway name %q", r.Gateway)
		}
		b = appendText(b, r.Gateway)
	case OpLevels:
		table, err := r.Levels.Marshal()
		if err != nil {
			return nil, err
		}
		b = append(b, table...)
	case OpDrops:
		b = binary.BigEndian.AppendUint64(b, r.Since)
	case OpClose, OpStatus:
	default:
		return nil, fmt.Errorf("cannot marshal a request: unknown %v", r.Op)
	}
	return b, nil
}

// ParseRequest reads a request. It accepts only what [MarshalRequest] writes.
func ParseRequest(b []byte) (Request, error) {
	r, err := parseRequest(b)
	if err != nil {
		return Request{}, fmt.Errorf("cannot parse a request: %w", err)
	}
	return r, nil
}

func parseRequest(b []byte) (Request, error) {
	if len(b) > MaxRequest {
		return Request{}, fmt.Errorf("%d bytes, the limit is %d", len(b), MaxRequest)
	}
	d := decoder{b: b}
	r := Request{Op: Op(d.u8())}
	switch r.Op {
	case OpTable:
		var err error
		if r.Table, err = d.policy(); err != nil {
			return r, err
		}
	case OpAttach, OpLink:
		n := d.u32()
		if n < 1 || n > 1<<31-1 {
			return r, d.fail(fmt.Errorf("interface index %d", n))
		}
		r.Ifindex = int(n)
		if r.Op == OpLink {
			var err error
			if r.Link, err = ParseLinkFacts([LinkFactsLen]byte(d.take(LinkFactsLen))); err != nil {
				return r, d.fail(err)
			}
		}
	case OpAdmit:
		if r.Gateway = d.name(MaxName); !validName(r.Gateway) {
			return r, d.fail(fmt.Errorf("gateway name %q", r.Gateway))
		}
	case OpLevels:
		if r.Levels = d.levelTable(); d.err != nil {
			return r, d.err
		}
	case OpDrops:
		r.Since = d.u64()
	case OpClose, OpStatus:
	default:
		return r, d.fail(fmt.Errorf("unknown %v", r.Op))
	}
	return r, d.end()
}

// Hook says where in the kernel a device's gate is.
type Hook uint8

// Hooks.
const (
	HookTCX    Hook = iota + 1 // a TCX link in front of the floor
	HookClsact                 // a clsact filter in front of the floor (kernels before 6.6)
)

func (h Hook) String() string {
	switch h {
	case HookTCX:
		return "tcx"
	case HookClsact:
		return "clsact"
	}
	return fmt.Sprintf("hook(%d)", uint8(h))
}

// Counters are frames by direction and reason since the gate was attached; a GSO
// frame counts once. They outlive swaps of the policy and restarts of egressd.
type Counters [2][Reasons]uint64

// Dropped is the number of frames dropped in direction d.
func (c Counters) Dropped(d Direction) (n uint64) {
	for r := Admitted + 1; r < Reasons; r++ {
		n += c[d][r]
	}
	return n
}

// Device is the state of the gate on one device.
type Device struct {
	Ifindex  int
	Hook     Hook
	Counters Counters
}

// Status is what egressd answers.
type Status struct {
	// Err is why the request was not done; empty if it was.
	Err string
	// Admitted is the name of the admitted gateway; empty: deny all.
	Admitted string
	// Digest is the digest of the policy in force, [Policy.Digest].
	Digest [32]byte
	// Changes counts the replacements of the policy in force since egressd
	// started: who reads the kernel between two answers with the same count has
	// read one policy, not the end of one and the beginning of the next.
	Changes uint64
	// Levels and Rights are the digest and the rights of the level table in force.
	Levels, Rights [32]byte
	// Decided are the level hooks' decisions.
	Decided LevelCounters
	// Devices are the devices that carry the gate, in ascending order.
	Devices []Device
}

// MarshalStatus returns the bytes of s. A text longer than [MaxText] is cut.
func MarshalStatus(s Status) ([]byte, error) {
	if len(s.Devices) > MaxDevices {
		return nil, fmt.Errorf("cannot marshal a reply: %d devices, the limit is %d", len(s.Devices), MaxDevices)
	}
	if s.Admitted != "" && !validName(s.Admitted) {
		return nil, fmt.Errorf("cannot marshal a reply: gateway name %q", s.Admitted)
	}
	b := appendText(appendOutcome(nil, s.Err), s.Admitted)
	b = append(b, s.Digest[:]...)
	b = binary.BigEndian.AppendUint64(b, s.Changes)
	b = append(append(b, s.Levels[:]...), s.Rights[:]...)
	for _, hook := range s.Decided {
		for _, n := range hook {
			b = binary.BigEndian.AppendUint64(b, n)
		}
	}
	b = append(b, byte(len(s.Devices)))
	for _, dev := range s.Devices {
		b = binary.BigEndian.AppendUint32(b, uint32(dev.Ifindex))
		b = append(b, byte(dev.Hook))
		for _, direction := range dev.Counters {
			for _, n := range direction {
				b = binary.BigEndian.AppendUint64(b, n)
			}
		}
	}
	return b, nil
}

// ParseStatus reads a reply. It accepts only what [MarshalStatus] writes.
func ParseStatus(b []byte) (Status, error) {
	s, err := parseStatus(b)
	if err != nil {
		return Status{}, fmt.Errorf("cannot parse a reply: %w", err)
	}
	return s, nil
}

func parseStatus(b []byte) (Status, error) {
	if len(b) > MaxReply {
		return Status{}, fmt.Errorf("%d bytes, the limit is %d", len(b), MaxReply)
	}
	d := decoder{b: b}
	s := Status{Err: d.outcome()}
	if s.Admitted = d.name(MaxName); s.Admitted != "" && !validName(s.Admitted) {
		d.fail(fmt.Errorf("gateway name %q", s.Admitted))
	}
	s.Digest = [32]byte(d.take(32))
	s.Changes = d.u64()
	s.Levels, s.Rights = [32]byte(d.take(32)), [32]byte(d.take(32))
	for h := range s.Decided {
		for r := range s.Decided[h] {
			s.Decided[h][r] = d.u64()
		}
	}
	n := int(d.u8())
	if n > MaxDevices {
		return s, d.fail(fmt.Errorf("%d devices, the limit is %d", n, MaxDevices))
	}
	for range n {
		var dev Device
		index := d.u32()
		if dev.Ifindex = int(index); index < 1 || index > 1<<31-1 {
			d.fail(fmt.Errorf("interface index %d", index))
		}
		if dev.Hook = Hook(d.u8()); dev.Hook != HookTCX && dev.Hook != HookClsact {
			d.fail(fmt.Errorf("unknown %v", dev.Hook))
		}
		for i := range dev.Counters {
			for j := range dev.Counters[i] {
				dev.Counters[i][j] = d.u64()
			}
		}
		s.Devices = append(s.Devices, dev)
	}
	return s, d.end()
}

// appendOutcome appends how a request ended: done if text is empty. A text longer than
// [MaxText] is cut.
func appendOutcome(b []byte, text string) []byte {
	for len(text) > MaxText || !utf8.ValidString(text) {
		text = text[:min(len(text)-1, MaxText)]
	}
	return appendText(append(b, boolByte(text == "")), text)
}

func (d *decoder) outcome() string {
	ok := d.u8()
	text := d.name(MaxText)
	if ok > 1 || (ok == 1) != (text == "") || !utf8.ValidString(text) {
		d.fail(errors.New("outcome and error text disagree"))
	}
	return text
}

func appendText(b []byte, s string) []byte {
	return append(append(b, byte(len(s))), s...)
}
