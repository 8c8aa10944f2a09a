package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrTPMGone means that the TPM cannot be reached any more: the stream ended,
// a response did not come in time, or what came was not a response. It is
// final: after it the two ends may disagree on which response belongs to which
// command, so a Wire that has seen it answers every later Send with it.
var ErrTPMGone = errors.New("tpm is gone")

const (
	// headerSize is the size in bytes of a command or response header:
	// tag, size, command or response code (TPM 2.0 Part 1, 18).
	headerSize = 10

	// maxMessage is the largest command or response in bytes. Part 2 leaves
	// MAX_COMMAND_SIZE and MAX_RESPONSE_SIZE to the maker; 4096 is what
	// libtpms and the PC client profile's parts use.
	maxMessage = 4096

	// patience is how long a response may take. The PC Client Platform TPM
	// Profile gives a TPM 2 s for its long commands; key generation on slow
	// parts needs more.
	patience = 30 * time.Second

	// retryPause is the time between two tries of a command that the TPM was
	// not ready for.
	retryPause = time.Millisecond
)

// Wire is the stream to one TPM: write one command, read one response. It is
// safe for concurrent use; commands are serialised.
//
// It works on the descriptor itself with poll(2) and blocking calls. The
// runtime's poller would set O_NONBLOCK, and /dev/tpmrm0 then answers reads
// with EOF at random.
type Wire struct {
	mu      sync.Mutex
	f       *os.File
	timeout time.Duration
	broken  error
	watch   func(command, response []byte)
}

// NewWire returns a Wire over the inherited stream f: a socket to swtpm, or
// /dev/tpmrm0. It takes ownership of f.
func NewWire(f *os.File) (*Wire, error) {
	if f == nil {
		return nil, errors.New("cannot open the tpm: no descriptor")
	}
	return &Wire{f: f, timeout: patience}, nil
}

// Watch calls fn with every command and response from now on.
func (w *Wire) Watch(fn func(command, response []byte)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.watch = fn
}

// Send implements go-tpm's transport.TPM. Errors are ErrTPMGone.
func (w *Wire) Send(command []byte) ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken != nil {
		return nil, w.broken
	}
	for deadline := time.Now().Add(w.timeout); ; time.Sleep(retryPause) {
		response, err := w.exchange(command)
		if err != nil {
			w.broken = fmt.Errorf("%w: %w", ErrTPMGone, err)
			return nil, w.broken
		}
		if w.watch != nil {
			w.watch(command, response)
		}
		if !busy(response) || time.Now().After(deadline) {
			return response, nil
		}
	}
}

// busy reports whether the response says that the command was not started and
// is to be sent again as it is: TPM_RC_NV_RATE, TPM_RC_RETRY, TPM_RC_TESTING
// (Part 2, 6.6.3). A TPM answers TPM_RC_RETRY to the first use of an object
// under dictionary attack protection, while it notes the use in NV (Part 1,
// 19.8.6); swtpm does so too.
func busy(response []byte) bool {
	switch binary.BigEndian.Uint32(response[6:10]) {
	case 0x920, 0x922, 0x90a:
		return true
	}
	return false
}

// Check finds out, without a command, whether the stream has ended: between
// commands a TPM has nothing to say. The error is ErrTPMGone.
func (w *Wire) Check() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken != nil {
		return w.broken
	}
	fds := []unix.PollFd{{Fd: int32(w.f.Fd()), Events: unix.POLLIN | unix.POLLRDHUP}}
	n, err := unix.Poll(fds, 0)
	if err != nil && err != unix.EINTR {
		w.broken = fmt.Errorf("%w: cannot look at its stream: %w", ErrTPMGone, err)
	} else if n > 0 {
		w.broken = fmt.Errorf("%w: its stream has ended", ErrTPMGone)
	}
	return w.broken
}

// Close closes the descriptor. Later Sends fail with ErrTPMGone.
func (w *Wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken == nil {
		w.broken = fmt.Errorf("%w: closed", ErrTPMGone)
	}
	return w.f.Close()
}

func (w *Wire) exchange(command []byte) ([]byte, error) {
	if len(command) > maxMessage {
		return nil, fmt.Errorf("command of %d bytes is larger than %d", len(command), maxMessage)
	}
	deadline := time.Now().Add(w.timeout)
	fd := int(w.f.Fd())
	for sent := 0; sent < len(command); {
		n, err := unix.Write(fd, command[sent:])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			if err := await(fd, unix.POLLOUT, deadline); err != nil {
				return nil, err
			}
		case err != nil:
			return nil, fmt.Errorf("cannot write command: %w", err)
		default:
			sent += n
		}
	}

	// A character device gives a whole response to one read and drops what
	// did not fit, so the first read has room for the largest one.
	buf := make([]byte, maxMessage)
	have, want := 0, headerSize
	for have < want {
		if err := await(fd, unix.POLLIN, deadline); err != nil {
			return nil, err
		}
		n, err := unix.Read(fd, buf[have:])
		switch {
		case err == unix.EINTR || err == unix.EAGAIN:
			continue
		case err != nil:
			return nil, fmt.Errorf("cannot read response: %w", err)
		case n == 0:
			return nil, fmt.Errorf("cannot read response: %w", io.ErrUnexpectedEOF)
		}
		have += n
		if have >= headerSize && want == headerSize {
			size := binary.BigEndian.Uint32(buf[2:6])
			if size < headerSize || size > maxMessage {
				return nil, fmt.Errorf("response says it has %d bytes, allowed are %d to %d", size, headerSize, maxMessage)
			}
			want = int(size)
		}
	}
	if have != want {
		return nil, fmt.Errorf("%d bytes follow the response", have-want)
	}
	return buf[:want], nil
}

// await blocks until fd is ready for events, or the deadline.
func await(fd int, events int16, deadline time.Time) error {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return errors.New("no response in time")
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot wait for the tpm: %w", err)
		}
		if n > 0 {
			return nil // readable, or hung up: the read says which
		}
	}
}
