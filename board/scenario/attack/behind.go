package attack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
)

// Where a namespace is that a sender makes for itself behind another: addresses
// kept for documentation (RFC 5737, RFC 3849), which lead nowhere else.
var (
	Behind4   = netip.MustParseAddr("192.0.2.2")
	Behind6   = netip.MustParseAddr("2001:db8:2::2")
	front4    = netip.MustParseAddr("192.0.2.1")
	front6    = netip.MustParseAddr("2001:db8:2::1")
	BehindHop = net.HardwareAddr{2, 0, 0, 0, 2, 1}
	behindMAC = net.HardwareAddr{2, 0, 0, 0, 2, 2}
)

// frontDevice is the end that stays in the namespace that is left.
const frontDevice = "behind0"

// cableWait is how long to wait for the end of an earlier cable.
const cableWait = 5 * time.Second

// EnterBehind puts the calling thread into a new network namespace that is joined
// to the one it leaves by a cable, as a container or a tethered machine is, and
// has the old one forward what comes out of it. The device in the new one has the
// given name. The namespace goes with its last process, and the cable with it.
func EnterBehind(device string) error {
	front, err := link.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer front.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("cannot make a network namespace: %w", err)
	}
	// The cable of a namespace that has just gone is taken away by the kernel in its own time.
	for end := time.Now().Add(cableWait); ; time.Sleep(10 * time.Millisecond) {
		err := link.AddVeth(link.Port{Name: device, MAC: behindMAC}, link.Port{Name: frontDevice, NS: front, MAC: BehindHop})
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EEXIST) || time.Now().After(end) {
			return err
		}
	}
	if err := front.Do(func() error {
		return errors.Join(
			link.Sysctl("net/ipv6/conf/"+frontDevice+"/accept_dad", "0"),
			link.AddAddr(frontDevice, netip.PrefixFrom(front4, 30)), link.AddAddr(frontDevice, netip.PrefixFrom(front6, 64)),
			link.SetUp(frontDevice),
			link.AddNeighbour(frontDevice, Behind4, behindMAC), link.AddNeighbour(frontDevice, Behind6, behindMAC),
			forward())
	}); err != nil {
		return fmt.Errorf("cannot have packets forwarded: %w", err)
	}
	err = errors.Join(
		link.Sysctl("net/ipv6/conf/"+device+"/accept_dad", "0"),
		link.AddAddr(device, netip.PrefixFrom(Behind4, 30)), link.AddAddr(device, netip.PrefixFrom(Behind6, 64)),
		link.SetUp("lo"), link.SetUp(device),
		link.AddNeighbour(device, front4, BehindHop), link.AddNeighbour(device, front6, BehindHop),
		link.AddRoute(link.Route{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Device: device, Via: front4}),
		link.AddRoute(link.Route{To: netip.PrefixFrom(netip.IPv6Unspecified(), 0), Device: device, Via: front6}))
	if err != nil {
		return fmt.Errorf("cannot set up the new namespace: %w", err)
	}
	return nil
}

// forward makes a router of the calling thread's namespace. Its IPv6 then forgets
// its own default route only if that was learnt, which none of a handset's is.
func forward() error {
	return errors.Join(link.Sysctl("net/ipv4/ip_forward", "1"), link.Sysctl("net/ipv6/conf/all/forwarding", "1"),
		link.Sysctl("net/ipv4/conf/all/rp_filter", "0"))
}

// RefuseAll tells of every job what kept it from being tried.
func RefuseAll(jobs []Job, why error) []Line {
	t := &tally{}
	t.refused("namespace behind", why)
	lines := []Line{{Ready: true}}
	for _, j := range jobs {
		r := Result{Kind: j.Kind, Family: j.Family, Errno: t.Errno, Note: t.Note}
		lines = append(lines, Line{Marker: j.Marker.String(), Result: &r})
	}
	return lines
}
