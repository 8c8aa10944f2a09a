package codec

import (
	"errors"
	"fmt"

	"github.com/thesyncim/gopus"
)

const (
	// SampleRate is the only sampling rate, in Hz.
	SampleRate = 48000
	// FrameSamples is the length of a frame in samples: 20 ms.
	FrameSamples = SampleRate / 50
	// FrameMillis is the length of a frame in milliseconds.
	FrameMillis = 20
	// BitRate is the constant bit rate of the codec, in bit/s.
	BitRate = 24000
	// PacketSize is the size of every packet, in bytes: BitRate × 20 ms.
	PacketSize = BitRate / 8 / 50
	// complexity is the encoder's effort, 0 to 10. The highest costs 0.3 ms a frame at the median and 0.6 ms at p99 on
	// the 2-core reference machine (docs of the room: BenchmarkEncode), so there is no reason to take less.
	complexity = 10
)

// The errors that a caller branches on.
var (
	// ErrFrameLength: a frame that is not FrameSamples long was given.
	ErrFrameLength = errors.New("frame is not 960 samples long")
	// ErrPacketSize: a packet is not PacketSize bytes long. From Encode it means that the codec broke the constant
	// shape, and the packet must not be sent.
	ErrPacketSize = errors.New("packet is not 60 bytes long")
	// ErrPacketContent: a packet of the right size does not decode to one frame.
	ErrPacketContent = errors.New("packet is not one 20 ms Opus frame")
	// ErrPanic: the Opus decoder panicked. It was reset and can go on; see Decoder.
	ErrPanic = errors.New("the Opus decoder panicked")
)

// Encoder makes packets of one stream. It keeps state from frame to frame and is not safe for concurrent use.
type Encoder struct {
	enc *gopus.Encoder
}

// NewEncoder returns an encoder at the start of a stream.
func NewEncoder() (*Encoder, error) {
	enc, err := gopus.NewEncoder(gopus.EncoderConfig{
		SampleRate: SampleRate, Channels: 1, Application: gopus.ApplicationVoIP,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot make an Opus encoder: %w", err)
	}
	enc.SetVBR(false)
	enc.SetDTX(false)
	enc.SetFEC(false)
	if err := errors.Join(
		enc.SetBitrate(BitRate),
		enc.SetFrameSize(FrameSamples),
		enc.SetComplexity(complexity),
		enc.SetSignal(gopus.SignalVoice),
	); err != nil {
		return nil, fmt.Errorf("cannot set up the Opus encoder: %w", err)
	}
	if enc.VBR() || enc.DTXEnabled() || enc.FECEnabled() || enc.Bitrate() != BitRate || enc.FrameSize() != FrameSamples {
		return nil, errors.New("cannot set up the Opus encoder: a setting was not taken over")
	}
	return &Encoder{enc: enc}, nil
}

// Encode encodes frame, which is FrameSamples long, into packet, which is PacketSize long and always filled whole.
// On an error packet holds nothing of use and must not be sent.
func (e *Encoder) Encode(packet []byte, frame []int16) error {
	if len(frame) != FrameSamples {
		return fmt.Errorf("cannot encode %d samples: %w", len(frame), ErrFrameLength)
	}
	if len(packet) != PacketSize {
		return fmt.Errorf("cannot encode into %d bytes: %w", len(packet), ErrPacketSize)
	}
	n, err := e.enc.EncodeInt16(frame, packet)
	if err != nil {
		return fmt.Errorf("cannot encode a frame: %w", err)
	}
	if n != PacketSize {
		return fmt.Errorf("cannot send the %d bytes of an encoded frame: %w", n, ErrPacketSize)
	}
	return nil
}

// Lookahead is the delay that the encoder adds, in samples: sample n of the microphone is heard in sample n+Lookahead of the
// decoded stream.
func (e *Encoder) Lookahead() int { return e.enc.Lookahead() }

// Decoder plays packets of one stream. It keeps state from packet to packet and is not safe for concurrent use.
//
// The peer that sends the packets is authenticated but not trusted, and the Opus decoder is young: its panics are caught and
// reported as ErrPanic, so that a hostile packet costs 20 ms of sound and not the process that carries the call. The fuzz
// test of this package calls the decoder without that net.
type Decoder struct {
	dec *gopus.Decoder
	// scratch is as long as the longest Opus packet (120 ms), so that the decoder never sees a buffer that is too short
	// for what a hostile packet claims to hold.
	scratch []int16
}

// maxPacketSamples is the longest duration an Opus packet can claim: 120 ms (RFC 6716 §3.4 R5).
const maxPacketSamples = SampleRate * 120 / 1000

// NewDecoder returns a decoder at the start of a stream.
func NewDecoder() (*Decoder, error) {
	dec, err := gopus.NewDecoder(gopus.DecoderConfig{
		SampleRate: SampleRate, Channels: 1, MaxPacketSamples: maxPacketSamples, MaxPacketBytes: PacketSize,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot make an Opus decoder: %w", err)
	}
	return &Decoder{dec: dec, scratch: make([]int16, maxPacketSamples)}, nil
}

// Decode decodes packet, which must be PacketSize long, into frame, which is FrameSamples long. After an error frame is not
// changed and Conceal is the right call.
func (d *Decoder) Decode(frame []int16, packet []byte) error {
	if len(packet) != PacketSize {
		return fmt.Errorf("cannot decode %d bytes: %w", len(packet), ErrPacketSize)
	}
	return d.decode(frame, packet)
}

// Conceal fills frame, which is FrameSamples long, with what the codec thinks a lost packet may have held: a continuation that
// fades out over a few frames.
func (d *Decoder) Conceal(frame []int16) error { return d.decode(frame, nil) }

func (d *Decoder) decode(frame []int16, packet []byte) (err error) {
	if len(frame) != FrameSamples {
		return fmt.Errorf("cannot decode into %d samples: %w", len(frame), ErrFrameLength)
	}
	defer func() {
		if r := recover(); r != nil {
			d.dec.Reset()
			err = fmt.Errorf("cannot decode a packet: %w: %v", ErrPanic, r)
		}
	}()
	return d.decodeBare(frame, packet)
}

func (d *Decoder) decodeBare(frame []int16, packet []byte) error {
	out := d.scratch
	if packet == nil {
		// The length asked for is the length concealed.
		out = out[:FrameSamples]
	}
	n, err := d.dec.DecodeInt16(packet, out)
	if err != nil {
		return fmt.Errorf("cannot decode a packet: %w: %w", ErrPacketContent, err)
	}
	if n != FrameSamples {
		return fmt.Errorf("cannot play a packet of %d samples: %w", n, ErrPacketContent)
	}
	copy(frame, out[:n])
	return nil
}
