package attack

import (
	"context"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// runDNS asks an outside resolver for a name that holds the marker.
func runDNS(_ context.Context, j Job, t *tally) {
	fd, ok := open(t, j.Family.domain(), unix.SOCK_DGRAM, 0, "udp")
	if !ok {
		return
	}
	defer unix.Close(fd)
	datagrams(t, fd, sockaddr(j.Target, j.port(53), 0), query(j.Marker), j.count(), "dns query")
}

// query is a DNS question (RFC 1035, section 4) for the A record of
// <marker in hexadecimal>.example.net.
func query(m Marker) []byte {
	b := make([]byte, 12)
	copy(b, m[:2])                       // the query's id
	b[2] = 0x01                          // recursion desired
	binary.BigEndian.PutUint16(b[4:], 1) // one question
	for _, label := range []string{m.String(), "example", "net"} {
		b = append(b, byte(len(label)))
		b = append(b, label...)
	}
	b = append(b, 0)
	b = binary.BigEndian.AppendUint16(b, 1)    // A
	return binary.BigEndian.AppendUint16(b, 1) // IN
}
