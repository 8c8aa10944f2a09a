package attack

import (
	"context"

	"golang.org/x/sys/unix"
)

// runRaw sends whole IP packets with a header of its own through IPPROTO_RAW.
func runRaw(_ context.Context, j Job, t *tally) {
	fd, ok := open(t, j.Family.domain(), unix.SOCK_RAW, unix.IPPROTO_RAW, "raw ip")
	if !ok {
		return
	}
	defer unix.Close(fd)
	p := j.packet(9)
	datagrams(t, fd, sockaddr(j.Target, 0, 0), p, j.count(), "raw ip send")
}
