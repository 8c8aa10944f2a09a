package attack

import (
	"context"
	"encoding/binary"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sendFrame sends a whole frame by AF_PACKET.
func sendFrame(j Job, t *tally, frames ...[]byte) {
	fd, to, ok := openPacket(t, j.Device, j.Family)
	if !ok {
		return
	}
	defer unix.Close(fd)
	for range j.count() {
		for _, f := range frames {
			t.did("AF_PACKET send on "+j.Device, unix.Sendto(fd, f, 0, to))
		}
	}
}

// runVLAN puts an 802.1Q tag before the packet: a parser that looks at a fixed
// place sees no IP.
func runVLAN(_ context.Context, j Job, t *tally) {
	f := j.frame(9, nil)
	tag := []byte{0x81, 0x00, 0x00, 0x07}
	sendFrame(j, t, append(append(append([]byte(nil), f[:12]...), tag...), f[12:]...))
}

// runEtherType sends what is no protocol at all: the number for local experiments
// (IEEE 802).
func runEtherType(_ context.Context, j Job, t *tally) {
	f := ethernet(j.NextHop, nil, j.Family, append([]byte("rempart "), fill(j.Marker, 64)...))
	binary.BigEndian.PutUint16(f[12:], 0x88b5)
	sendFrame(j, t, f)
}

// runARP asks for the target's Ethernet address (RFC 826, RFC 4861) and puts the
// marker behind the question.
func runARP(_ context.Context, j Job, t *tally) {
	if j.Family == IPv6 {
		sendFrame(j, t, ethernet(nil, nil, IPv6, solicitation(j)))
		return
	}
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1}
	src, dst := [4]byte{}, j.Target.As4()
	if j.Source.IsValid() {
		src = j.Source.As4()
	}
	b = append(append(append(b, src[:]...), make([]byte, 6)...), dst[:]...)
	f := ethernet(nil, nil, IPv4, append(b, j.Marker[:]...))
	binary.BigEndian.PutUint16(f[12:], 0x0806)
	sendFrame(j, t, f)
}

// solicitation is a neighbour solicitation with the marker in an option of an
// experimental kind (RFC 4727).
func solicitation(j Job) []byte {
	target := j.Target.As16()
	icmp := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, target[:]...)
	icmp = append(append(icmp, 253, 3), fill(j.Marker, 22)...)
	p := ipv6Packet(j.Source, j.Target, icmp)
	p[6], p[7] = 58, 255
	binary.BigEndian.PutUint16(p[40+2:], 0)
	pseudo := append(append([]byte(nil), p[8:40]...), 0, 0, 0, byte(len(icmp)), 0, 0, 0, 58)
	binary.BigEndian.PutUint16(p[40+2:], checksum(append(pseudo, p[40:]...)))
	return p
}

// runOptions puts what a parser must step over between the IP header and UDP.
func runOptions(_ context.Context, j Job, t *tally) {
	p := j.packet(9)
	if j.Family == IPv4 {
		// Router alert (RFC 2113).
		p = append(append(append([]byte(nil), p[:20]...), 0x94, 4, 0, 0), p[20:]...)
		p[0] = 0x46
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		binary.BigEndian.PutUint16(p[10:], 0)
		binary.BigEndian.PutUint16(p[10:], checksum(p[:24]))
	} else {
		// Hop-by-hop and destination options, each of eight bytes of padding.
		ext := []byte{60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0}
		p = append(append(append([]byte(nil), p[:40]...), ext...), p[40:]...)
		p[6] = 0
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
	}
	sendFrame(j, t, ethernet(j.NextHop, nil, j.Family, p))
}

// runFragment sends a datagram to the tunnel's port in two fragments. The marker
// is in the second, which shows no port.
func runFragment(_ context.Context, j Job, t *tally) {
	whole := ipPacket(j.Family, j.Source, j.Target, j.sourcePort(), j.port(51820), append(make([]byte, 8), fill(j.Marker, 48)...))
	sendFrame(j, t, fragments(j, whole)...)
}

func fragments(j Job, whole []byte) [][]byte {
	const first = 16 // bytes of payload, the UDP header with them
	var frames [][]byte
	if j.Family == IPv4 {
		for _, part := range []struct {
			data []byte
			flag uint16
		}{{whole[20 : 20+first], 0x2000}, {whole[20+first:], first / 8}} {
			p := append(append([]byte(nil), whole[:20]...), part.data...)
			binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
			binary.BigEndian.PutUint16(p[4:], 0x7265)
			binary.BigEndian.PutUint16(p[6:], part.flag)
			binary.BigEndian.PutUint16(p[10:], 0)
			binary.BigEndian.PutUint16(p[10:], checksum(p[:20]))
			frames = append(frames, ethernet(j.NextHop, nil, j.Family, p))
		}
		return frames
	}
	for _, part := range []struct {
		data []byte
		flag uint16
	}{{whole[40 : 40+first], 1}, {whole[40+first:], first}} {
		header := binary.BigEndian.AppendUint16([]byte{17, 0}, part.flag)
		p := append(append(append(append([]byte(nil), whole[:40]...), header...), 0, 0, 0x72, 0x65), part.data...)
		p[6] = 44
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		frames = append(frames, ethernet(j.NextHop, nil, j.Family, p))
	}
	return frames
}

// runPacketDgram lets the kernel make the Ethernet header.
func runPacketDgram(_ context.Context, j Job, t *tally) {
	fd, ok := open(t, unix.AF_PACKET, unix.SOCK_DGRAM, 0, "AF_PACKET")
	if !ok {
		return
	}
	defer unix.Close(fd)
	index, err := deviceIndex(fd, j.Device)
	if err != nil {
		t.refused("look for "+j.Device, err)
		return
	}
	to := &unix.SockaddrLinklayer{Ifindex: index, Protocol: swap16(j.Family.etherType()), Halen: 6}
	copy(to.Addr[:], ethernet(j.NextHop, nil, j.Family, nil))
	datagrams(t, fd, to, j.packet(9), j.count(), "AF_PACKET send on "+j.Device)
}

// runPassed sends on a packet socket that it was handed: no socket call is made.
func runPassed(_ context.Context, j Job, t *tally) {
	index, err := deviceIndex(j.FD, j.Device)
	if err != nil {
		t.refused("look for "+j.Device, err)
		return
	}
	to := &unix.SockaddrLinklayer{Ifindex: index, Protocol: swap16(j.Family.etherType()), Halen: 6}
	datagrams(t, j.FD, to, j.frame(9, nil), j.count(), "send on a passed packet socket")
	// The way past the queueing discipline needs no capability.
	if err := unix.SetsockoptInt(j.FD, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		t.refused("PACKET_QDISC_BYPASS", err)
		return
	}
	datagrams(t, j.FD, to, j.frame(9, nil), j.count(), "send on a passed packet socket, qdisc bypass")
}

// runSockPacket uses the packet socket of Linux 2.0, which is a family of its own
// for whoever lists families.
func runSockPacket(_ context.Context, j Job, t *tally) {
	fd, ok := open(t, unix.AF_INET, unix.SOCK_PACKET, int(swap16(unix.ETH_P_ALL)), "SOCK_PACKET")
	if !ok {
		return
	}
	defer unix.Close(fd)
	// struct sockaddr_pkt: family, name, protocol.
	var to struct {
		family   uint16
		device   [14]byte
		protocol uint16
	}
	to.family, to.protocol = unix.AF_PACKET, swap16(j.Family.etherType())
	copy(to.device[:13], j.Device)
	f := j.frame(9, nil)
	for range j.count() {
		_, _, no := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&f[0])), uintptr(len(f)), 0,
			uintptr(unsafe.Pointer(&to)), unsafe.Sizeof(to))
		if no != 0 {
			t.refused("SOCK_PACKET send on "+j.Device, os.NewSyscallError("sendto", no))
			continue
		}
		t.did("SOCK_PACKET send", nil)
	}
}

// Sizes of the transmission ring: one block of four frames.
const (
	ringFrame  = 1024
	ringFrames = 4
)

// runPacketRing sends from memory that is shared with the kernel
// (kernel documentation, networking/packet_mmap).
func runPacketRing(_ context.Context, j Job, t *tally) {
	fd, to, ok := openPacket(t, j.Device, j.Family)
	if !ok {
		return
	}
	defer unix.Close(fd)
	req := unix.TpacketReq{Block_size: ringFrame * ringFrames, Block_nr: 1, Frame_size: ringFrame, Frame_nr: ringFrames}
	if err := unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_TX_RING, &req); err != nil {
		t.refused("PACKET_TX_RING", err)
		return
	}
	ring, err := unix.Mmap(fd, 0, ringFrame*ringFrames, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.refused("mmap of the ring", err)
		return
	}
	defer unix.Munmap(ring)
	// Tpacket_hdr: status, length; the data begins behind the aligned header,
	// less the address that a sender does not give.
	const data = unix.TPACKET_ALIGNMENT * 2
	f := j.frame(9, nil)
	for i := range min(j.count(), ringFrames) {
		slot := ring[i*ringFrame:]
		header := (*unix.TpacketHdr)(unsafe.Pointer(&slot[0]))
		header.Len = uint32(len(f))
		copy(slot[data:], f)
		header.Status = unix.TP_STATUS_SEND_REQUEST
	}
	for range min(j.count(), ringFrames) {
		t.did("ring send on "+j.Device, unix.Sendto(fd, nil, 0, to))
	}
}
