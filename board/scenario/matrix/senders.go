package matrix

import (
	"slices"

	"rempart/board/scenario"
	"rempart/board/scenario/attack"
)

// Sender is one way to send.
type Sender struct {
	Name string
	Kind attack.Kind
	To   scenario.Destination // "" for kinds that name a group or everyone
	// What says it for a person.
	What string

	port     port
	names    bool // names a device
	crafted  bool // needs a packet, XDP or raw socket: a capability
	root     bool // needs another capability
	linkOnly bool // needs no address: can be tried on a device that has none
}

// port is which port of the destination is meant.
type port int

const (
	own      port = iota // the kind's own
	tunnel               // the gateway's tunnel port
	beside               // another of the gateway's
	imposing             // the tunnel's, and the tunnel's source port
)

// Senders returns every way to send, in the order of the tables.
func Senders() []Sender {
	return []Sender{
		{Name: "udp", Kind: attack.UDP, To: scenario.Host, What: "UDP datagram"},
		{Name: "connected", Kind: attack.Connected, To: scenario.Host, What: "UDP, connected once before"},
		{Name: "large", Kind: attack.Large, To: scenario.Host, What: "UDP, fragmented by the kernel"},
		{Name: "gso", Kind: attack.GSO, To: scenario.Host, What: "UDP, segmented by the kernel"},
		{Name: "io_uring", Kind: attack.URing, To: scenario.Host, What: "UDP from io_uring"},
		{Name: "udplite", Kind: attack.UDPLite, To: scenario.Host, What: "UDP-Lite"},
		{Name: "tcp", Kind: attack.TCP, To: scenario.Host, What: "TCP, data in the SYN"},
		{Name: "mptcp", Kind: attack.MPTCP, To: scenario.Host, What: "multipath TCP"},
		{Name: "dns", Kind: attack.DNS, To: scenario.Resolver, What: "DNS query"},
		{Name: "dot", Kind: attack.DoT, To: scenario.Resolver, What: "DNS over TLS"},
		{Name: "ntp", Kind: attack.NTP, To: scenario.Host, What: "NTP request"},
		{Name: "gateway-port", Kind: attack.UDP, To: scenario.Gateway, port: beside, What: "the gateway, another port"},
		{Name: "inner", Kind: attack.UDP, To: scenario.Inner, What: "an address inside the tunnel"},
		{Name: "reuse-port", Kind: attack.ReusePort, To: scenario.Gateway, port: imposing, What: "the gateway, from and to the tunnel's port"},
		{Name: "mark", Kind: attack.Mark, To: scenario.Gateway, port: tunnel, root: true, What: "the tunnel's packet mark"},
		{Name: "bind-device", Kind: attack.BindToDevice, To: scenario.Host, names: true, What: "SO_BINDTODEVICE"},
		{Name: "bind-index", Kind: attack.BindToIndex, To: scenario.Host, names: true, What: "SO_BINDTOIFINDEX"},
		{Name: "pktinfo", Kind: attack.PktInfo, To: scenario.Host, names: true, What: "IP_PKTINFO"},
		{Name: "mdns", Kind: attack.Multicast, names: true, What: "multicast (mDNS)"},
		{Name: "llmnr", Kind: attack.LLMNR, names: true, What: "multicast (LLMNR)"},
		{Name: "membership", Kind: attack.Membership, names: true, What: "the kernel's IGMP and MLD"},
		{Name: "broadcast", Kind: attack.Broadcast, names: true, What: "broadcast, all nodes"},
		{Name: "icmp", Kind: attack.ICMP, To: scenario.Host, crafted: true, What: "ICMP echo"},
		{Name: "raw", Kind: attack.Raw, To: scenario.Host, crafted: true, What: "raw IP (IPPROTO_RAW)"},
		{Name: "raw-protocol", Kind: attack.RawProtocol, To: scenario.Host, crafted: true, What: "raw IP, protocol 253"},
		{Name: "packet", Kind: attack.Packet, To: scenario.Host, names: true, crafted: true, linkOnly: true, What: "AF_PACKET"},
		{Name: "packet-bypass", Kind: attack.PacketBypass, To: scenario.Host, names: true, crafted: true, linkOnly: true, What: "AF_PACKET, qdisc bypass"},
		{Name: "packet-dgram", Kind: attack.PacketDgram, To: scenario.Host, names: true, crafted: true, linkOnly: true, What: "AF_PACKET, SOCK_DGRAM"},
		{Name: "packet-ring", Kind: attack.PacketRing, To: scenario.Host, names: true, crafted: true, linkOnly: true, What: "AF_PACKET, TX ring"},
		{Name: "sock-packet", Kind: attack.SockPacket, To: scenario.Host, names: true, crafted: true, linkOnly: true, What: "SOCK_PACKET"},
		{Name: "passed", Kind: attack.Passed, To: scenario.Host, names: true, linkOnly: true, What: "a packet socket of somebody else's"},
		{Name: "xdp", Kind: attack.XDP, To: scenario.Host, names: true, crafted: true, linkOnly: true, What: "AF_XDP, copy mode"},
		{Name: "impostor", Kind: attack.Impostor, To: scenario.Gateway, port: imposing, names: true, crafted: true, linkOnly: true, What: "copy of the tunnel's headers"},
		{Name: "options", Kind: attack.Options, To: scenario.Host, names: true, crafted: true, linkOnly: true, What: "IPv4 options, IPv6 extension headers"},
		{Name: "fragment", Kind: attack.Fragment, To: scenario.Gateway, port: imposing, names: true, crafted: true, linkOnly: true, What: "fragments to the tunnel's port"},
		{Name: "vlan", Kind: attack.VLAN, To: scenario.Host, names: true, crafted: true, linkOnly: true, What: "frame with a VLAN tag"},
		{Name: "ethertype", Kind: attack.EtherType, names: true, crafted: true, linkOnly: true, What: "frame of no known protocol"},
		{Name: "arp", Kind: attack.ARP, To: scenario.Host, names: true, crafted: true, linkOnly: true, What: "ARP, neighbour solicitation"},
		{Name: "hotplug", Kind: attack.Hotplug, names: true, root: true, linkOnly: true, What: "takes a device as it appears"},
	}
}

// senderOf returns the sender of a name that [Senders] has.
func senderOf(name string) (Sender, bool) {
	all := Senders()
	i := slices.IndexFunc(all, func(s Sender) bool { return s.Name == name })
	if i < 0 {
		return Sender{}, false
	}
	return all[i], true
}
