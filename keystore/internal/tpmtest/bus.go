package tpmtest

import (
	"encoding/binary"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Attacker sits on the bus: it sees a command and says what the handset gets
// for it. ask lets the TPM answer a command.
type Attacker func(command []byte, ask func([]byte) []byte) (response []byte)

// Between puts an attacker on the stream to a TPM and returns the handset's end.
func Between(t testing.TB, stream *os.File, attacker Attacker) *os.File {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	inner := os.NewFile(uintptr(fds[1]), "bus")
	go func() {
		defer inner.Close()
		defer stream.Close()
		ask := func(command []byte) []byte {
			if _, err := stream.Write(command); err != nil {
				return nil
			}
			return readMessage(stream)
		}
		for {
			command := readMessage(inner)
			if command == nil {
				return
			}
			response := attacker(command, ask)
			if response == nil {
				return
			}
			if _, err := inner.Write(response); err != nil {
				return
			}
		}
	}()
	return os.NewFile(uintptr(fds[0]), "tpm")
}

// readMessage reads one command or response by the size in its header; nil at
// the end of the stream.
func readMessage(r io.Reader) []byte {
	header := make([]byte, 10)
	if _, err := io.ReadFull(r, header); err != nil {
		return nil
	}
	size := binary.BigEndian.Uint32(header[2:])
	if size < 10 || size > 4096 {
		return nil
	}
	message := make([]byte, size)
	copy(message, header)
	if _, err := io.ReadFull(r, message[10:]); err != nil {
		return nil
	}
	return message
}
