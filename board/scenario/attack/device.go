package attack

import (
	"context"

	"golang.org/x/sys/unix"
)

// runBindToDevice leaves routing aside: the socket names the radio itself.
func runBindToDevice(_ context.Context, j Job, t *tally) {
	fd, ok := open(t, j.Family.domain(), unix.SOCK_DGRAM, 0, "udp")
	if !ok {
		return
	}
	defer unix.Close(fd)
	if err := unix.BindToDevice(fd, j.Device); err != nil {
		t.refused("bind to "+j.Device, err)
		return
	}
	datagrams(t, fd, sockaddr(j.Target, j.port(9), 0), j.Marker[:], j.count(), "send on "+j.Device)
}
