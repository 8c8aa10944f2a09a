package media

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/pion/rtp"
	"github.com/pion/srtp/v3"
	"github.com/pion/transport/v5/replaydetector"

	"rempart/internal/secret"
	"rempart/voice/codec"
)

const (
	// KeySize is the length of an AEAD_AES_256_GCM master key, in bytes (RFC 7714 §12).
	KeySize = 32
	// SaltSize is the length of the master salt, in bytes (RFC 7714 §12).
	SaltSize = 12
	// PayloadType is the RTP payload type of the codec, from the dynamic range (RFC 3551 §6).
	PayloadType = 111

	headerSize = 12
	tagSize    = 16
	// PacketSize is the size of every packet on the wire, in bytes, without UDP and IP headers.
	PacketSize = headerSize + codec.PacketSize + tagSize

	// replayWindow is how many packets a late one may be behind the newest: 10 s.
	replayWindow = 512
	// plainFirstByte: version 2, no padding, no extension, no contributing sources (RFC 3550 §5.1).
	plainFirstByte = 2 << 6
)

// Keys protect one call: one key per direction, so that no nonce can meet the same key twice.
type Keys struct {
	// Send and Receive are a master key of KeySize bytes followed by a master salt of SaltSize bytes. NewSession copies
	// them: the caller may wipe them then.
	Send, Receive *secret.Bytes
	// SendSSRC and ReceiveSSRC are the agreed synchronisation sources. A ReceiveSSRC of 0 takes the source of the first
	// authentic packet, for peers that agree on none.
	SendSSRC, ReceiveSSRC uint32
}

// newContext makes one direction's SRTP context.
func newContext(key *secret.Bytes, opts ...srtp.ContextOption) (*srtp.Context, error) {
	if key.Len() != KeySize+SaltSize {
		return nil, fmt.Errorf("cannot use an SRTP key of %d bytes: want %d of key and %d of salt", key.Len(), KeySize, SaltSize)
	}
	b := key.Reveal()
	// The library keeps what it is given, so it gets a copy.
	master, salt := append([]byte{}, b[:KeySize]...), append([]byte{}, b[KeySize:]...)
	ctx, err := srtp.CreateContext(master, salt, srtp.ProtectionProfileAeadAes256Gcm, opts...)
	if err != nil {
		return nil, fmt.Errorf("cannot make an SRTP context: %w", err)
	}
	return ctx, nil
}

// sealer makes the packets of one direction, numbered without a gap.
type sealer struct {
	ctx    *srtp.Context
	header rtp.Header // of the next packet
	parsed rtp.Header // the library's, kept for its memory
	plain  [headerSize + codec.PacketSize]byte
	sealed [PacketSize]byte
}

func newSealer(key *secret.Bytes, ssrc uint32) (*sealer, error) {
	ctx, err := newContext(key)
	if err != nil {
		return nil, err
	}
	var start [6]byte
	if _, err := rand.Read(start[:]); err != nil {
		return nil, fmt.Errorf("cannot choose the first sequence number: %w", err)
	}
	return &sealer{ctx: ctx, header: rtp.Header{
		Version: 2, PayloadType: PayloadType, SSRC: ssrc,
		// RFC 3711 §3.3.1: below 2^15, so that the loss of the first packets cannot be taken for a rollover.
		SequenceNumber: binary.BigEndian.Uint16(start[:]) & 0x7fff,
		Timestamp:      binary.BigEndian.Uint32(start[2:]),
	}}, nil
}

// seal returns the next packet; it is valid until the next call.
func (s *sealer) seal(payload []byte) ([]byte, error) {
	n, err := s.header.MarshalTo(s.plain[:])
	if err != nil || n != headerSize || len(payload) != codec.PacketSize {
		return nil, errors.Join(fmt.Errorf("cannot put %d bytes of speech behind %d bytes of RTP header", len(payload), n), err)
	}
	copy(s.plain[n:], payload)
	out, err := s.ctx.EncryptRTP(s.sealed[:0], s.plain[:], &s.parsed)
	if err != nil {
		return nil, fmt.Errorf("cannot protect a packet: %w", err)
	}
	if len(out) != PacketSize {
		return nil, fmt.Errorf("cannot send a packet of %d bytes: every packet has %d", len(out), PacketSize)
	}
	s.header.SequenceNumber++
	s.header.Timestamp += codec.FrameSamples
	return out, nil
}

// The ways in which a packet is refused; see Stats for what each counts.
var (
	errSize   = errors.New("packet of a wrong size")
	errHeader = errors.New("packet of another stream or format")
	errReplay = errors.New("packet seen before, or too old to tell")
	errForged = errors.New("packet is not authentic")
)

// opener opens the packets of one direction.
type opener struct {
	ctx     *srtp.Context
	ssrc    uint32
	latched bool // ssrc is known
	replay  bool // the replay detector refused the packet at hand
	any     bool // a packet has been opened
	highest uint64
	parsed  rtp.Header // the library's, kept for its memory
	plain   [headerSize + codec.PacketSize]byte
}

func newOpener(key *secret.Bytes, ssrc uint32) (*opener, error) {
	o := &opener{ssrc: ssrc, latched: ssrc != 0}
	ctx, err := newContext(key, srtp.SRTPReplayDetectorFactory(func() replaydetector.ReplayDetector {
		return &watchedDetector{ReplayDetector: replaydetector.New(replayWindow, 1<<48-1), refused: &o.replay}
	}))
	o.ctx = ctx
	return o, err
}

// watchedDetector tells the opener why a packet was refused: the library's own error for a replay is not exported.
type watchedDetector struct {
	replaydetector.ReplayDetector
	refused *bool
}

func (d *watchedDetector) Check(seq uint64) (accept func() bool, ok bool) {
	accept, ok = d.ReplayDetector.Check(seq)
	*d.refused = !ok
	return accept, ok
}

// open returns the speech in a packet from the wire, valid until the next call, and the packet's place in the stream: the
// sequence number extended by the rollovers. The cheap checks come first; nothing is remembered of a packet that is not
// authentic.
func (o *opener) open(packet []byte) (index uint64, payload []byte, err error) {
	if len(packet) != PacketSize {
		return 0, nil, errSize
	}
	ssrc := binary.BigEndian.Uint32(packet[8:])
	// The marker bit means nothing here; a peer that sets it at the start of speech is let in.
	if packet[0] != plainFirstByte || packet[1]&0x7f != PayloadType || o.latched && ssrc != o.ssrc {
		return 0, nil, errHeader
	}
	o.replay = false
	out, err := o.ctx.DecryptRTP(o.plain[:0], packet, &o.parsed)
	switch {
	case o.replay:
		return 0, nil, errReplay
	case err != nil:
		return 0, nil, errForged
	case len(out) != len(o.plain):
		return 0, nil, errSize
	}
	o.ssrc, o.latched = ssrc, true
	return o.extend(binary.BigEndian.Uint16(packet[2:])), out[headerSize:], nil
}

// extend is RFC 3711 §3.3.1: the index nearest to the highest authentic one that has these low 16 bits. It begins one
// rollover up, so that packets before the first one have a place too.
func (o *opener) extend(seq uint16) uint64 {
	if !o.any {
		o.any, o.highest = true, 1<<16|uint64(seq)
		return o.highest
	}
	index := o.highest + uint64(int64(int16(seq-uint16(o.highest))))
	o.highest = max(o.highest, index)
	return index
}
