package attack

import "context"

// Kind names a way out.
type Kind string

// The kinds.
const (
	UDP          Kind = "udp"            // ordinary datagram
	TCP          Kind = "tcp"            // SYN with data (RFC 7413, no cookie) and connect
	ICMP         Kind = "icmp"           // echo request
	DNS          Kind = "dns"            // query whose name holds the marker
	BindToDevice Kind = "bind-to-device" // SO_BINDTODEVICE, then a datagram
	Packet       Kind = "packet"         // AF_PACKET, a whole crafted frame
	PacketBypass Kind = "packet-bypass"  // AF_PACKET with PACKET_QDISC_BYPASS
	XDP          Kind = "xdp"            // AF_XDP in copy mode
	Multicast    Kind = "multicast"      // mDNS group
	Raw          Kind = "raw"            // IPPROTO_RAW, crafted IP header
	Mark         Kind = "mark"           // SO_MARK, then a datagram
	Impostor     Kind = "impostor"       // frame that copies the tunnel's headers
	Hotplug      Kind = "hotplug"        // takes a new device the moment it appears
	Constant     Kind = "constant"       // sends every millisecond until stopped
)

// Family is the IP version.
type Family int

// The two families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// kind is one row of the table of kinds.
type kind struct {
	run            func(ctx context.Context, j Job, t *tally)
	target, device bool // needs Job.Target, Job.Device
}

func kinds() map[Kind]kind {
	return map[Kind]kind{
		UDP:          {run: runUDP, target: true},
		TCP:          {run: runTCP, target: true},
		ICMP:         {run: runICMP, target: true},
		DNS:          {run: runDNS, target: true},
		BindToDevice: {run: runBindToDevice, target: true, device: true},
		Packet:       {run: runPacket, target: true, device: true},
		PacketBypass: {run: runPacketBypass, target: true, device: true},
		XDP:          {run: runXDP, target: true, device: true},
		Multicast:    {run: runMulticast, device: true},
		Raw:          {run: runRaw, target: true},
		Mark:         {run: runMark, target: true},
		Impostor:     {run: runImpostor, target: true, device: true},
		Hotplug:      {run: runHotplug, device: true},
		Constant:     {run: runConstant, target: true, device: true},
	}
}
