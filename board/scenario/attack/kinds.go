package attack

import (
	"context"
	"maps"
)

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

	DoT         Kind = "dot"             // DNS over TLS: SYN with data to port 853
	NTP         Kind = "ntp"             // time request (RFC 5905)
	LLMNR       Kind = "llmnr"           // link-local name query (RFC 4795)
	Broadcast   Kind = "broadcast"       // to 255.255.255.255
	Membership  Kind = "membership"      // the kernel's own IGMP or MLD report of a join
	BindToIndex Kind = "bind-to-ifindex" // SO_BINDTOIFINDEX
	PktInfo     Kind = "pktinfo"         // IP_PKTINFO names device and source
	Connected   Kind = "connected"       // connected once, then sends on the same socket
	ReusePort   Kind = "reuse-port"      // shares the tunnel's own source port
	Large       Kind = "large"           // datagram that the kernel fragments
	GSO         Kind = "gso"             // UDP_SEGMENT: one send, several datagrams
	URing       Kind = "io_uring"        // IORING_OP_SENDMSG
	UDPLite     Kind = "udplite"         // IPPROTO_UDPLITE
	MPTCP       Kind = "mptcp"           // IPPROTO_MPTCP, data in the SYN
	RawProtocol Kind = "raw-protocol"    // SOCK_RAW of protocol 253 (RFC 3692)
	PacketDgram Kind = "packet-dgram"    // AF_PACKET, SOCK_DGRAM
	SockPacket  Kind = "sock-packet"     // the old SOCK_PACKET
	PacketRing  Kind = "packet-ring"     // AF_PACKET with PACKET_TX_RING
	Passed      Kind = "passed"          // a packet socket that somebody else opened
	VLAN        Kind = "vlan"            // frame with an 802.1Q tag
	EtherType   Kind = "ethertype"       // frame of an unknown EtherType
	ARP         Kind = "arp"             // ARP request with bytes behind it
	Options     Kind = "options"         // IPv4 options, IPv6 extension headers
	Fragment    Kind = "fragment"        // second fragment, of a datagram to the tunnel's port
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
	goesOn         bool // goes on for Job.For by itself
}

func kinds() map[Kind]kind {
	all := map[Kind]kind{
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
		Hotplug:      {run: runHotplug, device: true, goesOn: true},
		Constant:     {run: runConstant, target: true, device: true, goesOn: true},

		DoT:         {run: runDoT, target: true},
		NTP:         {run: runNTP, target: true},
		LLMNR:       {run: runLLMNR, device: true},
		Broadcast:   {run: runBroadcast, device: true},
		Membership:  {run: runMembership, device: true},
		BindToIndex: {run: runBindToIndex, target: true, device: true},
		PktInfo:     {run: runPktInfo, target: true, device: true},
		Connected:   {run: runConnected, target: true, goesOn: true},
		ReusePort:   {run: runReusePort, target: true},
		Large:       {run: runLarge, target: true},
		GSO:         {run: runGSO, target: true},
		URing:       {run: runURing, target: true},
		UDPLite:     {run: runUDPLite, target: true},
		MPTCP:       {run: runMPTCP, target: true},
		RawProtocol: {run: runRawProtocol, target: true},
		PacketDgram: {run: runPacketDgram, target: true, device: true},
		SockPacket:  {run: runSockPacket, target: true, device: true},
		PacketRing:  {run: runPacketRing, target: true, device: true},
		Passed:      {run: runPassed, target: true, device: true},
		VLAN:        {run: runVLAN, target: true, device: true},
		EtherType:   {run: runEtherType, device: true},
		ARP:         {run: runARP, target: true, device: true},
		Options:     {run: runOptions, target: true, device: true},
		Fragment:    {run: runFragment, target: true, device: true},
	}
	maps.Copy(all, rewiring())
	return all
}
