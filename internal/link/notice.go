package link

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The kernel's notices of changes in a network namespace, as multicast groups of
// netlink: devices and traffic control, nftables, and the IPsec policy.
var notices = []struct {
	protocol int
	groups   uint32
}{
	{unix.NETLINK_ROUTE, 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_TC-1)},
	{unix.NETLINK_NETFILTER, 1 << (unix.NFNLGRP_NFTABLES - 1)},
	{unix.NETLINK_XFRM, 1 << (xfrmPolicy - 1)},
}

const xfrmPolicy = 4 // XFRMNLGRP_POLICY of linux/xfrm.h

// Notices opens, in the calling thread's namespace, a socket for each kind of notice
// that this kernel has. A readable one says that something changed; [Heard] takes the
// notices away. The sockets stay in the namespace and do not block.
func Notices() ([]int, error) {
	var fds []int
	for _, n := range notices {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, n.protocol)
		if errors.Is(err, unix.EPROTONOSUPPORT) {
			continue // the kernel has none of what these are about
		}
		if err == nil {
			if err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: n.groups}); err != nil {
				err = errors.Join(err, unix.Close(fd))
			}
		}
		if err != nil {
			for _, fd := range fds {
				_ = unix.Close(fd) // the first error is the one to tell
			}
			return nil, fmt.Errorf("cannot listen to the kernel's notices of protocol %d: %w", n.protocol, err)
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// Heard takes the notices that wait on a socket of [Notices] and tells whether there
// were any. Notices that the kernel had no room for count too.
func Heard(fd int) (bool, error) {
	any := false
	buf := make([]byte, 1) // what exactly changed is read from the kernel's state
	for {
		_, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return any, nil
		case errors.Is(err, unix.EINTR):
		case err == nil, errors.Is(err, unix.ENOBUFS):
			any = true
		default:
			return any, fmt.Errorf("cannot read the kernel's notices: %w", err)
		}
	}
}
