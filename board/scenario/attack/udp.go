package attack

import (
	"context"

	"golang.org/x/sys/unix"
)

func runUDP(_ context.Context, j Job, t *tally) {
	fd, ok := open(t, j.Family.domain(), unix.SOCK_DGRAM, 0, "udp")
	if !ok {
		return
	}
	defer unix.Close(fd)
	datagrams(t, fd, sockaddr(j.Target, j.port(9), 0), j.Marker[:], j.count(), "udp send")
}
