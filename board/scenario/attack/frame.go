package attack

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// packet returns a whole IP packet with a UDP datagram that carries the marker,
// to the job's port or def.
func (j Job) packet(def uint16) []byte {
	return ipPacket(j.Family, j.Source, j.Target, j.sourcePort(), j.port(def), j.Marker[:])
}

func (j Job) sourcePort() uint16 {
	if j.SourcePort != 0 {
		return j.SourcePort
	}
	return defaultSourcePort
}

// Frame returns the crafted frame that the job's packet kinds send, to its port or the discard port.
func (j Job) Frame() []byte { return j.frame(9, nil) }

// frame returns an Ethernet frame around the packet.
func (j Job) frame(def uint16, from net.HardwareAddr) []byte {
	return ethernet(j.NextHop, from, j.Family, j.packet(def))
}

// ethernet puts an Ethernet header before an IP packet. A nil destination is
// broadcast, a nil source is a locally administered address.
func ethernet(to, from net.HardwareAddr, f Family, packet []byte) []byte {
	if to == nil {
		to = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	}
	if from == nil {
		from = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	}
	b := append(append(make([]byte, 0, 14+len(packet)), to...), from...)
	b = binary.BigEndian.AppendUint16(b, f.etherType())
	return append(b, packet...)
}

func (f Family) etherType() uint16 {
	if f == IPv6 {
		return 0x86DD
	}
	return 0x0800
}

// ipPacket builds IPv4 (RFC 791) or IPv6 (RFC 8200) with UDP (RFC 768) in it.
func ipPacket(f Family, src, dst netip.Addr, sport, dport uint16, payload []byte) []byte {
	udp := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(udp, sport)
	binary.BigEndian.PutUint16(udp[2:], dport)
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(payload)))
	udp = append(udp, payload...)
	if f == IPv6 {
		return ipv6Packet(src, dst, udp)
	}
	return ipv4Packet(src, dst, udp)
}

func ipv4Packet(src, dst netip.Addr, udp []byte) []byte {
	if !src.IsValid() {
		src = netip.IPv4Unspecified()
	}
	if !dst.IsValid() {
		dst = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	seal(udp, src, dst)
	h := make([]byte, 20, 20+len(udp))
	h[0], h[8], h[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(udp)))
	binary.BigEndian.PutUint16(h[6:], 0x4000) // do not fragment
	copy(h[12:], src.AsSlice())
	copy(h[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, udp...)
}

func ipv6Packet(src, dst netip.Addr, udp []byte) []byte {
	if !src.IsValid() {
		src = netip.IPv6Unspecified()
	}
	if !dst.IsValid() {
		dst = netip.IPv6LinkLocalAllNodes()
	}
	seal(udp, src, dst)
	h := make([]byte, 40, 40+len(udp))
	h[0], h[6], h[7] = 0x60, 17, 64
	binary.BigEndian.PutUint16(h[4:], uint16(len(udp)))
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	return append(h, udp...)
}

// seal fills in the UDP checksum over the pseudo header.
func seal(udp []byte, src, dst netip.Addr) {
	pseudo := append(src.AsSlice(), dst.AsSlice()...)
	pseudo = append(pseudo, 0, 0, byte(len(udp)>>8), byte(len(udp)), 0, 0, 0, 17)
	sum := checksum(append(pseudo, udp...))
	if sum == 0 {
		sum = 0xFFFF // zero means "none"
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xFFFF + sum>>16
	}
	return ^uint16(sum)
}
