package attack

import (
	"context"
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

// runBindToIndex names the radio by number, which needs no capability at all.
func runBindToIndex(_ context.Context, j Job, t *tally) {
	fd, ok := open(t, j.Family.domain(), unix.SOCK_DGRAM, 0, "udp")
	if !ok {
		return
	}
	defer unix.Close(fd)
	index, err := deviceIndex(fd, j.Device)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, index)
	}
	if err != nil {
		t.refused("bind to number of "+j.Device, err)
		return
	}
	datagrams(t, fd, sockaddr(j.Target, j.port(9), 0), j.Marker[:], j.count(), "send on "+j.Device)
}

// runPktInfo names the radio with each datagram.
func runPktInfo(_ context.Context, j Job, t *tally) {
	fd, ok := open(t, j.Family.domain(), unix.SOCK_DGRAM, 0, "udp")
	if !ok {
		return
	}
	defer unix.Close(fd)
	index, err := deviceIndex(fd, j.Device)
	if err != nil {
		t.refused("look for "+j.Device, err)
		return
	}
	var control []byte
	if j.Family == IPv6 {
		control = unix.PktInfo6(&unix.Inet6Pktinfo{Ifindex: uint32(index)})
	} else {
		control = unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: int32(index)})
	}
	for range j.count() {
		t.did("send with the number of "+j.Device, unix.Sendmsg(fd, j.Marker[:], control, sockaddr(j.Target, j.port(9), 0), 0))
	}
}

// connectedPause is between two sends: a capture must keep up with a hundred such senders.
const connectedPause = 5 * time.Millisecond

// runConnected connects once and sends on that socket for the job's time: what
// was decided at connect must not hold for ever.
func runConnected(ctx context.Context, j Job, t *tally) {
	fd, ok := open(t, j.Family.domain(), unix.SOCK_DGRAM, 0, "udp")
	if !ok {
		return
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(j.Target, j.port(9), 0)); err != nil {
		t.refused("connect", err)
		return
	}
	send := func() { _, err := unix.Write(fd, j.Marker[:]); t.did("send", err) }
	if j.For == 0 {
		for range j.count() {
			send()
		}
		return
	}
	ctx, stop := context.WithTimeout(ctx, j.span())
	defer stop()
	t.started()
	for ctx.Err() == nil {
		send()
		select {
		case <-ctx.Done():
		case <-time.After(connectedPause):
		}
	}
}

// runReusePort takes the tunnel's source port as well: only the socket differs.
func runReusePort(_ context.Context, j Job, t *tally) {
	fd, ok := open(t, j.Family.domain(), unix.SOCK_DGRAM, 0, "udp")
	if !ok {
		return
	}
	defer unix.Close(fd)
	any := sockaddr(everyone(j.Family), j.sourcePort(), 0)
	switch a := any.(type) {
	case *unix.SockaddrInet4:
		a.Addr = [4]byte{}
	case *unix.SockaddrInet6:
		a.Addr = [16]byte{}
	}
	for _, option := range []int{unix.SO_REUSEADDR, unix.SO_REUSEPORT} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1); err != nil {
			t.refused("reuse port", err)
			return
		}
	}
	if err := unix.Bind(fd, any); err != nil {
		// The port's owner does not share it: the next one, then.
		t.refused("bind to the tunnel's port", err)
	}
	datagrams(t, fd, sockaddr(j.Target, j.port(51820), 0), j.Marker[:], j.count(), "send from the tunnel's port")
}

// Sizes of what is more than one packet, in bytes.
const (
	largeSize   = 4000
	segmentSize = 64
)

// runLarge sends a datagram that the kernel must fragment: only the first piece
// shows its ports.
func runLarge(_ context.Context, j Job, t *tally) {
	fd, ok := open(t, j.Family.domain(), unix.SOCK_DGRAM, 0, "udp")
	if !ok {
		return
	}
	defer unix.Close(fd)
	// Radios do not fragment unless told to.
	level, option := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
	if j.Family == IPv6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
	}
	if err := unix.SetsockoptInt(fd, level, option, unix.IP_PMTUDISC_DONT); err != nil {
		t.refused("MTU discovery", err)
	}
	datagrams(t, fd, sockaddr(j.Target, j.port(9), 0), fill(j.Marker, largeSize), j.count(), "large send")
}

// runGSO hands the kernel one buffer that it, or the device, cuts into datagrams.
func runGSO(_ context.Context, j Job, t *tally) {
	fd, ok := open(t, j.Family.domain(), unix.SOCK_DGRAM, 0, "udp")
	if !ok {
		return
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT, segmentSize); err != nil {
		t.refused("UDP_SEGMENT", err)
		return
	}
	datagrams(t, fd, sockaddr(j.Target, j.port(9), 0), fill(j.Marker, 4*segmentSize), j.count(), "segmented send")
}

// fill repeats the marker.
func fill(m Marker, size int) []byte {
	b := make([]byte, 0, size+len(m))
	for len(b) < size {
		b = append(b, m[:]...)
	}
	return b[:size]
}

// runUDPLite is UDP by another number (RFC 3828).
func runUDPLite(_ context.Context, j Job, t *tally) {
	fd, ok := open(t, j.Family.domain(), unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE, "udplite")
	if !ok {
		return
	}
	defer unix.Close(fd)
	datagrams(t, fd, sockaddr(j.Target, j.port(9), 0), j.Marker[:], j.count(), "udplite send")
}

// runRawProtocol sends a protocol that nobody has.
func runRawProtocol(_ context.Context, j Job, t *tally) {
	fd, ok := open(t, j.Family.domain(), unix.SOCK_RAW, experiment, "raw")
	if !ok {
		return
	}
	defer unix.Close(fd)
	datagrams(t, fd, sockaddr(j.Target, 0, 0), j.Marker[:], j.count(), "raw send")
}

// experiment is a protocol number for experiments (RFC 3692).
const experiment = 253

// swap16 turns a number into network order.
func swap16(v uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v))
}
