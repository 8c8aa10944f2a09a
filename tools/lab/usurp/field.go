package usurp

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"rempart/board/scenario/attack"
)

// field sends to the gateway's tunnel port with one field of the headers not as tunneld's own socket has it. The payload is a
// message of the tunnel's shape with the marker in it.
func field(name string, job attack.Job) (r result) {
	v6 := job.Family == attack.IPv6
	domain, protocol := unix.AF_INET, 0
	if v6 {
		domain = unix.AF_INET6
	}
	if name == "UDP-Lite" {
		protocol = unix.IPPROTO_UDPLITE
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, protocol)
	if !r.did("socket", err) {
		return r
	}
	defer unix.Close(fd)
	to, data := address(job.Target, tunnelPort), shaped(job.Marker)
	level, pick := unix.IPPROTO_IP, func(four, six int) int { return four }
	if v6 {
		level, pick = unix.IPPROTO_IPV6, func(four, six int) int { return six }
	}
	set := func(option, value int) bool { return r.did("setsockopt", unix.SetsockoptInt(fd, level, option, value)) }
	bytes := func(option int, value []byte) bool {
		return r.did("setsockopt", unix.SetsockoptString(fd, level, option, string(value)))
	}
	extension := append([]byte{0, 2, 0x1e, 16}, append(job.Marker[:], 1, 2, 0, 0)...) // an experimental option, RFC 4727
	ok := true
	switch name {
	case "options":
		ok = bytes(unix.IP_OPTIONS, append([]byte{7, 39, 4}, make([]byte, 37)...)) // record route, RFC 791: room for nine addresses
	case "hop-by-hop":
		ok = bytes(unix.IPV6_HOPOPTS, extension)
	case "destination":
		ok = bytes(unix.IPV6_DSTOPTS, extension)
	case "fragments":
		ok = set(pick(unix.IP_MTU_DISCOVER, unix.IPV6_MTU_DISCOVER), pick(unix.IP_PMTUDISC_DONT, unix.IPV6_PMTUDISC_DONT))
		data = append(data, make([]byte, 4000)...)
		copy(data[2000:], job.Marker[:])
	case "source": // an address that is not the device's: up to 128 bits of message in each packet
		ok = set(pick(unix.IP_FREEBIND, unix.IPV6_FREEBIND), 1) && r.did("bind", unix.Bind(fd, address(foreign(v6), 0)))
	case "flowlabel":
		ok = set(flowinfoSend, 1) && r.flow(fd, job, data)
		if ok {
			return r
		}
	case "ttl":
		ok = set(pick(unix.IP_TTL, unix.IPV6_UNICAST_HOPS), 77)
	case "class":
		ok = set(pick(unix.IP_TOS, unix.IPV6_TCLASS), 0xb8)
	case "sourceport":
		ok = r.did("bind", unix.Bind(fd, address(any6(v6), 1234)))
	case "mark":
		ok = r.did("SO_MARK", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 7))
	case "payload":
		data = job.Marker[:] // clear text: nothing in front of it
	}
	if ok && r.did("send", unix.Sendto(fd, data, 0, to)) {
		r.Sent++
	}
	return r
}

// flowinfoSend is IPV6_FLOWINFO_SEND (linux/in6.h), which package unix lacks.
const flowinfoSend = 33

// flow sends with a flow label of its own (RFC 6437), which takes a sockaddr that package unix cannot write.
func (r *result) flow(fd int, job attack.Job, data []byte) bool {
	a := job.Target.As16()
	sa := binary.NativeEndian.AppendUint16(nil, unix.AF_INET6)
	sa = binary.BigEndian.AppendUint16(sa, tunnelPort)
	sa = binary.BigEndian.AppendUint32(sa, 0xabcde)
	sa = append(append(sa, a[:]...), 0, 0, 0, 0)
	if !r.did("send with a flow label", sendRaw(fd, data, sa)) {
		return false
	}
	r.Sent++
	return true
}

func foreign(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr("2001:db8:dead::beef")
	}
	return netip.MustParseAddr("192.0.2.77")
}

func any6(v6 bool) netip.Addr {
	if v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func address(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: int(port)}
}

// shaped puts a marker into a message of the tunnel's data type and length.
func shaped(m attack.Marker) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 4) // transport data
	return append(append(b, make([]byte, 12)...), m[:]...)
}
