package media

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"rempart/internal/proof"
	"rempart/internal/secret"
	"rempart/voice/codec"
)

// decodedHere decodes the packets that left a wire, in the order of their numbers: what the other end must have played.
func decodedHere(t testing.TB, sent []datagram, k *secret.Bytes) []int16 {
	t.Helper()
	o, err := newOpener(k, 0)
	if err != nil {
		t.Fatal(err)
	}
	dec, err := codec.NewDecoder()
	if err != nil {
		t.Fatal(err)
	}
	var out []int16
	pcm := make([]int16, codec.FrameSamples)
	for _, d := range sent {
		_, payload, err := o.open(d.data)
		if err != nil {
			t.Fatal(err)
		}
		if err := dec.Decode(pcm, payload); err != nil {
			t.Fatal(err)
		}
		out = append(out, pcm...)
	}
	return out
}

func samplesOf(frames []heardFrame) []int16 {
	var out []int16
	for _, f := range frames {
		out = append(out, f.pcm...)
	}
	return out
}

func TestPlayedIsALocalDecodeSampleForSample(t *testing.T) {
	// Packets are delayed and put out of order, within what the buffer holds; none is lost.
	paths := map[string]func(n int, _ []byte) []time.Duration{
		"at once":  nil,
		"constant": func(int, []byte) []time.Duration { return []time.Duration{7 * time.Millisecond} },
		"jitter": func(n int, _ []byte) []time.Duration {
			return []time.Duration{time.Duration(n*7919%23) * time.Millisecond}
		},
		"reordered": func(n int, _ []byte) []time.Duration {
			return []time.Duration{time.Duration(n%2) * 25 * time.Millisecond}
		},
		"first one held up": func(n int, _ []byte) []time.Duration {
			if n == 0 {
				return []time.Duration{18 * time.Millisecond}
			}
			return []time.Duration{time.Millisecond}
		},
		"every packet twice": func(n int, _ []byte) []time.Duration {
			return []time.Duration{time.Millisecond, 3 * time.Millisecond}
		},
	}
	for name, path := range paths {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCall(t, nil)
				c.wa.path = path
				c.start(t)
				time.Sleep(2 * time.Second)
				_, b := c.stop(t)
				if b.Lost != 0 || b.Late != 0 || b.Skipped != 0 || b.Bad() != 0 || b.Resyncs != 0 || b.Received < 95 {
					t.Fatalf("statistics %+v", b)
				}
				want := decodedHere(t, c.wa.outgoing(), c.keyA2B)
				frames := c.sb.played()
				for len(frames) > 0 && !frames[len(frames)-1].heard {
					frames = frames[:len(frames)-1] // after the last packet
				}
				got := samplesOf(frames)
				if len(got) < 90*codec.FrameSamples || !slices.Equal(got, want[:len(got)]) {
					t.Fatalf("%d samples were played, not the first of the %d decoded here", len(got), len(want))
				}
				for i, f := range frames {
					if f.at != frames[0].at+int64(i)*frame || f.given > f.at-lead {
						t.Fatalf("frame %d is heard at %d and was given at %d", i, f.at-frames[0].at, f.given-frames[0].at)
					}
				}
				if b.FirstAudioNS != frames[0].at {
					t.Errorf("first audio at %d, want %d", b.FirstAudioNS, frames[0].at)
				}
			})
		})
	}
}

func TestOneSizeOneClock(t *testing.T) {
	proof.SFR(t, "FCO_VOC_EXT.1", "TestOneClockTwin")
	for _, tc := range []struct {
		name string
		set  func(c *call)
	}{
		{"speech, then silence", func(*call) {}},
		{"the peer is not there", func(c *call) { c.wa.path = func(int, []byte) []time.Duration { return nil } }},
		{"a microphone that delivers late", func(c *call) {
			c.ma.late = func(n int) time.Duration { return time.Duration(n%3) * time.Millisecond }
		}},
		{"a microphone that stops delivering", func(c *call) {
			c.ma.late = func(n int) time.Duration {
				if n > 50 {
					return time.Hour
				}
				return 0
			}
		}},
		{"the network refuses packets", func(c *call) { c.wb.failing = errors.New("network is down") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCall(t, func(a, b *Config) { a.Idle, b.Idle = time.Minute, time.Minute })
				c.ma.pcm = c.ma.pcm[:50*codec.FrameSamples]
				tc.set(c)
				time.Sleep(time.Second)
				if len(c.wa.outgoing()) != 0 || len(c.sb.played()) != 0 {
					t.Error("something was sent or played before Run")
				}
				start := time.Now()
				c.start(t)
				time.Sleep(3 * time.Second)
				st, _ := c.stop(t)
				out := c.wa.outgoing()
				if n := len(out); n < 148 || n > 150 || int64(n) != st.Sent {
					t.Errorf("%d packets in 3 s, statistics say %d", n, st.Sent)
				}
				if st.SentBytesMin != PacketSize || st.SentBytesMax != PacketSize {
					t.Errorf("packets of %d to %d bytes", st.SentBytesMin, st.SentBytesMax)
				}
				for i, d := range out {
					want := time.Duration(i+1)*20*time.Millisecond + time.Duration(guard)
					off := d.at.Sub(start) - want
					// A microphone that is not there costs each packet the same grace.
					if off != 0 && (tc.name != "a microphone that stops delivering" || off != time.Duration(grace)) {
						t.Fatalf("packet %d left %v off its clock", i, off)
					}
					if len(d.data) != PacketSize || d.data[0] != 0x80 || d.data[1] != PayloadType {
						t.Fatalf("packet %d is %d bytes, %x", i, len(d.data), d.data[:2])
					}
				}
				time.Sleep(time.Second)
				if len(c.wa.outgoing()) != len(out) {
					t.Error("packets leave after Run has ended")
				}
			})
		})
	}
}

// TestOneClockTwin is the twin of TestOneSizeOneClock: without the sender's clock, a packet leaves when its frame is there, and
// the microphone shows on the wire.
func TestOneClockTwin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &microphone{late: func(n int) time.Duration { return time.Duration(n%3) * time.Millisecond }}
		pcm := make([]int16, codec.FrameSamples)
		var last time.Time
		gaps := map[time.Duration]bool{}
		for range 50 {
			if ok, err := m.ReadFrame(pcm, bubbleClock()+frame*2); !ok || err != nil {
				t.Fatal(ok, err)
			}
			gaps[time.Since(last)] = true
			last = time.Now()
		}
		if len(gaps) < 3 { // the first one, and 20 ms with and without the delay
			t.Errorf("a late microphone does not show: gaps %v", gaps)
		}
	})
}

func TestLossIsConcealedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCall(t, nil)
		lost := map[int]bool{20: true, 50: true, 51: true, 52: true, 90: true}
		late := map[int]bool{70: true, 71: true}
		c.wa.path = func(n int, _ []byte) []time.Duration {
			switch {
			case lost[n]:
				return nil
			case late[n]:
				return []time.Duration{75 * time.Millisecond}
			}
			return []time.Duration{5 * time.Millisecond}
		}
		c.start(t)
		time.Sleep(3 * time.Second)
		_, b := c.stop(t)
		if b.Lost != int64(len(lost)) || b.Late != int64(len(late)) || b.Resyncs != 0 {
			t.Errorf("lost %d, late %d, resyncs %d; want %d, %d, 0", b.Lost, b.Late, b.Resyncs, len(lost), len(late))
		}
		frames := c.sb.played()
		for i, f := range frames[:140] {
			if want := !lost[i] && !late[i]; f.heard != want {
				t.Errorf("frame %d heard: %v, want %v", i, f.heard, want)
			}
			if f.at != frames[0].at+int64(i)*frame {
				t.Fatalf("frame %d is off the timeline", i)
			}
			if f.given > f.at-lead {
				t.Errorf("frame %d was given %v before its time", i, time.Duration(f.at-f.given))
			}
		}
		if b.Played+b.Concealed != int64(len(frames)) {
			t.Errorf("%d played and %d concealed of %d frames", b.Played, b.Concealed, len(frames))
		}
	})
}

func TestDepthIsFixed(t *testing.T) {
	for _, target := range []time.Duration{20 * time.Millisecond, 40 * time.Millisecond, 120 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			c := newCall(t, func(a, b *Config) { b.Target = target })
			c.wa.path = func(n int, _ []byte) []time.Duration { return []time.Duration{3 * time.Millisecond} }
			c.start(t)
			time.Sleep(time.Second)
			c.stop(t)
			sent := c.wa.outgoing()[0].at.UnixNano()
			got := time.Duration(c.sb.played()[0].at - sent)
			if want := 3*time.Millisecond + target; got != want {
				t.Errorf("a frame is heard %v after its packet left, want %v", got, want)
			}
		})
	}
}

func TestPathBecomesLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCall(t, nil)
		c.wa.path = func(n int, _ []byte) []time.Duration {
			if n >= 100 {
				return []time.Duration{90 * time.Millisecond}
			}
			return []time.Duration{2 * time.Millisecond}
		}
		c.start(t)
		time.Sleep(4 * time.Second)
		_, b := c.stop(t)
		if b.Resyncs != 1 || b.Lost != 0 {
			t.Errorf("%d resyncs, %d lost", b.Resyncs, b.Lost)
		}
		frames := c.sb.played()
		for i, f := range frames {
			if f.at != frames[0].at+int64(i)*frame {
				t.Fatalf("the timeline did not move by whole frames at frame %d", i)
			}
			if i > 130 && i < len(frames)-8 && !f.heard {
				t.Errorf("frame %d is still concealed", i)
			}
		}
	})
}

func TestSessionEnds(t *testing.T) {
	for _, tc := range []struct {
		name string
		set  func(c *call)
		want error
	}{
		{"the peer is silent", func(c *call) { c.wb.path = func(int, []byte) []time.Duration { return nil } }, ErrPeerSilent},
		{"the microphone fails", func(c *call) { c.ma.err = errTest }, errTest},
		{"the speaker fails", func(c *call) { c.sa.err, c.sa.failAt = errTest, 5 }, errTest},
		{"the socket is closed", func(c *call) { time.AfterFunc(500*time.Millisecond, func() { c.wa.Close() }) }, net.ErrClosed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCall(t, func(a, b *Config) { a.Idle, b.Idle = time.Second, time.Hour })
				tc.set(c)
				c.start(t)
				time.Sleep(1500 * time.Millisecond)
				synctest.Wait()
				if !errors.Is(c.failures[0], tc.want) {
					t.Errorf("the session ended with %v, want %v", c.failures[0], tc.want)
				}
				sent, played := len(c.wa.outgoing()), len(c.sa.played())
				time.Sleep(200 * time.Millisecond)
				if len(c.wa.outgoing()) != sent || len(c.sa.played()) != played {
					t.Error("one direction goes on after the session has ended")
				}
				c.b.Stop()
				c.wg.Wait()
			})
		})
	}
}

var errTest = errors.New("device unplugged")

func TestRunOnceStopEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCall(t, nil)
		c.a.Stop()
		c.a.Stop()
		if st, err := c.a.Run(t.Context()); err != nil || st.Sent != 0 || len(c.wa.outgoing()) != 0 {
			t.Errorf("a session stopped before its start: %+v, %v", st, err)
		}
		if _, err := c.a.Run(t.Context()); !errors.Is(err, ErrStarted) {
			t.Errorf("second Run: %v", err)
		}
	})
}

func TestNewSessionRefuses(t *testing.T) {
	w, _ := newWires()
	good := func() Config {
		return Config{Conn: w, Remote: netip.MustParseAddrPort("10.77.0.12:40002"), Mic: &microphone{}, Speaker: &speaker{},
			Keys: Keys{Send: key(1), Receive: key(2)}}
	}
	if _, err := NewSession(good()); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"no socket":      func(c *Config) { c.Conn = nil },
		"no microphone":  func(c *Config) { c.Mic = nil },
		"no speaker":     func(c *Config) { c.Speaker = nil },
		"no address":     func(c *Config) { c.Remote = netip.AddrPort{} },
		"no port":        func(c *Config) { c.Remote = netip.MustParseAddrPort("10.77.0.12:0") },
		"any address":    func(c *Config) { c.Remote = netip.MustParseAddrPort("0.0.0.0:4") },
		"multicast":      func(c *Config) { c.Remote = netip.MustParseAddrPort("[ff02::1]:4") },
		"no key":         func(c *Config) { c.Keys.Send = nil },
		"short key":      func(c *Config) { c.Keys.Receive = secret.New(make([]byte, 30)) },
		"no salt":        func(c *Config) { c.Keys.Receive = secret.New(make([]byte, 32)) },
		"shallow buffer": func(c *Config) { c.Target = time.Millisecond },
		"deep buffer":    func(c *Config) { c.Target = time.Minute },
	} {
		c := good()
		change(&c)
		if s, err := NewSession(c); err == nil || s != nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
