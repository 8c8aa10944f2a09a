package attack

import (
	"context"
	"net/netip"

	"golang.org/x/sys/unix"
)

// runMulticast sends to the mDNS group (RFC 6762) on the named device.
func runMulticast(_ context.Context, j Job, t *tally) {
	group := netip.MustParseAddr("224.0.0.251")
	if j.Family == IPv6 {
		group = netip.MustParseAddr("ff02::fb")
	}
	sendToGroup(j, t, group, 5353, j.Marker[:])
}

func sendToGroup(j Job, t *tally, group netip.Addr, port uint16, payload []byte) {
	fd, ok := open(t, j.Family.domain(), unix.SOCK_DGRAM, 0, "udp")
	if !ok {
		return
	}
	defer unix.Close(fd)
	index, err := deviceIndex(fd, j.Device)
	if err != nil {
		t.refused("look for "+j.Device, err)
		return
	}
	if j.Family == IPv6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, index)
	} else {
		err = unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(index)})
	}
	if err != nil {
		t.refused("multicast on "+j.Device, err)
		return
	}
	datagrams(t, fd, sockaddr(group, j.port(port), index), payload, j.count(), "multicast send")
}

// deviceIndex asks by ioctl on an ordinary socket, which works where netlink
// is closed.
func deviceIndex(fd int, name string) (int, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, err
	}
	return int(ifr.Uint32()), nil
}
