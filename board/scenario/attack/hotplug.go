package attack

import (
	"context"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// hotplugPoll is how often the attacker looks for the device.
const hotplugPoll = 200 * time.Microsecond

// runHotplug waits until a device of the given name is in its namespace, sets
// it up at once and sends on it by AF_PACKET and by an ordinary socket, again
// and again for the rest of Job.For: a device is unguarded between its birth
// and the moment when something notices it, if there is such a moment.
func runHotplug(ctx context.Context, j Job, t *tally) {
	ctx, stop := context.WithTimeout(ctx, j.span())
	defer stop()
	// Any socket carries the calls that set a device up; this kind is refused last.
	fd, ok := open(t, unix.AF_UNIX, unix.SOCK_DGRAM, 0, "unix")
	if !ok {
		return
	}
	defer unix.Close(fd)
	t.started()
	for {
		if _, err := deviceIndex(fd, j.Device); err == nil {
			break
		} else if ctx.Err() != nil {
			t.refused("wait for "+j.Device, err)
			return
		}
		time.Sleep(hotplugPoll)
	}
	for ctx.Err() == nil {
		if err := setUp(fd, j.Device); err != nil {
			t.refused("set up "+j.Device, err)
		}
		grab(j, t)
		time.Sleep(hotplugPoll)
	}
}

// grab makes one round of sends on the device.
func grab(j Job, t *tally) {
	j.Count = 1
	if !j.NoPacket {
		sendFrames(j, t, 9, false)
	}
	fd, ok := open(t, j.Family.domain(), unix.SOCK_DGRAM, 0, "udp")
	if !ok {
		return
	}
	defer unix.Close(fd)
	if err := unix.BindToDevice(fd, j.Device); err != nil {
		t.refused("bind to "+j.Device, err)
		return
	}
	// Neither broadcast nor link-local multicast needs a route or a neighbour.
	to := everyone(j.Family)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
	index, _ := deviceIndex(fd, j.Device)
	t.did("send on "+j.Device, unix.Sendto(fd, j.Marker[:], 0, sockaddr(to, j.port(9), index)))
}

// everyone is who hears a frame on the link without being asked for.
func everyone(f Family) netip.Addr {
	if f == IPv6 {
		return netip.IPv6LinkLocalAllNodes()
	}
	return netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// setUp sets IFF_UP.
func setUp(fd int, device string) error {
	ifr, err := unix.NewIfreq(device)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return err
	}
	if ifr.Uint16()&unix.IFF_UP != 0 {
		return nil
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}
