package hostile

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/scenario/attack"
	"rempart/internal/link"
)

// capture keeps every frame that reaches the far end.
type capture struct {
	fd     int
	done   chan error
	mu     sync.Mutex
	frames [][]byte
}

const maxFrames = 100000

// listen begins a capture: what is sent after it has returned is in it.
func listen(ns *link.NS, device string) (*capture, error) {
	c := &capture{done: make(chan error, 1)}
	if err := ns.Do(func() error {
		index, err := link.Index(device)
		if err != nil {
			return err
		}
		if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
		return errors.Join(unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
			unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50000}),
			unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: all & 0xffff, Ifindex: index}))
	}); err != nil {
		return nil, fmt.Errorf("cannot capture: %w", err)
	}
	go func() { c.done <- c.read() }()
	return c, nil
}

// read goes on until close makes fd invalid to it: the mutex keeps the number from being used for another.
func (c *capture) read() error {
	frame := make([]byte, 65536)
	for {
		c.mu.Lock()
		fd := c.fd
		c.mu.Unlock()
		if fd < 0 {
			return nil
		}
		n, _, err := unix.Recvfrom(fd, frame, 0)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR || err == unix.ENETDOWN: // a radio that was taken away is down
			continue
		case err != nil:
			return err
		}
		c.mu.Lock()
		c.frames = append(c.frames, append([]byte(nil), frame[:n]...))
		full := len(c.frames) > maxFrames
		c.mu.Unlock()
		if full {
			return errors.New("the capture is full")
		}
	}
}

// shown counts the frames that are the job's.
func (c *capture) shown(j attack.Job) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.frames {
		if j.Shows(f) {
			n++
		}
	}
	return n
}

// await waits for the first frame of the job.
func (c *capture) await(ctx context.Context, j attack.Job) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for c.shown(j) == 0 {
		select {
		case <-ctx.Done():
			return errors.New("the tunnel's own packets do not come out")
		case err := <-c.done:
			c.done <- err
			return errors.Join(errors.New("the capture has ended"), err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

func (c *capture) close() error {
	c.mu.Lock()
	fd := c.fd
	c.fd = -1
	c.mu.Unlock()
	err := <-c.done // within the receive timeout
	return errors.Join(err, unix.Close(fd))
}

func newMarker() (m attack.Marker) {
	_, _ = rand.Read(m[:]) // never fails (crypto/rand)
	return m
}
