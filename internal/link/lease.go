package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// SetMAC gives device name another link address; it must be down.
func SetMAC(name string, mac net.HardwareAddr) error {
	return change(name, "set the link address of", func(l netlink.Link) error { return netlink.LinkSetHardwareAddr(l, mac) })
}

// DelAddr takes an address with its prefix length off device name. One that is not there is no error.
func DelAddr(name string, prefix netip.Prefix) error {
	return change(name, "take an address off", func(l netlink.Link) error {
		err := netlink.AddrDel(l, &netlink.Addr{IPNet: ipNet(prefix)})
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("%s: %w", prefix, err)
		}
		return nil
	})
}

// DelRoute removes a route. One that is not there is no error.
func DelRoute(r Route) error {
	return change(r.Device, "remove a route through", func(l netlink.Link) error {
		err := netlink.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(r.To)})
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("%s: %w", r.To, err)
		}
		return nil
	})
}

// Addresses lists the addresses on device name, of both families.
func Addresses(name string) (all []netip.Prefix, err error) {
	err = change(name, "list the addresses of", func(l netlink.Link) error {
		list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		for _, a := range list {
			all = append(all, prefixOf(a.IPNet))
		}
		return err
	})
	return all, err
}

// Routes lists the unicast routes of the main table through device name, of both families.
func Routes(name string) (all []Route, err error) {
	err = change(name, "list the routes through", func(l netlink.Link) error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			list, err := netlink.RouteList(l, family)
			if err != nil {
				return err
			}
			for _, r := range list {
				route := Route{Device: name, To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), MTU: r.MTU}
				if family == netlink.FAMILY_V6 {
					route.To = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
				}
				if r.Dst != nil {
					route.To = prefixOf(r.Dst)
				}
				if a, ok := netip.AddrFromSlice(r.Gw); ok {
					route.Via = a.Unmap()
				}
				if a, ok := netip.AddrFromSlice(r.Src); ok {
					route.Source = a.Unmap()
				}
				if !route.To.Addr().IsMulticast() {
					all = append(all, route)
				}
			}
		}
		return nil
	})
	return all, err
}

func prefixOf(n *net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}

// OpenDHCP returns a UDP socket of uid, bound to device and port 68, that may broadcast: all that a DHCP client needs, and no
// packet socket. It belongs to the calling thread's namespace and to the caller's cgroup.
func OpenDHCP(device string, uid int) (*os.File, error) {
	return open("dhcp-"+device, unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP, uid, func(fd int) error {
		return errors.Join(
			unix.BindToDevice(fd, device),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
			// Never fragmented: only then does the kernel leave the identification 0, and no number to count packets by.
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO),
			unix.Bind(fd, &unix.SockaddrInet4{Port: 68}),
		)
	})
}

// OpenND returns a raw ICMPv6 socket of uid, bound to device, that hears router advertisements and nothing else. What it sends
// to a group has hop limit 255 (RFC 4861) and no flow label, and does not come back.
func OpenND(device string, uid int) (*os.File, error) {
	return open("nd-"+device, unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6, uid, func(fd int) error {
		const routerAdvertisement = 134
		filter := unix.ICMPv6Filter{} // a set bit blocks (RFC 3542 section 3.2)
		for i := range filter.Data {
			filter.Data[i] = ^uint32(0)
		}
		filter.Data[routerAdvertisement>>5] &^= 1 << (routerAdvertisement & 31)
		return errors.Join(
			unix.BindToDevice(fd, device),
			unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &filter),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, ipv6AutoFlowLabel, 0),
		)
	})
}

const ipv6AutoFlowLabel = 70 // linux/in6.h

func open(name string, family, kind, protocol, uid int, prepare func(fd int) error) (*os.File, error) {
	// Who opened a socket is for ever the uid that nft sees (meta skuid): chown does not change it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	self, err := unix.SetfsuidRetUid(uid)
	if err != nil {
		return nil, fmt.Errorf("cannot open a socket as %d: %w", uid, err)
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	if _, back := unix.SetfsuidRetUid(self); back != nil {
		return nil, fmt.Errorf("cannot become %d again: %w", self, back)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make socket %s: %w", name, err)
	}
	// The owner of the inode is another thing; it should say the same.
	if err := errors.Join(prepare(fd), unix.Fchown(fd, uid, uid)); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot make socket %s: %w", name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}
