package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"rempart/internal/frame"
	"rempart/internal/journal"
	"rempart/internal/run"
	"rempart/internal/sock"
	"rempart/vpn/egress"
)

// Bounds on what clients can take up.
const (
	maxConnections = 64
	maxPerPeer     = 4                // connections of one uid in one cgroup
	messageTime    = 2 * time.Second  // for one message, once its first byte is there
	idleTime       = 10 * time.Second // between requests, for all but init, tunneld and watchd
)

// serve answers on ln until ctx ends, then leaves deny-all. It returns
// run.ErrStopped for a clean end.
func serve(ctx context.Context, ln *net.UnixListener, e *engine) error {
	e.recover()
	s := &server{engine: e, lean: newLean(), open: map[sock.Peer]int{}, connections: map[*net.UnixConn]sock.Peer{}}
	e.taken = s.dismiss
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	err := sock.AcceptLoop(ln, maxConnections, s.serve)
	if ctx.Err() != nil {
		err = run.ErrStopped
	}
	s.closeAll()
	if stopErr := e.stop(); stopErr != nil {
		return stopErr
	}
	return err
}

// server counts connections, so that no peer can keep the others out.
type server struct {
	engine *engine
	lean   *lean

	mu          sync.Mutex
	open        map[sock.Peer]int // by uid and cgroup; the pid is left out
	connections map[*net.UnixConn]sock.Peer
}

func (s *server) serve(c *net.UnixConn) {
	defer c.Close()
	peer, err := sock.PeerOf(c)
	if err != nil {
		s.engine.journal.Event(eventRefuse, "unknown", journal.Refused, "reason", err.Error())
		return
	}
	if !s.enter(peer, c) {
		s.engine.journal.Event(eventRefuse, peer.String(), journal.Refused, "reason", "too many connections")
		return
	}
	defer s.leave(peer, c)
	if err := s.converse(c, peer); err != nil {
		s.engine.journal.Event(eventRefuse, peer.String(), journal.Refused, "reason", err.Error())
	}
}

func (s *server) enter(peer sock.Peer, c *net.UnixConn) bool {
	peer.PID = 0
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[peer] >= maxPerPeer {
		return false
	}
	s.open[peer]++
	s.connections[c] = peer
	return true
}

func (s *server) leave(peer sock.Peer, c *net.UnixConn) {
	peer.PID = 0
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[peer]--; s.open[peer] == 0 {
		delete(s.open, peer)
	}
	delete(s.connections, c)
}

// dismiss ends tunneld's connections: it waits for that, and so need not ask over and over whether what it had admitted still is.
func (s *server) dismiss() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, peer := range s.connections {
		if peer.Is(uidTunneld, cgroupTunneld) {
			_ = c.Close()
		}
	}
}

func (s *server) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.connections {
		_ = c.Close()
	}
}

// converse answers requests until the peer ends or breaks the rules. A clean end,
// an idle one and our own stop are nil.
func (s *server) converse(c *net.UnixConn, peer sock.Peer) error {
	r := bufio.NewReader(c)
	patient := peer.Is(uidInit, cgroupInit) || peer.Is(uidTunneld, cgroupTunneld) || peer.Is(uidWatchd, cgroupWatchd)
	for {
		var idle time.Time
		if !patient {
			idle = time.Now().Add(idleTime)
		}
		if err := c.SetDeadline(idle); err != nil {
			return quiet(err)
		}
		if _, err := r.Peek(1); err != nil {
			return quiet(err)
		}
		if err := c.SetDeadline(time.Now().Add(messageTime)); err != nil {
			return quiet(err)
		}
		body, err := frame.Read(r, egress.MaxRequest)
		if err != nil {
			return err
		}
		request, err := egress.ParseRequest(body)
		if err != nil {
			return err
		}
		s.lean.asked(request.Op)
		reply, err := s.engine.answer(peer, request)
		if err != nil {
			return err
		}
		if err := c.SetDeadline(time.Now().Add(messageTime)); err != nil {
			return quiet(err)
		}
		if err := frame.Write(c, reply); err != nil {
			return err
		}
	}
}

func quiet(err error) error {
	var timeout net.Error
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.As(err, &timeout) && timeout.Timeout() {
		return nil
	}
	return err
}
