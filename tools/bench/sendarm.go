package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// arm is one way to send: a socket of a place, the target of each send, and how it must end.
type arm struct {
	name string
	in   *place // whose control group sends
	fd   int
	to   []byte // struct sockaddr; nil: the socket is connected
	want unix.Errno
	data [sendBytes]byte
}

// newArm opens a socket in the calling thread's namespace and control group.
func (p *place) newArm(name string, target netip.AddrPort, connected bool, want unix.Errno) (*arm, error) {
	family := unix.AF_INET
	if target.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: cannot open a socket: %w", name, err)
	}
	a := &arm{name: name, in: p, fd: fd, to: sockaddr(target), want: want}
	if !connected {
		return a, nil
	}
	var to unix.Sockaddr = &unix.SockaddrInet4{Port: int(target.Port()), Addr: v4(target.Addr())}
	if family == unix.AF_INET6 {
		to = &unix.SockaddrInet6{Port: int(target.Port()), Addr: target.Addr().As16()}
	}
	if err := unix.Connect(fd, to); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: cannot connect: %w", name, err), unix.Close(fd))
	}
	a.to = nil
	return a, nil
}

func v4(a netip.Addr) (b [4]byte) {
	if a.Is4() {
		b = a.As4()
	}
	return b
}

// sockaddr encodes struct sockaddr_in or sockaddr_in6.
func sockaddr(a netip.AddrPort) []byte {
	if a.Addr().Is4() {
		b := binary.NativeEndian.AppendUint16(nil, unix.AF_INET)
		b = append(binary.BigEndian.AppendUint16(b, a.Port()), a.Addr().AsSlice()...)
		return append(b, make([]byte, 8)...)
	}
	b := binary.NativeEndian.AppendUint16(nil, unix.AF_INET6)
	b = append(binary.BigEndian.AppendUint16(b, a.Port()), 0, 0, 0, 0)
	return append(append(b, a.Addr().AsSlice()...), 0, 0, 0, 0)
}

// block sends from the arm's control group, first so often that caches know the way.
func (a *arm) block(n int) (took time.Duration, err error) {
	err = a.in.within(func() error {
		if _, err := a.send(sendWarm); err != nil {
			return err
		}
		took, err = a.send(n)
		return err
	})
	return took, err
}

// send sends n times and says how long that took. Each must end as the arm says.
func (a *arm) send(n int) (time.Duration, error) {
	var to unsafe.Pointer
	if len(a.to) > 0 {
		to = unsafe.Pointer(&a.to[0])
	}
	began := time.Now()
	for range n {
		_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(a.fd), uintptr(unsafe.Pointer(&a.data)), sendBytes, 0, uintptr(to), uintptr(len(a.to)))
		if errno != a.want {
			return 0, fmt.Errorf("%s: a send ended with %d (%w), not with %d", a.name, int(errno), errno, int(a.want))
		}
	}
	took := time.Since(began)
	runtime.KeepAlive(a)
	return took, nil
}

func (a *arm) close() error { return unix.Close(a.fd) }
