package attack

import (
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// The senders use bare sockets: the net package would hide the errno of the
// call that was refused, look at routes and retry.

func (f Family) domain() int {
	if f == IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// open returns a socket and counts a refusal.
func open(t *tally, domain, typ, proto int, what string) (int, bool) {
	fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		t.refused(what, os.NewSyscallError("socket", err))
		return -1, false
	}
	return fd, true
}

func sockaddr(a netip.Addr, port uint16, scope int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: int(port), ZoneId: uint32(scope)}
}

// datagrams sends the marker n times through fd.
func datagrams(t *tally, fd int, to unix.Sockaddr, payload []byte, n int, what string) {
	for range n {
		t.did(what, unix.Sendto(fd, payload, 0, to))
	}
}
