package attack

import (
	"context"
	"net"

	"golang.org/x/sys/unix"
)

func runPacket(_ context.Context, j Job, t *tally) { sendFrames(j, t, 9, false) }

// runPacketBypass skips the queueing discipline, and with it every tc program.
func runPacketBypass(_ context.Context, j Job, t *tally) { sendFrames(j, t, 9, true) }

// runImpostor copies the tunnel's own headers, both ports and addresses
// included: only who sent it differs.
func runImpostor(_ context.Context, j Job, t *tally) { sendFrames(j, t, 51820, false) }

func sendFrames(j Job, t *tally, def uint16, bypass bool) {
	fd, to, ok := openPacket(t, j.Device, j.Family)
	if !ok {
		return
	}
	defer unix.Close(fd)
	if bypass {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
			t.refused("PACKET_QDISC_BYPASS", err)
			return
		}
	}
	datagrams(t, fd, to, j.frame(def, hardware(fd, to)), j.count(), "AF_PACKET send on "+j.Device)
}

// openPacket returns a sending packet socket and its address on the device.
// Protocol 0: it receives nothing.
func openPacket(t *tally, device string, f Family) (int, *unix.SockaddrLinklayer, bool) {
	fd, ok := open(t, unix.AF_PACKET, unix.SOCK_RAW, 0, "AF_PACKET")
	if !ok {
		return -1, nil, false
	}
	index, err := deviceIndex(fd, device)
	if err != nil {
		unix.Close(fd)
		t.refused("look for "+device, err)
		return -1, nil, false
	}
	p := f.etherType()
	return fd, &unix.SockaddrLinklayer{Ifindex: index, Protocol: p<<8 | p>>8, Halen: 6}, true
}

// hardware returns the device's Ethernet address, nil if it has none: a packet
// socket bound to a device has it in its own name.
func hardware(fd int, to *unix.SockaddrLinklayer) net.HardwareAddr {
	if unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: to.Ifindex}) != nil {
		return nil
	}
	name, err := unix.Getsockname(fd)
	if sa, ok := name.(*unix.SockaddrLinklayer); err == nil && ok && sa.Halen == 6 {
		return net.HardwareAddr(sa.Addr[:6])
	}
	return nil
}
