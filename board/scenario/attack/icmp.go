package attack

import (
	"context"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// runICMP sends echo requests by a raw socket, and by a ping socket where raw
// is refused.
func runICMP(_ context.Context, j Job, t *tally) {
	proto, msg := unix.IPPROTO_ICMP, echo(8, j.Marker[:])
	if j.Family == IPv6 {
		// The kernel fills in ICMPv6's checksum, with the address it picks.
		proto, msg = unix.IPPROTO_ICMPV6, echo(128, j.Marker[:])
	}
	to := sockaddr(j.Target, 0, 0)
	for _, typ := range []int{unix.SOCK_RAW, unix.SOCK_DGRAM} {
		fd, ok := open(t, j.Family.domain(), typ, proto, "icmp")
		if !ok {
			continue
		}
		datagrams(t, fd, to, msg, j.count(), "icmp send")
		unix.Close(fd)
		return
	}
}

// echo returns an echo request (RFC 792, RFC 4443) of the given type.
func echo(typ byte, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	b[0] = typ
	binary.BigEndian.PutUint16(b[4:], 0x7265)
	binary.BigEndian.PutUint16(b[6:], 1)
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}
