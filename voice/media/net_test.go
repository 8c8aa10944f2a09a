package media

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"rempart/internal/secret"
	"rempart/voice/codec"
)

// bubbleClock is a session's clock on the fake time of a synctest bubble.
func bubbleClock() int64 { return time.Now().UnixNano() }

// wire is a net.PacketConn in memory: the path to the peer is a function that decides, packet by packet, when each of its
// copies arrives.
type wire struct {
	addr *net.UDPAddr
	peer *wire
	// path returns the delays of the copies of packet n (from 0): none is loss. nil delivers at once.
	path func(n int, packet []byte) []time.Duration
	in   chan datagram

	mu       sync.Mutex
	sent     []datagram
	deadline time.Time
	changed  chan struct{} // closed when the deadline changes
	closed   bool
	failing  error // what WriteTo returns
}

type datagram struct {
	at   time.Time
	data []byte
	from *net.UDPAddr
}

func newWires() (a, b *wire) {
	a = &wire{addr: &net.UDPAddr{IP: net.IPv4(10, 77, 0, 11), Port: 40000}, in: make(chan datagram, 4096), changed: make(chan struct{})}
	b = &wire{addr: &net.UDPAddr{IP: net.IPv4(10, 77, 0, 12), Port: 40002}, in: make(chan datagram, 4096), changed: make(chan struct{})}
	a.peer, b.peer = b, a
	return a, b
}

func (w *wire) WriteTo(b []byte, to net.Addr) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, net.ErrClosed
	}
	if w.failing != nil {
		return 0, w.failing
	}
	if to.String() != w.peer.addr.String() {
		return 0, &net.AddrError{Err: "no such host in this network", Addr: to.String()}
	}
	d := datagram{at: time.Now(), data: append([]byte{}, b...), from: w.addr}
	w.sent = append(w.sent, d)
	delays := []time.Duration{0}
	if w.path != nil {
		delays = w.path(len(w.sent)-1, d.data)
	}
	for _, delay := range delays {
		time.AfterFunc(delay, func() { w.peer.in <- d })
	}
	return len(b), nil
}

// inject gives the owner of w a packet that seems to come from an address.
func (w *wire) inject(data []byte, from *net.UDPAddr) {
	w.in <- datagram{data: append([]byte{}, data...), from: from}
}

func (w *wire) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		w.mu.Lock()
		deadline, changed, closed := w.deadline, w.changed, w.closed
		w.mu.Unlock()
		if closed {
			return 0, nil, net.ErrClosed
		}
		var timeout <-chan time.Time
		if !deadline.IsZero() {
			if !deadline.After(time.Now()) {
				return 0, nil, os.ErrDeadlineExceeded
			}
			timeout = time.After(time.Until(deadline))
		}
		select {
		case d := <-w.in:
			return copy(b, d.data), d.from, nil
		case <-timeout:
		case <-changed:
		}
	}
}

func (w *wire) SetReadDeadline(t time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deadline = t
	close(w.changed)
	w.changed = make(chan struct{})
	return nil
}

func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	close(w.changed)
	w.changed = make(chan struct{})
	return nil
}

func (w *wire) LocalAddr() net.Addr              { return w.addr }
func (w *wire) SetDeadline(t time.Time) error    { return w.SetReadDeadline(t) }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// outgoing is what has been sent so far.
func (w *wire) outgoing() []datagram {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]datagram{}, w.sent...)
}

// microphone plays pcm in the bubble's time, then silence.
type microphone struct {
	mu     sync.Mutex
	pcm    []int16
	first  int64
	frames int
	// late delays frame n beyond its time; nil delays none.
	late func(n int) time.Duration
	// stall blocks the reader for so long, whatever its deadline, before frame stallAt: the process does not run.
	stallAt int
	stall   time.Duration
	err     error
}

func (m *microphone) ReadFrame(frame []int16, until int64) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return false, m.err
	}
	now := bubbleClock()
	if m.first == 0 {
		m.first = now
	}
	if m.stall > 0 && m.frames == m.stallAt {
		time.Sleep(m.stall)
		m.stall = 0
		now = bubbleClock()
	}
	due := m.first + int64(m.frames+1)*int64(20*time.Millisecond)
	if m.late != nil {
		due += int64(m.late(m.frames))
	}
	if end := min(due, until); end > now {
		time.Sleep(time.Duration(end - now))
	}
	if bubbleClock() < due {
		return false, nil
	}
	clear(frame)
	if at := m.frames * codec.FrameSamples; at < len(m.pcm) {
		copy(frame, m.pcm[at:])
	}
	m.frames++
	return true, nil
}

func (m *microphone) FirstSampleAt() (int64, bool) { return m.first, m.first != 0 }

// speaker keeps what it is given.
type speaker struct {
	mu     sync.Mutex
	frames []heardFrame
	err    error
	failAt int
}

type heardFrame struct {
	at, given int64
	heard     bool
	pcm       []int16
}

func (s *speaker) WriteFrame(at int64, frame []int16, heard bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil && len(s.frames) >= s.failAt {
		return s.err
	}
	s.frames = append(s.frames, heardFrame{at, bubbleClock(), heard, append([]int16{}, frame...)})
	return nil
}

func (s *speaker) FirstSampleAt() (int64, bool) { return 0, false }
func (s *speaker) Underruns() int64             { return 0 }

func (s *speaker) played() []heardFrame {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]heardFrame{}, s.frames...)
}

// tone is a signal that differs from frame to frame.
func tone(seed uint64, frames int) []int16 {
	rng := rand.New(rand.NewPCG(seed, 7))
	out := make([]int16, frames*codec.FrameSamples)
	v := 0.0
	for i := range out {
		v = 0.97*v + 400*rng.NormFloat64()
		out[i] = int16(max(-30000, min(30000, v)))
	}
	return out
}

func key(fill byte) *secret.Bytes {
	b := make([]byte, KeySize+SaltSize)
	for i := range b {
		b[i] = fill + byte(i)
	}
	return secret.New(b)
}

// call is two sessions in one bubble.
type call struct {
	a, b     *Session
	wa, wb   *wire
	ma, mb   *microphone
	sa, sb   *speaker
	ca, cb   Config
	keyA2B   *secret.Bytes
	results  [2]Stats
	failures [2]error
	wg       sync.WaitGroup
}

// newCall makes both ends; change may alter the two configurations.
func newCall(t testing.TB, change func(a, b *Config)) *call {
	t.Helper()
	c := &call{ma: &microphone{pcm: tone(1, 400)}, mb: &microphone{pcm: tone(2, 400)}, sa: &speaker{}, sb: &speaker{}}
	c.wa, c.wb = newWires()
	c.keyA2B = key(1)
	base := Config{Clock: bubbleClock}
	c.ca, c.cb = base, base
	c.ca.Conn, c.ca.Remote, c.ca.Mic, c.ca.Speaker = c.wa, c.wb.addr.AddrPort(), c.ma, c.sa
	c.cb.Conn, c.cb.Remote, c.cb.Mic, c.cb.Speaker = c.wb, c.wa.addr.AddrPort(), c.mb, c.sb
	c.ca.Keys = Keys{Send: key(1), Receive: key(101), SendSSRC: 0xa0a0, ReceiveSSRC: 0xb0b0}
	c.cb.Keys = Keys{Send: key(101), Receive: key(1), SendSSRC: 0xb0b0, ReceiveSSRC: 0xa0a0}
	if change != nil {
		change(&c.ca, &c.cb)
	}
	var err error
	if c.a, err = NewSession(c.ca); err != nil {
		t.Fatal(err)
	}
	if c.b, err = NewSession(c.cb); err != nil {
		t.Fatal(err)
	}
	return c
}

// start runs both ends.
func (c *call) start(t testing.TB) {
	for i, s := range []*Session{c.a, c.b} {
		c.wg.Go(func() { c.results[i], c.failures[i] = s.Run(t.Context()) })
	}
}

// stop ends both and returns what they saw.
func (c *call) stop(t testing.TB) (a, b Stats) {
	t.Helper()
	c.a.Stop()
	c.b.Stop()
	c.wg.Wait()
	for i, err := range c.failures {
		if err != nil {
			t.Errorf("session %d: %v", i, err)
		}
	}
	return c.results[0], c.results[1]
}

// localAddr parses what a test writes as an address.
func localAddr(s string) *net.UDPAddr { return net.UDPAddrFromAddrPort(netip.MustParseAddrPort(s)) }
