package wireguard

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

const (
	// socketBuffer is what is asked of the kernel for each direction, in bytes;
	// without a capability it gives at most net.core.{r,w}mem_max.
	socketBuffer = 7 << 20
	// maxSegments is how many packets one GSO or GRO buffer holds (the kernel's
	// UDP_MAX_SEGMENTS before 6.9; later ones take more).
	maxSegments = 64
	// maxPayload is the longest UDP payload over IPv4 in bytes; IPv6 takes 20 more.
	maxPayload = 1<<16 - 1 - 20 - 8
	// controlSize is room for the packet information and the segment size.
	controlSize = 128
)

// bind is the pair of UDP sockets, one of each family, on one port. It stands in
// place of wireguard-go's conn.StdNetBind, which (as of 2026-05-22) keeps address
// buffers in a pool and, once one has held an IPv4 address, copies only four
// bytes of the next IPv6 address into it: a gateway would answer to wrong
// addresses. It opens no netlink socket to follow routes either (the sandbox
// allows none): a source address that a send proves stale is given up by a handset
// at once, any other at the next handshake. It connects a handset's IPv4 socket,
// and it counts what tells an idle tunnel from a dead one.
type bind struct {
	mu     sync.RWMutex
	v4, v6 *half                 // nil when closed
	data   atomic.Uint64         // data packets sent, keepalives left out
	failed atomic.Pointer[error] // the last failed send since the last sample
	spare  sync.Pool             // *[]ipv6.Message, for sending
	// only is the one other end that a handset has: packets of anybody else are not
	// taken, and wireguard-go cannot follow it to another address. A zero one is a
	// gateway's, which answers everybody. It is read when the sockets are opened.
	only netip.AddrPort
}

// half is the socket of one family.
type half struct {
	conn  *net.UDPConn
	batch batch
	gso   atomic.Bool
	gro   bool
	only  netip.AddrPort // the bind's

	lead   sync.RWMutex // held while sending, and for writing to connect
	path   *path        // where the socket is connected to, or nil
	failed *endpoint    // whose path did not serve
}

// batch is what ipv4.PacketConn and ipv6.PacketConn have in common; their
// Message types are one.
type batch interface {
	ReadBatch([]ipv6.Message, int) (int, error)
	WriteBatch([]ipv6.Message, int) (int, error)
}

func newBind() *bind {
	return &bind{spare: sync.Pool{New: func() any {
		m := make([]ipv6.Message, conn.IdealBatchSize)
		for i := range m {
			m[i].OOB = make([]byte, 0, controlSize)
		}
		return &m
	}}}
}

// Open makes both sockets on port, or on one of the kernel's choice that is free
// in both families.
func (b *bind) Open(port uint16) (receive []conn.ReceiveFunc, actual uint16, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.v4 != nil || b.v6 != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	for range 100 {
		// IPv4 second: a socket that was bound to a port by its number keeps it when
		// it is connected and parted again, one of the kernel's choice does not.
		if b.v6, err = b.openHalf("udp6", port); err != nil {
			return nil, 0, err
		}
		actual = uint16(b.v6.conn.LocalAddr().(*net.UDPAddr).Port)
		if b.v4, err = b.openHalf("udp4", actual); err == nil {
			return []conn.ReceiveFunc{b.v4.receiver(), b.v6.receiver()}, actual, nil
		}
		err = errors.Join(err, b.v6.conn.Close())
		b.v6 = nil
		if port != 0 || !errors.Is(err, unix.EADDRINUSE) {
			return nil, 0, err
		}
	}
	return nil, 0, err
}

func (b *bind) openHalf(family string, port uint16) (*half, error) {
	h := &half{only: b.only}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if ctl := raw.Control(func(fd uintptr) { err = h.options(int(fd), family) }); ctl != nil {
			return ctl
		}
		return err
	}}
	c, err := config.ListenPacket(context.Background(), family, ":"+strconv.Itoa(int(port)))
	if err != nil {
		return nil, err
	}
	h.conn = c.(*net.UDPConn)
	if family == "udp4" {
		h.batch = ipv4.NewPacketConn(h.conn)
	} else {
		h.batch = ipv6.NewPacketConn(h.conn)
	}
	return h, nil
}

// options sets the socket up before it is bound.
func (h *half) options(fd int, family string) error {
	// More than the kernel's limit is cut by it: slower, not wrong.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
	// Offloads are there from Linux 4.18 (GSO) and 5.0 (GRO), or are done without.
	_, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	h.gso.Store(err == nil)
	h.gro = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
	if family == "udp4" {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	}
	return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1))
}

// Close closes the sockets; every receiver then returns net.ErrClosed.
func (b *bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, h := range []**half{&b.v4, &b.v6} {
		if *h != nil {
			errs = append(errs, (*h).conn.Close())
			*h = nil
		}
	}
	return errors.Join(errs...)
}

// SetMark is refused: the gate knows the tunnel by its cgroup, and marks cost a
// capability.
func (b *bind) SetMark(mark uint32) error {
	if mark == 0 {
		return nil
	}
	return errors.New("cannot mark the tunnel's packets")
}

// BatchSize is how many packets one call carries at most.
func (b *bind) BatchSize() int { return conn.IdealBatchSize }

// ParseEndpoint reads an address and port.
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return &endpoint{dst: netip.AddrPortFrom(a.Addr().Unmap(), a.Port())}, nil
}

// endpoint is the other end's address, and the packet information by which the
// answer leaves from the address that was spoken to.
type endpoint struct {
	dst netip.AddrPort
	src []byte // IP_PKTINFO or IPV6_PKTINFO control message, or empty
}

func (e *endpoint) ClearSrc()           { e.src = nil }
func (e *endpoint) SrcToString() string { return "" }
func (e *endpoint) DstToString() string { return e.dst.String() }
func (e *endpoint) DstIP() netip.Addr   { return e.dst.Addr() }
func (e *endpoint) SrcIP() netip.Addr   { return netip.Addr{} }

// DstToBytes is the form that goes into cookies.
func (e *endpoint) DstToBytes() []byte {
	b, _ := e.dst.MarshalBinary() // never fails (net/netip)
	return b
}

// receiver returns the function that wireguard-go calls in one goroutine.
func (h *half) receiver() conn.ReceiveFunc {
	msgs := make([]ipv6.Message, conn.IdealBatchSize)
	for i := range msgs {
		msgs[i].Buffers, msgs[i].OOB = make(net.Buffers, 1), make([]byte, controlSize)
	}
	return func(packets [][]byte, sizes []int, from []conn.Endpoint) (int, error) {
		// A GRO buffer may become maxSegments packets: read only as many as
		// surely fit, into the last buffers, and split towards the front.
		first, count := 0, min(len(packets), len(msgs))
		if h.gro {
			first = count - max(1, count/maxSegments)
		}
		read := msgs[:count-first]
		for i := range read {
			read[i].Buffers[0], read[i].OOB = packets[first+i], read[i].OOB[:controlSize]
		}
		n, err := h.batch.ReadBatch(read, 0)
		for err != nil && passing(err) {
			n, err = h.batch.ReadBatch(read, 0)
		}
		if err != nil {
			return 0, err
		}
		out := 0
		for i := range read[:n] {
			if h.only.IsValid() && sender(&read[i]) != h.only {
				continue
			}
			if out, err = split(&read[i], packets, sizes, from, out); err != nil {
				return 0, err
			}
		}
		return out, nil
	}
}

// split writes the packets of one read to out and on, and returns the next free
// place. The message's own buffer is never before the place written to.
func split(m *ipv6.Message, packets [][]byte, sizes []int, from []conn.Endpoint, out int) (int, error) {
	e := &endpoint{dst: sender(m)}
	if !e.dst.IsValid() {
		return out, errors.New("cannot receive: a packet has no sender")
	}
	segment := control(m.OOB[:m.NN], e)
	if segment <= 0 {
		segment = m.N
	}
	for at := 0; ; at += segment {
		end := min(at+segment, m.N)
		if out >= len(packets) {
			return out, errors.New("cannot receive: a buffer has too many packets")
		}
		sizes[out] = copy(packets[out], m.Buffers[0][at:end])
		from[out] = e
		out++
		if end >= m.N {
			return out, nil
		}
	}
}

// sender is where a message came from, or zero.
func sender(m *ipv6.Message) netip.AddrPort {
	address, ok := m.Addr.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := address.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// control reads the segment size, 0 without one, and keeps the packet information.
func control(oob []byte, e *endpoint) (segment int) {
	for len(oob) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return segment
		}
		switch {
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			segment = int(int32(binary.NativeEndian.Uint32(data)))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO,
			h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO:
			e.src = append([]byte(nil), oob[:len(oob)-len(rest)]...)
		}
		oob = rest
	}
	return segment
}

// Send sends packets to one endpoint, as few GSO buffers where the kernel does
// that. The packets belong to the caller.
func (b *bind) Send(packets [][]byte, to conn.Endpoint) error {
	for _, p := range packets {
		// A keepalive is a data message with nothing in it (whitepaper §5.4.6).
		if len(p) > device.MessageKeepaliveSize && p[0] == device.MessageTransportType {
			b.data.Add(1)
		}
	}
	err := b.send(packets, to)
	if err != nil {
		b.failed.Store(&err)
	}
	return err
}

func (b *bind) send(packets [][]byte, to conn.Endpoint) error {
	e, ok := to.(*endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	b.mu.RLock()
	h := b.v6
	if e.dst.Addr().Is4() {
		h = b.v4
	}
	b.mu.RUnlock()
	if h == nil {
		return net.ErrClosed
	}
	rest, connected, err := b.through(h, packets, e)
	if err != nil && connected {
		// What a connected socket refuses may be about an earlier packet, or about a
		// path that is gone. Without the connection this packet says it for itself.
		h.refuse(e)
		rest, _, err = b.through(h, rest, e)
	}
	if h.only.IsValid() && len(e.src) > 0 && gone(err) {
		// A handset's address or radio is not there any more, and need not come back:
		// the route says what there is now, and the gateway answers there.
		_, _, err = b.through(h, rest, &endpoint{dst: e.dst})
	}
	return err
}

// through sends packets on a socket and returns those that were not sent, and whether
// the socket was connected.
func (b *bind) through(h *half, packets [][]byte, e *endpoint) (rest [][]byte, connected bool, err error) {
	connected, release, err := h.aim(e)
	defer release()
	if err != nil {
		return packets, connected, err
	}
	msgs := b.spare.Get().(*[]ipv6.Message)
	defer b.spare.Put(msgs)
	var address net.Addr
	var src []byte
	if !connected { // a connected socket must be told neither, or it asks for the route again
		address, src = net.UDPAddrFromAddrPort(e.dst), e.src
	}
	for len(packets) > 0 {
		gso := h.gso.Load()
		n := pack(*msgs, packets, src, address, gso)
		done, err := h.write((*msgs)[:n])
		if err != nil && gso && errors.Is(err, unix.EIO) {
			// The device cannot checksum what GSO would cut (udp(7)): never again
			// on this socket, and what was not sent goes singly.
			h.gso.Store(false)
			err = nil
		}
		for i := range *msgs {
			if i < done {
				packets = packets[len((*msgs)[i].Buffers):]
			}
			(*msgs)[i].Buffers, (*msgs)[i].Addr = nil, nil
		}
		if err != nil {
			return packets, connected, err
		}
	}
	return nil, connected, nil
}

// write sends msgs and returns how many were sent whole.
func (h *half) write(msgs []ipv6.Message) (done int, err error) {
	for done < len(msgs) {
		n, err := h.batch.WriteBatch(msgs[done:], 0)
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// pack fills msgs with packets, in order and as far as they go: with gso, runs
// of one length (the last may be shorter) share a message. It returns how many
// messages are used.
func pack(msgs []ipv6.Message, packets [][]byte, src []byte, to net.Addr, gso bool) (n int) {
	for len(packets) > 0 && n < len(msgs) {
		size, total, run := len(packets[0]), len(packets[0]), 1
		for gso && run < len(packets) && run < maxSegments {
			next := len(packets[run])
			if next > size || total+next > maxPayload {
				break
			}
			total += next
			run++
			if next < size {
				break
			}
		}
		m := &msgs[n]
		m.Buffers, m.Addr = packets[:run:run], to
		m.OOB = append(m.OOB[:0], src...)
		if run > 1 {
			m.OOB = appendSegment(m.OOB, uint16(size))
		}
		packets = packets[run:]
		n++
	}
	return n
}

// appendSegment adds the control message that tells the kernel where to cut.
func appendSegment(oob []byte, size uint16) []byte {
	at := len(oob)
	oob = append(oob, make([]byte, unix.CmsgSpace(2))...)
	// struct cmsghdr: a word of length, then level and type (cmsg(3)).
	word := unix.SizeofCmsghdr - 8
	if word == 8 {
		binary.NativeEndian.PutUint64(oob[at:], uint64(unix.CmsgLen(2)))
	} else {
		binary.NativeEndian.PutUint32(oob[at:], uint32(unix.CmsgLen(2)))
	}
	binary.NativeEndian.PutUint32(oob[at+word:], unix.IPPROTO_UDP)
	binary.NativeEndian.PutUint32(oob[at+word+4:], unix.UDP_SEGMENT)
	binary.NativeEndian.PutUint16(oob[at+unix.CmsgLen(0):], size)
	return oob
}

// inherited is a TUN device of another network namespace, of which only the
// descriptor is here.
type inherited struct {
	tun.Device
	mtu int
}

// MTU is told, not asked: the ioctl would look for the device in this process's
// own namespace.
func (d inherited) MTU() (int, error) { return d.mtu, nil }
