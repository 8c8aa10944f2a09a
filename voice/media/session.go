package media

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"rempart/voice/codec"
	"rempart/voice/internal/audio"
)

const (
	// DefaultTarget is the depth of the jitter buffer unless Config says otherwise.
	DefaultTarget = 40 * time.Millisecond
	// DefaultIdle is how long a peer may send nothing authentic unless Config says otherwise.
	DefaultIdle = 10 * time.Second
)

// The ways in which a session ends that are not the caller's own.
var (
	// ErrPeerSilent: no authentic packet came for Config.Idle (NIAP PP-Module VVoIP FTA_SSL.3/MEDIA).
	ErrPeerSilent = errors.New("nothing was received from the other party for too long")
	// ErrStarted: a session runs once.
	ErrStarted = errors.New("the media session was started before")
)

// Source is a microphone: 48 kHz, mono, in frames of 960 samples.
type Source interface {
	// ReadFrame fills frame with the next 20 ms and returns true once they have been recorded. It waits for that at most
	// until the session's clock shows until, and then returns false with nothing consumed; a frame that is due already
	// is returned whatever until says. The first call starts the recording. An error ends the session.
	ReadFrame(frame []int16, until int64) (bool, error)
	// FirstSampleAt is the clock when the first sample was recorded; false before that.
	FirstSampleAt() (int64, bool)
}

// Sink is a speaker: 48 kHz, mono, in frames of 960 samples.
type Sink interface {
	// WriteFrame queues frame to be heard from at on, without waiting; frames come in the order in which they are heard and
	// at most Config.Target + 20 ms ahead. Heard is true for what was decoded from a packet, false for concealment. The first call starts
	// the device. An error ends the session.
	WriteFrame(at int64, frame []int16, heard bool) error
	// FirstSampleAt is the clock when the first sample was heard; false before that.
	FirstSampleAt() (int64, bool)
	// Underruns counts how often nothing was there to be heard.
	Underruns() int64
}

// Config is what a session needs. All fields without a default are required.
type Config struct {
	// Conn is the socket for both directions. The session sets its read deadline and never closes it.
	Conn net.PacketConn
	// Remote is where packets go to and the only address they are accepted from.
	Remote netip.AddrPort
	// Keys protect the packets.
	Keys Keys
	// Mic and Speaker are used by one session at a time and not closed by it.
	Mic     Source
	Speaker Sink
	// Clock is in nanoseconds and must be the devices' clock; nil is CLOCK_MONOTONIC.
	Clock func() int64
	// Target is the depth of the jitter buffer, 20 to 500 ms; 0 is DefaultTarget.
	Target time.Duration
	// Idle ends the session with ErrPeerSilent; 0 is DefaultIdle.
	Idle time.Duration
}

// Session is the media of one call.
type Session struct {
	cfg    Config
	remote *net.UDPAddr
	seal   *sealer
	open   *opener
	enc    *codec.Encoder
	dec    *codec.Decoder

	stopOnce sync.Once
	stopped  chan struct{}
	arrived  chan struct{} // something changed in playout

	mu        sync.Mutex
	started   bool
	playout   playout
	stats     Stats
	lastHeard int64 // clock of the last authentic packet, or of the start
	transit   int64 // of the last packet, for the jitter
	jitter    float64
}

// NewSession checks cfg and makes the keys ready. It sends and plays nothing.
func NewSession(cfg Config) (*Session, error) {
	if cfg.Conn == nil || cfg.Mic == nil || cfg.Speaker == nil {
		return nil, errors.New("cannot make a media session without a socket, a microphone and a speaker")
	}
	if !cfg.Remote.IsValid() || cfg.Remote.Port() == 0 || cfg.Remote.Addr().IsUnspecified() || cfg.Remote.Addr().IsMulticast() {
		return nil, fmt.Errorf("cannot make a media session with %v", cfg.Remote)
	}
	if cfg.Target == 0 {
		cfg.Target = DefaultTarget
	}
	if cfg.Target < 20*time.Millisecond || cfg.Target > 500*time.Millisecond {
		return nil, fmt.Errorf("cannot make a jitter buffer of %v: want 20 ms to 500 ms", cfg.Target)
	}
	if cfg.Idle == 0 {
		cfg.Idle = DefaultIdle
	}
	if cfg.Clock == nil {
		cfg.Clock = audio.Monotonic
	}
	cfg.Remote = netip.AddrPortFrom(cfg.Remote.Addr().Unmap(), cfg.Remote.Port())
	s := &Session{
		cfg: cfg, remote: net.UDPAddrFromAddrPort(cfg.Remote),
		stopped: make(chan struct{}), arrived: make(chan struct{}, 1),
		playout: playout{target: int64(cfg.Target)},
	}
	var errs [4]error
	s.seal, errs[0] = newSealer(cfg.Keys.Send, cfg.Keys.SendSSRC)
	s.open, errs[1] = newOpener(cfg.Keys.Receive, cfg.Keys.ReceiveSSRC)
	s.enc, errs[2] = codec.NewEncoder()
	s.dec, errs[3] = codec.NewDecoder()
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("cannot make a media session: %w", err)
	}
	s.cfg.Keys = Keys{} // the contexts have their copies
	return s, nil
}

// Run sends and plays until ctx ends or Stop is called, which is no error, or until something fails. When it returns, both
// directions are closed. It runs once.
func (s *Session) Run(ctx context.Context) (Stats, error) {
	s.mu.Lock()
	started := s.started
	s.started = true
	s.lastHeard = s.cfg.Clock()
	s.mu.Unlock()
	if started {
		return Stats{}, ErrStarted
	}
	if err := s.cfg.Conn.SetReadDeadline(time.Time{}); err != nil {
		return Stats{}, fmt.Errorf("cannot use the media socket: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A reader that waits for a packet is woken by a deadline in the past.
	defer context.AfterFunc(ctx, func() { _ = s.cfg.Conn.SetReadDeadline(time.Unix(1, 0)) })()

	var wg sync.WaitGroup
	var errs [3]error
	for i, loop := range []func(context.Context) error{s.sendLoop, s.receiveLoop, s.playLoop} {
		wg.Go(func() {
			defer cancel()
			errs[i] = loop(ctx)
		})
	}
	select {
	case <-s.stopped:
	case <-ctx.Done():
	}
	cancel()
	wg.Wait()
	s.wipe()
	return s.Stats(), errors.Join(errs[:]...)
}

// Stop ends Run, before its start too. It does not wait.
func (s *Session) Stop() { s.stopOnce.Do(func() { close(s.stopped) }) }

// Stats returns what was seen so far; it may be called at any time.
func (s *Session) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, p := s.stats, &s.playout
	st.Received, st.Late, st.Skipped, st.Resyncs = p.distinct, p.late, p.skipped, p.resyncs
	st.Duplicate += p.duplicate
	st.Lost = p.lost()
	st.Underruns = s.cfg.Speaker.Underruns()
	st.JitterNS = int64(s.jitter)
	return st
}

// count changes the statistics.
func (s *Session) count(change func(*Stats)) {
	s.mu.Lock()
	change(&s.stats)
	s.mu.Unlock()
}

// wipe overwrites the speech that is left in the buffers.
func (s *Session) wipe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.playout.ring[:])
	clear(s.seal.plain[:])
	clear(s.open.plain[:])
}

// sleep waits until the clock shows until; false if ctx ended first.
func (s *Session) sleep(ctx context.Context, until int64) bool {
	d := until - s.cfg.Clock()
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(time.Duration(d))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
