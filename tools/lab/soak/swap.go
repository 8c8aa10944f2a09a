package soak

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/scenario/attack"
	"rempart/vpn/egress"
	"rempart/vpn/egress/ask"
)

// swapping is the order of the process in tunneld's place.
type swapping struct {
	Socket  string // egressd's
	Gateway string // its name in the signed policy
	At      [2]netip.Addr
	Port    uint16
	Open    string // marker of the packets behind an admission
	Closed  string // and of those behind a close
	Swaps   int    // how many; even: it ends closed
	PauseUS int    // between two
}

// swapped is what it has done so far, one line of JSON.
type swapped struct {
	Swaps   int `json:"swaps"`
	Open    int `json:"open"`    // packets that the kernel took behind an admission
	Closed  int `json:"closed"`  // packets tried behind a close
	Refused int `json:"refused"` // of those, how many by an errno
}

// tellEvery is how many swaps a line stands for.
const tellEvery = 100

// Swap admits and closes, and sends behind each answer.
func Swap(ctx context.Context, order string, out io.Writer) (err error) {
	var s swapping
	if err := json.Unmarshal([]byte(order), &s); err != nil {
		return fmt.Errorf("cannot read the order of swaps: %w", err)
	}
	open, err := attack.ParseMarker(s.Open)
	if err != nil {
		return err
	}
	closed, err := attack.ParseMarker(s.Closed)
	if err != nil {
		return err
	}
	var sockets [2]int
	for i, family := range []attack.Family{attack.IPv4, attack.IPv6} {
		if sockets[i], err = socket(family, ""); err != nil {
			return err
		}
		defer unix.Close(sockets[i])
	}
	c, err := ask.Dial(s.Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	var done swapped
	tell := json.NewEncoder(out)
	defer func() { err = errors.Join(err, tell.Encode(done)) }()
	var digest [32]byte // of the admitted policy; one gateway has one
	for done.Swaps < s.Swaps && ctx.Err() == nil {
		admitted, err := c.Admit(ctx, s.Gateway)
		if err != nil {
			return err
		}
		if digest == ([32]byte{}) {
			digest = admitted.Digest
		}
		if admitted.Admitted != s.Gateway || admitted.Digest != digest {
			return fmt.Errorf("after admission %d egressd has %q in force, digest %x", done.Swaps, admitted.Admitted, admitted.Digest[:4])
		}
		done.Swaps++
		for i, fd := range sockets {
			if err := unix.Sendto(fd, shaped(open), 0, address(s.At[i], s.Port)); err != nil {
				return fmt.Errorf("cannot send to the admitted gateway at %v: %w", s.At[i], err)
			}
			done.Open++
		}
		shut, err := c.CloseGate(ctx)
		if err != nil {
			return err
		}
		if shut.Admitted != "" || shut.Digest != egress.DenyAll().Digest() {
			return fmt.Errorf("after close %d egressd has %q in force, digest %x", done.Swaps, shut.Admitted, shut.Digest[:4])
		}
		done.Swaps++
		for i, fd := range sockets {
			done.Closed++
			if unix.Sendto(fd, shaped(closed), 0, address(s.At[i], s.Port)) != nil {
				done.Refused++
			}
		}
		if done.Swaps%tellEvery == 0 {
			if err := tell.Encode(done); err != nil {
				return err
			}
		}
		time.Sleep(time.Duration(s.PauseUS) * time.Microsecond)
	}
	return nil
}

// shaped puts a marker into a message of the tunnel's data type and length: to the gate as to a stranger it is the tunnel's.
func shaped(m attack.Marker) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 4) // transport data
	return append(append(b, make([]byte, 12)...), m[:]...)
}
