package attack

import (
	"context"
	"net/netip"

	"golang.org/x/sys/unix"
)

// runNTP asks for the time, as a phone does that has just been switched on. The
// marker is in the origin and receive timestamps (RFC 5905, figure 8).
func runNTP(_ context.Context, j Job, t *tally) {
	fd, ok := open(t, j.Family.domain(), unix.SOCK_DGRAM, 0, "udp")
	if !ok {
		return
	}
	defer unix.Close(fd)
	q := make([]byte, 48)
	q[0] = 4<<3 | 3 // version 4, client
	copy(q[24:], j.Marker[:])
	datagrams(t, fd, sockaddr(j.Target, j.port(123), 0), q, j.count(), "time request")
}

// runLLMNR asks the neighbours for a name that holds the marker.
func runLLMNR(_ context.Context, j Job, t *tally) {
	group := netip.MustParseAddr("224.0.0.252")
	if j.Family == IPv6 {
		group = netip.MustParseAddr("ff02::1:3")
	}
	sendToGroup(j, t, group, 5355, query(j.Marker))
}
