package wireguard

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A handset's IPv4 socket is connected while there is one path to its gateway: the
// device and the source address on which the gateway last answered. The kernel then
// keeps the route, and asks the level hooks and the IPsec policies once for it instead
// of once for each packet. Whoever sends without a path, or with another one, ends the
// connection; so each packet has the source and the device that it would have without.
//
// An IPv6 socket is never connected: the kernel would go on sending from an address
// that is gone, where it refuses the same by packet information. In IPv4 it looks the
// source up again after each change of a route or an address.

// path is where a connected socket leads.
type path struct {
	dst netip.AddrPort
	src []byte // as in endpoint; the path's own
}

// leads tells whether h is connected along e's path. It is called with h.lead held.
func (h *half) leads(e *endpoint) bool {
	return h.path != nil && h.path.dst == e.dst && bytes.Equal(h.path.src, e.src)
}

// may tells whether h should be connected along e's path. It is called with h.lead held.
// One that failed is not tried again before the gateway has answered on it once more:
// each answer is another endpoint.
func (h *half) may(e *endpoint) bool {
	return h.only.IsValid() && h.only.Addr().Is4() && e.dst == h.only && len(e.src) > 0 && e != h.failed
}

// aim leaves h.lead held for reading when h is as e wants it, and for writing when it
// had to be changed for that. The caller calls release.
func (h *half) aim(e *endpoint) (connected bool, release func(), err error) {
	h.lead.RLock()
	if connected = h.leads(e) && e != h.failed; connected || h.path == nil && !h.may(e) {
		return connected, h.lead.RUnlock, nil
	}
	h.lead.RUnlock()
	h.lead.Lock()
	if err := h.part(); err != nil {
		return false, h.lead.Unlock, err
	}
	if !h.may(e) {
		return false, h.lead.Unlock, nil
	}
	if err := h.join(e); err != nil {
		// Not connected is slower, not wrong: the send itself says what is the matter.
		h.failed = e
		return false, h.lead.Unlock, h.part()
	}
	return true, h.lead.Unlock, nil
}

// refuse is told that a connected send failed.
func (h *half) refuse(e *endpoint) {
	h.lead.Lock()
	defer h.lead.Unlock()
	h.failed = e
}

// join connects h. It is called with h.lead held for writing.
func (h *half) join(e *endpoint) error {
	device, source, ok := origin(e.src)
	if !ok {
		return errors.New("cannot connect: no device or no source address")
	}
	return h.control(func(fd int) error {
		h.path = &path{dst: e.dst, src: bytes.Clone(e.src)}
		// The device's index goes in network order (linux/in.h: IP_UNICAST_IF).
		var index [4]byte
		binary.BigEndian.PutUint32(index[:], device)
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_UNICAST_IF, int(binary.NativeEndian.Uint32(index[:]))); err != nil {
			return err
		}
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(e.dst.Port()), Addr: e.dst.Addr().As4()}); err != nil {
			return err
		}
		own, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		if v4, ok := own.(*unix.SockaddrInet4); !ok || v4.Addr != source {
			return errors.New("cannot connect: the route has another source address")
		}
		return nil
	})
}

// part ends the connection, if there is one. The socket keeps its port, and what it
// received. It is called with h.lead held for writing.
func (h *half) part() error {
	if h.path == nil {
		return nil
	}
	err := h.control(func(fd int) error {
		return errors.Join(disconnect(fd), unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_UNICAST_IF, 0))
	})
	if err == nil {
		h.path = nil
	}
	return err
}

// disconnect is connect(2) with AF_UNSPEC, which the library has no address for.
func disconnect(fd int) error {
	none := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none)); errno != 0 {
		return errno
	}
	return nil
}

// control calls fn with the socket.
func (h *half) control(fn func(fd int) error) error {
	raw, err := h.conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	return errors.Join(raw.Control(func(fd uintptr) { failed = fn(int(fd)) }), failed)
}

// origin reads a packet information: struct in_pktinfo (ip(7)).
func origin(src []byte) (device uint32, source [4]byte, ok bool) {
	if len(src) < unix.SizeofCmsghdr {
		return 0, source, false
	}
	h, data, _, err := unix.ParseOneSocketControlMessage(src)
	if err != nil || h.Level != unix.IPPROTO_IP || h.Type != unix.IP_PKTINFO || len(data) < unix.SizeofInet4Pktinfo {
		return 0, source, false
	}
	device = binary.NativeEndian.Uint32(data)
	copy(source[:], data[4:8])
	return device, source, device != 0 && source != [4]byte{}
}

// gone tells whether a send failed because its source address, its device or the route
// by that device is not there.
func gone(err error) bool {
	for _, e := range []unix.Errno{unix.EINVAL, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENODEV, unix.ENXIO, unix.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// passing tells whether a failed receive is only what somebody on the path, or this
// host, said about a packet sent: a connected socket hears of that, and the next
// receive works (icmp(7), ip(7)).
func passing(err error) bool {
	for _, e := range []unix.Errno{unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENONET,
		unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.EPROTO, unix.EMSGSIZE, unix.EACCES} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
