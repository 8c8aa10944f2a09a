package media

import (
	"bytes"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"rempart/internal/proof"
	"rempart/voice/codec"
)

// TestHostileNetwork runs a call through a network that does what it likes with the packets. Each kind of interference is
// counted as what it is and none is heard: the call sounds as it does without it.
func TestHostileNetwork(t *testing.T) {
	proof.SFR(t, "FCS_SRTP_EXT.1", "TestHostileNetworkTwin")
	synctest.Test(t, func(t *testing.T) {
		c := newCall(t, nil)
		stranger, err := newSealer(key(50), 0xa0a0)
		if err != nil {
			t.Fatal(err)
		}
		otherSource, err := newSealer(key(1), 0xeeee)
		if err != nil {
			t.Fatal(err)
		}
		stranger.header.SequenceNumber = c.a.seal.header.SequenceNumber + 1000 // what is behind counts as a replay
		want := Stats{}
		peer := c.wa.addr
		inject := func(count *int64, data []byte, from *net.UDPAddr) {
			*count++
			c.wb.inject(data, from)
		}
		interfere := func(p []byte) {
			inject(&want.BadSize, nil, peer)
			inject(&want.BadSize, p[:len(p)-1], peer)
			inject(&want.BadSize, append(slices.Clone(p), 0), peer)
			inject(&want.BadSize, bytes.Repeat(p, 20), peer)
			inject(&want.BadHeader, sealNext(t, otherSource, 1), peer)
			wrong := slices.Clone(p)
			wrong[1] = 96
			inject(&want.BadHeader, wrong, peer)
			inject(&want.Forged, sealNext(t, stranger, 1), peer)
			flipped := slices.Clone(p)
			flipped[60] ^= 4
			inject(&want.Forged, flipped, peer)
			ahead := slices.Clone(p) // would move the rollover counter
			ahead[2] += 0x40
			inject(&want.Forged, ahead, peer)
			// From elsewhere even the real packet is nothing; the one from the peer comes after it and is heard.
			inject(&want.Strangers, p, localAddr("10.77.0.99:40000"))
			inject(&want.Strangers, p, localAddr("10.77.0.11:40001"))
			inject(&want.Strangers, p, localAddr("[fd77::11]:40000"))
		}
		c.wa.path = func(n int, p []byte) []time.Duration {
			if n > 0 && n%5 == 0 {
				interfere(p)
				want.Duplicate++
				return []time.Duration{time.Millisecond, 2 * time.Millisecond}
			}
			return []time.Duration{time.Millisecond}
		}
		c.start(t)
		time.Sleep(2 * time.Second)
		_, got := c.stop(t)
		if got.BadSize != want.BadSize || got.BadHeader != want.BadHeader || got.Forged != want.Forged ||
			got.Strangers != want.Strangers || got.Duplicate != want.Duplicate {
			t.Errorf("counted %+v,\nwant %+v", got, want)
		}
		if got.Bad() < 200 || got.Lost != 0 || got.Late != 0 || got.Resyncs != 0 {
			t.Errorf("the interference was felt: %+v", got)
		}
		if got.ReceivedBytesMin != PacketSize || got.ReceivedBytesMax != PacketSize {
			t.Errorf("packets of %d to %d bytes were received", got.ReceivedBytesMin, got.ReceivedBytesMax)
		}
		frames := c.sb.played()
		for len(frames) > 0 && !frames[len(frames)-1].heard {
			frames = frames[:len(frames)-1]
		}
		heard := samplesOf(frames)
		if here := decodedHere(t, c.wa.outgoing(), c.keyA2B); len(heard) < 90*codec.FrameSamples || !slices.Equal(heard, here[:len(heard)]) {
			t.Error("what is heard is not what was sent")
		}
	})
}

// TestHostileNetworkTwin is the twin: a forger who has the key is heard. It shows that it is the key that keeps him out above.
func TestHostileNetworkTwin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCall(t, nil)
		c.wa.path = func(int, []byte) []time.Duration { return nil } // the peer itself is cut off
		forger, err := newSealer(key(1), 0xa0a0)
		if err != nil {
			t.Fatal(err)
		}
		c.start(t)
		for range 50 {
			c.wb.inject(sealNext(t, forger, 1), c.wa.addr)
			time.Sleep(20 * time.Millisecond)
		}
		_, got := c.stop(t)
		if got.Received != 50 || got.Forged != 0 {
			t.Errorf("with the key: %+v", got)
		}
	})
}

// TestAuthenticNonsense: the peer holds the key and sends what is no speech.
func TestAuthenticNonsense(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCall(t, nil)
		c.wa.path = func(int, []byte) []time.Duration { return nil }
		s, err := newSealer(key(1), 0xa0a0)
		if err != nil {
			t.Fatal(err)
		}
		c.start(t)
		for i := range 100 {
			// 0xff: a stereo packet of several frames whose lengths do not add up (RFC 6716 §3.2.5).
			fill := byte(i)
			if i%2 == 0 {
				fill = 0xff
			}
			c.wb.inject(sealNext(t, s, fill), c.wa.addr)
			time.Sleep(20 * time.Millisecond)
		}
		_, got := c.stop(t)
		if got.Received != 100 || got.BadContent < 40 || got.Played+got.Concealed < 100 {
			t.Errorf("%+v", got)
		}
	})
}

// TestNothingBeforeTheFirstPacket: a speaker does not even start for packets that are refused.
func TestNothingBeforeTheFirstPacket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCall(t, nil)
		c.wa.path = func(int, []byte) []time.Duration { return nil }
		c.start(t)
		for range 20 {
			c.wb.inject(make([]byte, PacketSize), c.wa.addr)
			time.Sleep(20 * time.Millisecond)
		}
		_, got := c.stop(t)
		if n := len(c.sb.played()); n != 0 || got.FirstAudioNS != 0 {
			t.Errorf("%d frames were played, first audio at %d", n, got.FirstAudioNS)
		}
	})
}

// TestProcessStandsStill: the sender cannot run for a while. Up to catchUp nothing is lost; beyond it the stall is counted and
// the other end moves its timeline once.
func TestProcessStandsStill(t *testing.T) {
	for _, tc := range []struct {
		stall  time.Duration
		stalls int64
	}{{30 * time.Millisecond, 0}, {150 * time.Millisecond, 0}, {2 * time.Second, 1}} {
		t.Run(tc.stall.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCall(t, nil)
				c.ma.stallAt, c.ma.stall = 20, tc.stall
				c.start(t)
				time.Sleep(2*time.Second + tc.stall)
				a, b := c.stop(t)
				if a.SendStalls != tc.stalls || b.Lost != 0 {
					t.Errorf("%d stalls, %d lost", a.SendStalls, b.Lost)
				}
				// The clock is kept: so many packets were sent as there were ticks, less what a long stall gave up.
				ticks := int64((2*time.Second + tc.stall) / (20 * time.Millisecond))
				if tc.stalls == 0 && (a.Sent < ticks-2 || a.Sent > ticks) {
					t.Errorf("%d packets in %d ticks", a.Sent, ticks)
				}
				if tc.stalls == 1 && (b.Resyncs == 0 || a.Sent > ticks-80) {
					t.Errorf("%d resyncs, %d packets", b.Resyncs, a.Sent)
				}
				// Both ends are in step again at the end.
				frames := c.sb.played()
				for _, f := range frames[len(frames)-30 : len(frames)-5] {
					if !f.heard {
						t.Fatal("speech is still concealed long after the stall")
					}
				}
			})
		})
	}
}
