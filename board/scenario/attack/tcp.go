package attack

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// tcpWait is how long to wait for an answer to a SYN: enough for a connection
// over the lab's link, short of the kernel's first retransmission at 1 s.
const tcpWait = 300 * time.Millisecond

// runTCP sends the marker in the SYN itself (RFC 7413 without a cookie), so
// that a stranger who sees the SYN sees the marker and no answer is needed,
// and sends it again as data where the connection is made.
func runTCP(_ context.Context, j Job, t *tally) { syn(j, t, 0, 80) }

// runDoT knocks where DNS over TLS is served (RFC 7858).
func runDoT(_ context.Context, j Job, t *tally) { syn(j, t, 0, 853) }

// runMPTCP is the same over a multipath socket (RFC 8684), which takes other ways through the kernel.
func runMPTCP(_ context.Context, j Job, t *tally) { syn(j, t, unix.IPPROTO_MPTCP, 80) }

func syn(j Job, t *tally, protocol int, port uint16) {
	to := sockaddr(j.Target, j.port(port), 0)
	for range min(j.count(), 2) {
		fd, ok := open(t, j.Family.domain(), unix.SOCK_STREAM|unix.SOCK_NONBLOCK, protocol, "tcp")
		if !ok {
			return
		}
		// Refused by kernels before 4.16: then the SYN goes out bare.
		unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_FASTOPEN_NO_COOKIE, 1)
		err := unix.Sendto(fd, j.Marker[:], unix.MSG_FASTOPEN, to)
		if err == unix.EINPROGRESS || err == nil {
			t.did("tcp syn", nil)
			pollOut(fd, tcpWait)
			// Only now an unreachable or refusing host shows.
			if no, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && no != 0 {
				t.Note = "tcp answer: " + unix.ErrnoName(unix.Errno(no))
			} else {
				unix.Write(fd, j.Marker[:])
			}
		} else {
			t.refused("tcp connect", err)
		}
		// Reset, so that the kernel does not go on retransmitting after the row.
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		unix.Close(fd)
	}
}

func pollOut(fd int, d time.Duration) {
	unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(d.Milliseconds()))
}
