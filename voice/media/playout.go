package media

import (
	"time"

	"rempart/voice/codec"
)

const (
	frame = int64(codec.FrameMillis * time.Millisecond)
	// lead is how long before its time a frame is given up for lost, so that concealment can still be made and written.
	lead = int64(10 * time.Millisecond)
	// ringSize bounds the packets that wait: more than a second.
	ringSize = 64
	// patience is how many packets in a row may come too late before the path is taken to have become longer. It is more
	// than what a sender sends at once after it stood still (catchUp).
	patience = 15
)

// playout is the jitter buffer: a pure state machine over packets (arrive) and time (next). All times are nanoseconds of one
// clock.
//
//	          first packet          its time − target/2           patience late in a row,
//	(empty) ───────────────▶ settling ───────────────▶ playing     or one far ahead
//	                                                    ▲  │             │
//	                                                    └──┴── hold n ◀──┘
//
// While settling, the earliest packet relative to its place in the stream sets the timeline, so that a first packet that was
// held up does not delay the whole call. While playing, the timeline is fixed: a packet that is in the buffer is played as
// soon as the device takes it, a missing one is waited for until lead before its time and then concealed. When the path
// becomes longer for good, the timeline moves by whole frames (hold); no frame is ever played twice or cut.
type playout struct {
	target int64 // from the earliest possible moment to the moment a sample is heard
	ring   [ringSize]entry

	any, playing bool
	base         int64  // time at which packet origin would have come without any delay of its own
	origin       uint64 // the first packet that came
	next         uint64 // the packet to play next
	nextAt       int64  // when the next frame is heard
	hold         int64  // frames to conceal before next is played
	lateRun      int

	// The counts of Stats that are the buffer's.
	highest, lowest                             uint64
	distinct, late, duplicate, skipped, resyncs int64
}

type entry struct {
	full    bool
	index   uint64
	payload [codec.PacketSize]byte
}

// fate is what became of a packet.
type fate int

const (
	kept fate = iota
	tooLate
	seenBefore
)

// arrive takes a packet that came at now.
func (p *playout) arrive(now int64, index uint64, payload []byte) fate {
	if !p.any {
		p.any, p.origin, p.base, p.highest, p.lowest, p.next = true, index, now, index, index, index
	}
	e := &p.ring[index%ringSize]
	if e.full && e.index == index {
		p.duplicate++
		return seenBefore
	}
	p.distinct++
	p.highest, p.lowest = max(p.highest, index), min(p.lowest, index)
	switch {
	case !p.playing:
		p.settle(now, index)
	case index < p.next:
		if p.lateRun++; p.lateRun < patience {
			p.late++
			return tooLate
		}
		p.moveTo(now, index)
	case index >= p.next+ringSize:
		p.moveTo(now, index)
	}
	p.lateRun = 0
	if index < p.next { // before the start of a buffer that holds no more
		p.late++
		return tooLate
	}
	e.full, e.index = true, index
	copy(e.payload[:], payload)
	return kept
}

// settle lets a packet that came before the start move the timeline forward in time.
func (p *playout) settle(now int64, index uint64) {
	p.base = min(p.base, now-int64(index-p.origin)*frame)
	switch {
	case index < p.next && p.highest-index < ringSize:
		p.next = index
	case index >= p.next+ringSize: // only a peer that began long ago does this
		p.skip(index - ringSize + 1)
	}
}

// skip gives up packets before to, unplayed.
func (p *playout) skip(to uint64) {
	for ; p.next < to; p.next++ {
		if e := &p.ring[p.next%ringSize]; e.full && e.index == p.next {
			e.full = false
			p.skipped++
		}
	}
}

// moveTo makes index the next packet to play, target from now rounded up to a whole frame of the timeline.
func (p *playout) moveTo(now int64, index uint64) {
	p.resyncs++
	p.next = index
	p.hold = max(0, (now+p.target-p.nextAt+frame-1)/frame)
	for i := range p.ring {
		if e := &p.ring[i]; e.index < index || e.index >= index+ringSize {
			e.full = false
		}
	}
}

// step is what the player is to do.
type step struct {
	kind    stepKind
	at      int64  // wait: until when, 0 for the next packet; else when the frame is heard
	payload []byte // play: valid until the next arrive
}

type stepKind int

const (
	wait stepKind = iota
	play
	conceal
)

// due returns when packet index is heard on a timeline that has not moved yet.
func (p *playout) due(index uint64) int64 {
	return p.base + p.target + int64(index-p.origin)*frame
}

// step says what is to be done at now. A play or conceal takes the frame out of the buffer.
func (p *playout) step(now int64) step {
	if !p.any {
		return step{kind: wait}
	}
	if !p.playing {
		if start := p.due(p.next) - p.target/2; now < start {
			return step{kind: wait, at: start}
		}
		// What waited in the socket for so long that its time is over is not worth a start with a hole.
		for p.next < p.highest && p.due(p.next) < now+lead/2 {
			p.skip(p.next + 1)
		}
		p.playing, p.nextAt = true, p.due(p.next)
	}
	e := &p.ring[p.next%ringSize]
	ready := p.hold == 0 && e.full && e.index == p.next
	// The device is given what fits the buffer's depth and no more: what waits here can still be put in order.
	deadline := p.nextAt - lead
	if ready {
		deadline = p.nextAt - p.target - frame
	}
	if now < deadline {
		return step{kind: wait, at: deadline}
	}
	s := step{kind: conceal, at: p.nextAt}
	p.nextAt += frame
	switch {
	case p.hold > 0:
		p.hold--
		return s
	case ready:
		e.full = false
		s.kind, s.payload = play, e.payload[:]
	}
	p.next++
	return s
}

// lost is how many packets between the first and the last that came never did.
func (p *playout) lost() int64 {
	if !p.any {
		return 0
	}
	return max(0, int64(p.highest-p.lowest)+1-p.distinct)
}
