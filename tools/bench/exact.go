package main

import (
	"fmt"
	"math"

	"rempart/tools/sound"
	"rempart/voice/codec"
)

// maxMissed is how many packets before the first heard one are looked at: a
// callee may open its sound a moment after the caller's first packet.
const maxMissed = 25

// speech is what one microphone says, as packets: the encoder is
// deterministic, so these are the packets of every call.
type speech struct {
	clip    sound.Clip
	packets [][]byte
	decoded map[int][]int16 // by the first packet heard
}

// match says how far a recording equals the local decode of the same packets.
type match struct {
	First    int `json:"first_packet"` // index of the first packet heard
	Compared int `json:"compared"`     // samples
	Equal    int `json:"equal"`        // samples
}

// newSpeech encodes a clip at 48 kHz as a call does, in silence after its end,
// up to a number of seconds.
func newSpeech(clip sound.Clip, seconds int) (*speech, error) {
	if clip.Rate != codec.SampleRate {
		return nil, fmt.Errorf("cannot encode %d samples per second, expected %d", clip.Rate, codec.SampleRate)
	}
	e, err := codec.NewEncoder()
	if err != nil {
		return nil, err
	}
	s := &speech{clip: clip, decoded: map[int][]int16{}}
	all := samples16(clip)
	for at := 0; at < seconds*codec.SampleRate; at += codec.FrameSamples {
		frame, packet := make([]int16, codec.FrameSamples), make([]byte, codec.PacketSize)
		if at < len(all) {
			copy(frame, all[at:])
		}
		if err := e.Encode(packet, frame); err != nil {
			return nil, err
		}
		s.packets = append(s.packets, packet)
	}
	return s, nil
}

// decode returns what a decoder makes of the packets from first on.
func (s *speech) decode(first int) ([]int16, error) {
	if out, ok := s.decoded[first]; ok {
		return out, nil
	}
	d, err := codec.NewDecoder()
	if err != nil {
		return nil, err
	}
	var out []int16
	frame := make([]int16, codec.FrameSamples)
	for _, packet := range s.packets[first:] {
		if err := d.Decode(frame, packet); err != nil {
			return nil, err
		}
		out = append(out, frame...)
	}
	s.decoded[first] = out
	return out, nil
}

// compare holds a recording, from its first sample, against the local decode.
// frames is how many packets it was made of: what follows them is what the
// player made up after the last. The best of the possible first packets counts.
func (s *speech) compare(received []int16, frames int) (match, error) {
	received = received[:min(len(received), frames*codec.FrameSamples)]
	var best match
	for first := range min(maxMissed, len(s.packets)) {
		local, err := s.decode(first)
		if err != nil {
			return best, err
		}
		m := match{First: first, Compared: len(received)}
		for i := range min(len(received), len(local)) {
			if received[i] == local[i] {
				m.Equal++
			}
		}
		if first == 0 || m.Equal > best.Equal {
			best = m
		}
		if best.Equal == best.Compared {
			break
		}
	}
	return best, nil
}

// samples16 returns a clip as 16-bit samples, as its file has them.
func samples16(c sound.Clip) []int16 {
	out := make([]int16, len(c.Samples))
	for i, v := range c.Samples {
		out[i] = int16(math.Round(max(-32768, min(32767, v*32768))))
	}
	return out
}
