package main

import (
	"net"
	"sync"
)

// bounded is a listener that holds no more connections than it has slots; the
// next waits in the kernel's queue.
type bounded struct {
	net.Listener
	slots chan struct{}
}

// Accept waits for a slot, then for a connection.
func (b *bounded) Accept() (net.Conn, error) {
	b.slots <- struct{}{}
	c, err := b.Listener.Accept()
	if err != nil {
		<-b.slots
		return nil, err
	}
	return &slotted{Conn: c, free: func() { <-b.slots }}, nil
}

// slotted gives its slot back when it is closed.
type slotted struct {
	net.Conn
	free func()
	once sync.Once
}

// Close closes the connection.
func (s *slotted) Close() error {
	err := s.Conn.Close()
	s.once.Do(s.free)
	return err
}
