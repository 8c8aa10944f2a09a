package media

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"rempart/voice/codec"
)

const ms = int64(time.Millisecond)

func payloadOf(index uint64) []byte {
	return bytes.Repeat([]byte{byte(index)}, codec.PacketSize)
}

func newPlayout() *playout { return &playout{target: 40 * ms} }

// drain takes steps at now until the buffer waits, and returns them with the wait.
func drain(t testing.TB, p *playout, now int64) (steps []step, until int64) {
	t.Helper()
	for range 10000 {
		s := p.step(now)
		if s.kind == wait {
			if s.at != 0 && s.at <= now {
				t.Fatalf("at %d told to wait until %d", now, s.at)
			}
			return steps, s.at
		}
		steps = append(steps, s)
	}
	t.Fatalf("10000 steps at one moment")
	return nil, 0
}

func TestPlayoutTimeline(t *testing.T) {
	p := newPlayout()
	if steps, until := drain(t, p, 5*ms); len(steps) != 0 || until != 0 {
		t.Fatalf("an empty buffer: %v, %d", steps, until)
	}
	p.arrive(100*ms, 70000, payloadOf(70000))
	if steps, until := drain(t, p, 100*ms); len(steps) != 0 || until != 120*ms {
		t.Fatalf("after the first packet: %v, until %d ms", steps, until/ms)
	}
	p.arrive(119*ms, 70001, payloadOf(70001))
	// The second one came 1 ms early, so the first was held up by 1 ms: the timeline begins 1 ms earlier.
	steps, until := drain(t, p, 119*ms)
	if len(steps) != 2 || steps[0].kind != play || steps[0].at != 139*ms || steps[1].at != 159*ms {
		t.Fatalf("at the start: %v", steps)
	}
	if until != 179*ms-lead {
		t.Errorf("waits for packet 2 until %d ms, want %d", until/ms, 169)
	}
	steps, until = drain(t, p, 169*ms)
	if len(steps) != 1 || steps[0].kind != conceal || steps[0].at != 179*ms || until != 189*ms {
		t.Errorf("packet 2 missing: %v, until %d ms", steps, until/ms)
	}
	if f := p.arrive(170*ms, 70002, payloadOf(70002)); f != tooLate || p.late != 1 || p.lost() != 0 {
		t.Errorf("packet 2 after its time: %v, late %d, lost %d", f, p.late, p.lost())
	}
	p.arrive(171*ms, 70004, payloadOf(70004))
	if p.lost() != 1 {
		t.Errorf("%d lost while packet 3 is on its way", p.lost())
	}
	if f := p.arrive(171*ms, 70004, payloadOf(70004)); f != seenBefore || p.duplicate != 1 {
		t.Errorf("packet 4 twice: %v", f)
	}
	p.arrive(172*ms, 70003, payloadOf(70003))
	steps, _ = drain(t, p, 172*ms)
	if len(steps) != 2 || steps[0].at != 199*ms || steps[1].at != 219*ms || p.lost() != 0 {
		t.Errorf("packets 4 and 3: %v, lost %d", steps, p.lost())
	}
}

func TestPlayoutDoesNotRunAhead(t *testing.T) {
	// A burst, as after a stall of the sender's network: what waits is given to the device no earlier than it needs it.
	p := newPlayout()
	for i := range uint64(10) {
		p.arrive(int64(i)*20*ms, i, payloadOf(i))
		drain(t, p, int64(i)*20*ms)
	}
	for i := uint64(10); i < 30; i++ {
		p.arrive(200*ms, i, payloadOf(i))
	}
	steps, until := drain(t, p, 200*ms)
	for _, s := range steps {
		if s.at > 200*ms+p.target+frame {
			t.Errorf("a frame for %d ms is given at 200 ms", s.at/ms)
		}
	}
	if until <= 200*ms || until > 220*ms {
		t.Errorf("the next step is at %d ms", until/ms)
	}
}

func TestPlayoutStartsLate(t *testing.T) {
	// Packets had waited in the socket for a second before the session began. What is played begins with those whose time is
	// still to come.
	p := newPlayout()
	for i := range uint64(50) {
		p.arrive(1000*ms, i, payloadOf(i))
	}
	steps, _ := drain(t, p, 1000*ms)
	if len(steps) == 0 || steps[0].kind != play || steps[0].at < 1000*ms || steps[0].at > 1040*ms {
		t.Fatalf("the first steps: %v", steps)
	}
	if p.skipped < 45 || p.skipped+int64(len(steps)) > 50 {
		t.Errorf("%d skipped, %d played", p.skipped, len(steps))
	}
	// And from a peer that had begun long before that.
	p = newPlayout()
	for i := range uint64(500) {
		p.arrive(1000*ms, i, payloadOf(i))
	}
	if steps, _ := drain(t, p, 1000*ms); len(steps) == 0 || steps[0].kind != play {
		t.Errorf("after 500 packets at once: %v", steps)
	}
}

func TestPlayoutMovesForALongerPath(t *testing.T) {
	p := newPlayout()
	now := int64(0)
	for i := range uint64(20) {
		now = int64(i) * 20 * ms
		p.arrive(now, i, payloadOf(i))
		drain(t, p, now)
	}
	// From here on every packet takes 300 ms more.
	var steps []step
	heard := 0
	for i := uint64(20); i < 100; i++ {
		for now < int64(i)*20*ms+300*ms {
			now += ms
			s, _ := drain(t, p, now)
			steps = append(steps, s...)
		}
		p.arrive(now, i, payloadOf(i))
	}
	for i, s := range steps {
		if i > 0 && s.at != steps[i-1].at+frame {
			t.Fatalf("step %d is %d ms after the one before it", i, (s.at-steps[i-1].at)/ms)
		}
		if s.kind == play {
			heard++
		}
	}
	if p.resyncs != 1 || p.late != patience-1 || heard < 100-20-patience-5 {
		t.Errorf("%d resyncs, %d late, %d heard", p.resyncs, p.late, heard)
	}
}

func TestPlayoutFarAhead(t *testing.T) {
	p := newPlayout()
	p.arrive(0, 0, payloadOf(0))
	drain(t, p, 30*ms)
	p.arrive(50*ms, 5000, payloadOf(5000))
	if p.resyncs != 1 {
		t.Fatalf("%d resyncs", p.resyncs)
	}
	var played []step
	for now := 50 * ms; now < 200*ms; now += ms {
		s, _ := drain(t, p, now)
		for _, one := range s {
			if one.kind == play {
				played = append(played, one)
			}
		}
	}
	if len(played) != 1 || played[0].payload[0] != byte(5000%256) || played[0].at < 90*ms {
		t.Errorf("played %v", played)
	}
	if p.lost() != 4999 {
		t.Errorf("%d lost", p.lost())
	}
}

// TestPlayoutRandom feeds random networks and holds what comes out against what any jitter buffer owes: the frames follow
// each other every 20 ms, packets are played in order and once, none before it came, and every packet that came in time
// is played.
func TestPlayoutRandom(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		p := newPlayout()
		const n = 300
		loss, spread := rng.Float64()*0.3, rng.Int64N(60)+1
		arrivals := map[int64][]uint64{}
		came := map[uint64]int64{}
		for i := range uint64(n) {
			if rng.Float64() < loss {
				continue
			}
			at := int64(i)*20 + rng.Int64N(spread)
			arrivals[at] = append(arrivals[at], i)
			came[i] = at * ms
		}
		var last step
		played := map[byte]int{}
		var order []uint64
		var base int64
		for now := int64(0); now < n*20+500; now++ {
			for _, i := range arrivals[now] {
				p.arrive(now*ms, i, payloadOf(i))
			}
			steps, _ := drain(t, p, now*ms)
			for _, s := range steps {
				if last.at != 0 && s.at != last.at+frame {
					t.Fatalf("seed %d: a frame at %d ms after one at %d ms", seed, s.at/ms, last.at/ms)
				}
				if base == 0 {
					base = s.at - (int64(p.next)-int64(len(steps)))*frame
				}
				last = s
				if s.kind != play {
					continue
				}
				index := uint64(s.at-base) / uint64(frame)
				if p.resyncs == 0 && byte(index) != s.payload[0] {
					t.Fatalf("seed %d: packet %d is played in the place of %d", seed, s.payload[0], index)
				}
				if p.resyncs == 0 {
					order = append(order, index)
					played[s.payload[0]]++
					if came[index] > now*ms {
						t.Fatalf("seed %d: packet %d is played before it came", seed, index)
					}
				}
			}
		}
		for i := 1; i < len(order); i++ {
			if order[i] <= order[i-1] {
				t.Fatalf("seed %d: packet %d after %d", seed, order[i], order[i-1])
			}
		}
		if p.resyncs > 0 {
			continue
		}
		inTime := 0
		for i, at := range came {
			if at <= base+int64(i)*frame-lead && i >= order[0] {
				inTime++
			}
		}
		if len(order) < inTime {
			t.Errorf("seed %d: %d packets came in time, %d were played", seed, inTime, len(order))
		}
		if got := int64(len(order)) + p.late + p.skipped; got != p.distinct {
			t.Errorf("seed %d: %d played, %d late, %d skipped of %d received", seed, len(order), p.late, p.skipped, p.distinct)
		}
	}
}

// FuzzPlayout drives the buffer with arbitrary packets and times: it neither panics nor plays in two places at once nor stops.
func FuzzPlayout(f *testing.F) {
	f.Add([]byte{0, 20, 1, 1, 20, 1, 2, 20, 1})
	f.Add([]byte{0, 200, 1, 255, 20, 9, 2, 250, 1})
	f.Fuzz(func(t *testing.T, script []byte) {
		p := newPlayout()
		now, index, last := int64(1000*ms), uint64(1<<16), int64(0)
		for len(script) >= 3 {
			index = uint64(max(0, int64(index)+int64(int8(script[0]))*int64(script[2])))
			now += int64(script[1]) * ms
			script = script[3:]
			p.arrive(now, index, payloadOf(index))
			steps, _ := drain(t, p, now)
			for _, s := range steps {
				if last != 0 && s.at != last+frame {
					t.Fatalf("a frame at %d after one at %d", s.at, last)
				}
				if last = s.at; s.at > now+p.target+16*frame {
					t.Fatalf("a frame is given %d ms ahead", (s.at-now)/ms)
				}
			}
		}
	})
}
