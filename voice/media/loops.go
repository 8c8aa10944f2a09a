package media

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"time"

	"rempart/voice/codec"
)

const (
	// guard is the time between a frame's last sample and its packet's moment on the wire. The frame is encoded and
	// protected within it, so that the moment does not depend on how long that takes, which depends on what is said.
	guard = int64(4 * time.Millisecond)
	// grace is how long after its moment a packet still waits for the microphone.
	grace = int64(6 * time.Millisecond)
	// catchUp is how far behind its clock the sender may be and still send every frame.
	catchUp = int64(200 * time.Millisecond)
	// stall is how late a timer fires when the process has been kept from running.
	stall = int64(5 * time.Millisecond)
)

// sendLoop sends packet n at start + (n+1) × 20 ms + guard, an absolute timeline: a delay of one packet does not move the next.
func (s *Session) sendLoop(ctx context.Context) error {
	pcm, payload := make([]int16, codec.FrameSamples), make([]byte, codec.PacketSize)
	defer clear(payload)
	defer clear(pcm)
	missing := int64(0)
	tick := s.cfg.Clock() + guard
	for {
		tick += frame
		if behind := s.cfg.Clock() - tick; behind > catchUp {
			// The process stood still. What was recorded meanwhile is given up, not sent in one burst.
			n := behind / frame
			tick += n * frame
			missing += n
			s.count(func(st *Stats) { st.SendStalls++ })
		}
		if err := s.record(pcm, tick+grace, &missing); err != nil {
			return err
		}
		if err := s.enc.Encode(payload, pcm); err != nil {
			return err
		}
		packet, err := s.seal.seal(payload)
		if err != nil {
			return err
		}
		if !s.sleep(ctx, tick) {
			return nil
		}
		n, err := s.cfg.Conn.WriteTo(packet, s.remote)
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("cannot send speech: %w", err)
		}
		s.mu.Lock()
		if err != nil || n != len(packet) {
			s.stats.SendErrors++
		} else {
			s.stats.Sent++
			s.stats.SentBytesMin, s.stats.SentBytesMax = extremes(s.stats.Sent, s.stats.SentBytesMin, s.stats.SentBytesMax, n)
		}
		silent := s.cfg.Clock() - s.lastHeard
		s.mu.Unlock()
		if silent > int64(s.cfg.Idle) {
			return ErrPeerSilent
		}
	}
}

// record fills pcm with the next frame of the microphone, or with silence if there is none until the clock shows until. Missing
// counts the frames by which the microphone is behind: when it catches up, so many old ones are dropped.
func (s *Session) record(pcm []int16, until int64, missing *int64) error {
	ok, err := s.cfg.Mic.ReadFrame(pcm, until)
	for ok && err == nil && *missing > 0 {
		// The frame in hand is the oldest. If a newer one is due already, the old one is given up for it.
		if ok, err = s.cfg.Mic.ReadFrame(pcm, s.cfg.Clock()); ok {
			*missing--
		} else {
			return wrapMic(err)
		}
	}
	if err != nil {
		return wrapMic(err)
	}
	if !ok {
		clear(pcm)
		*missing++
		s.count(func(st *Stats) { st.MicSilence++ })
	}
	return nil
}

func wrapMic(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("cannot record speech: %w", err)
}

// receiveLoop takes packets from the socket into the jitter buffer.
func (s *Session) receiveLoop(ctx context.Context) error {
	// One byte more than a packet tells one that is too long from one that fits.
	buf := make([]byte, PacketSize+1)
	for {
		n, from, err := s.cfg.Conn.ReadFrom(buf)
		now := s.cfg.Clock()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("cannot receive speech: %w", err)
		case err != nil:
			// A network that is down for a moment ends no call; the silence that follows may.
			if !s.sleep(ctx, now+frame) {
				return nil
			}
		case !s.fromPeer(from):
			s.count(func(st *Stats) { st.Strangers++ })
		default:
			s.receive(now, buf[:n])
		}
	}
}

// fromPeer tells whether an address is the agreed one.
func (s *Session) fromPeer(from net.Addr) bool {
	a, ok := from.(*net.UDPAddr)
	if !ok {
		return false
	}
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()) == s.cfg.Remote
}

// receive takes one packet that came at now.
func (s *Session) receive(now int64, packet []byte) {
	index, payload, err := s.open.open(packet)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case errors.Is(err, errSize):
		s.stats.BadSize++
	case errors.Is(err, errHeader):
		s.stats.BadHeader++
	case errors.Is(err, errReplay):
		s.stats.Duplicate++
	case err != nil:
		s.stats.Forged++
	default:
		first := !s.playout.any
		s.playout.arrive(now, index, payload)
		s.lastHeard = now
		s.stats.ReceivedBytesMin, s.stats.ReceivedBytesMax =
			extremes(s.playout.distinct, s.stats.ReceivedBytesMin, s.stats.ReceivedBytesMax, len(packet))
		// RFC 3550 §6.4.1, in nanoseconds; the place in the stream stands for the timestamp.
		transit := now - int64(index)*frame
		if !first {
			s.jitter += (math.Abs(float64(transit-s.transit)) - s.jitter) / 16
		}
		s.transit = transit
		select {
		case s.arrived <- struct{}{}:
		default: // the player has not looked since the last one
		}
	}
}

// playLoop moves frames from the jitter buffer through the decoder to the speaker.
func (s *Session) playLoop(ctx context.Context) error {
	pcm, payload := make([]int16, codec.FrameSamples), make([]byte, codec.PacketSize)
	defer clear(payload)
	defer clear(pcm)
	for ctx.Err() == nil {
		s.mu.Lock()
		st := s.playout.step(s.cfg.Clock())
		copy(payload, st.payload)
		s.mu.Unlock()
		if st.kind == wait {
			s.awaitPacket(ctx, st.at)
			continue
		}
		heard := false
		if st.kind == play {
			err := s.dec.Decode(pcm, payload)
			if heard = err == nil; !heard {
				s.count(func(st *Stats) { st.BadContent++ })
			}
		}
		if !heard {
			if err := s.dec.Conceal(pcm); err != nil {
				clear(pcm)
			}
		}
		if err := s.cfg.Speaker.WriteFrame(st.at, pcm, heard); err != nil {
			return fmt.Errorf("cannot play speech: %w", err)
		}
		s.count(func(c *Stats) {
			switch {
			case !heard:
				c.Concealed++
			default:
				c.Played++
				if c.FirstAudioNS == 0 {
					c.FirstAudioNS = st.at
				}
			}
		})
	}
	return nil
}

// awaitPacket waits for a packet, or until the clock shows until unless that is 0.
func (s *Session) awaitPacket(ctx context.Context, until int64) {
	var timeout <-chan time.Time
	if until != 0 {
		timer := time.NewTimer(time.Duration(until - s.cfg.Clock()))
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-timeout:
		if s.cfg.Clock()-until > stall {
			// The process stood still, and what came meanwhile is still in the socket: the receiver goes first, so
			// that it is not concealed in its presence.
			s.sleep(ctx, s.cfg.Clock()+int64(2*time.Millisecond))
		}
	case <-s.arrived:
	case <-ctx.Done():
	}
}

// extremes is the smallest and the largest of n sizes, the last of which is v.
func extremes(n int64, low, high, v int) (int, int) {
	if n == 1 {
		return v, v
	}
	return min(low, v), max(high, v)
}
