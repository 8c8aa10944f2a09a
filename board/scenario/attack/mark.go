package attack

import (
	"context"

	"golang.org/x/sys/unix"
)

// runMark claims the tunnel's packet mark, which many products take for the
// tunnel's identity.
func runMark(_ context.Context, j Job, t *tally) {
	fd, ok := open(t, j.Family.domain(), unix.SOCK_DGRAM, 0, "udp")
	if !ok {
		return
	}
	defer unix.Close(fd)
	mark := j.Mark
	if mark == 0 {
		mark = 0xca6c // the mark that wg-quick sets: 51820
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
		t.refused("SO_MARK", err)
		return
	}
	datagrams(t, fd, sockaddr(j.Target, j.port(9), 0), j.Marker[:], j.count(), "send with mark")
}
