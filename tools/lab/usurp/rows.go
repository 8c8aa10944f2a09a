package usurp

import (
	"rempart/board/scenario/attack"
)

// Outcome is how a try ended.
type Outcome string

// The outcomes.
const (
	Stopped Outcome = "stopped"    // refused, or not seen outside
	Left    Outcome = "left to it" // seen outside, on its way to the admitted gateway and nowhere else
	Leaked  Outcome = "leaked"     // seen outside in any other frame
	Granted Outcome = "granted"    // a door did what it was asked
	Broken  Outcome = "broken"     // could not be tried
)

// Row is one try.
type Row struct {
	Name string
	// Kind is a kind of package attack, or one of this package's own.
	Kind string
	// To is where: "host", "gateway", or nothing.
	To   string
	Port uint16
	Want Outcome
	// Twin: without the layers the same try is seen outside.
	Twin bool
	// Families are 4 and 6 unless set.
	Families []attack.Family
}

// Own kinds.
const (
	kindField   = "field"   // a UDP packet with one header field set; Row.Name's last word says which
	kindChild   = "child"   // from a child's child
	kindTake    = "take"    // another process's sockets and namespaces
	kindAdmit   = "admit"   // ask egressd
	kindCommand = "command" // ask egressd for what only init may
	kindWish    = "wish"    // ask init
	kindSelf    = "self"    // say what it is; no row
)

// Rows are all tries.
func Rows() []Row {
	v4, v6 := []attack.Family{attack.IPv4}, []attack.Family{attack.IPv6}
	rows := []Row{
		{Name: "UDP to another host", Kind: string(attack.UDP), To: "host", Want: Stopped, Twin: true},
		{Name: "TCP to another host", Kind: string(attack.TCP), To: "host", Want: Stopped, Twin: true},
		{Name: "ICMP to another host", Kind: string(attack.ICMP), To: "host", Want: Stopped, Twin: true},
		{Name: "bound to the radio, to another host", Kind: string(attack.BindToDevice), To: "host", Want: Stopped, Twin: true},
		{Name: "multicast", Kind: string(attack.Multicast), Want: Stopped, Twin: true},
		{Name: "raw IP to another host", Kind: string(attack.Raw), To: "host", Want: Stopped, Twin: true},
		{Name: "packet socket", Kind: string(attack.Packet), To: "host", Want: Stopped, Twin: true},
		{Name: "packet socket past the queue", Kind: string(attack.PacketBypass), To: "host", Want: Stopped, Twin: true},
		{Name: "packet socket with the tunnel's own headers", Kind: string(attack.Impostor), To: "gateway", Want: Stopped, Twin: true},
		{Name: "AF_XDP", Kind: string(attack.XDP), To: "host", Want: Stopped},
		{Name: "UDP to another port of the gateway", Kind: string(attack.UDP), To: "gateway", Port: 53, Want: Stopped, Twin: true},
		{Name: "TCP to the gateway's tunnel port", Kind: string(attack.TCP), To: "gateway", Port: tunnelPort, Want: Stopped, Twin: true},
		{Name: "ICMP to the gateway", Kind: string(attack.ICMP), To: "gateway", Want: Stopped, Twin: true},
		{Name: "raw IP to the gateway", Kind: string(attack.Raw), To: "gateway", Port: tunnelPort, Want: Stopped, Twin: true},
		{Name: "from a child's child to another host", Kind: kindChild, To: "host", Want: Stopped, Twin: true},
		{Name: "sockets and namespaces of others", Kind: kindTake, To: "host", Want: Stopped},

		{Name: "admission of a gateway that no policy names", Kind: kindAdmit, Want: Stopped, Families: v4},
		{Name: "what only init may ask of egressd", Kind: kindCommand, Want: Stopped, Families: v4},
		{Name: "false inner addresses from init", Kind: kindWish, Want: Stopped, Families: v4},

		{Name: "a field: options", Kind: kindField, To: "gateway", Want: Stopped, Twin: true, Families: v4},
		{Name: "a field: hop-by-hop", Kind: kindField, To: "gateway", Want: Stopped, Twin: true, Families: v6},
		{Name: "a field: destination", Kind: kindField, To: "gateway", Want: Stopped, Twin: true, Families: v6},
		{Name: "a field: UDP-Lite", Kind: kindField, To: "gateway", Want: Stopped, Twin: true},
		{Name: "a field: source", Kind: kindField, To: "gateway", Want: Stopped, Families: v4},
		{Name: "a field: source", Kind: kindField, To: "gateway", Want: Stopped, Twin: true, Families: v6},
		{Name: "a field: fragments", Kind: kindField, To: "gateway", Want: Left},
		{Name: "a field: flowlabel", Kind: kindField, To: "gateway", Want: Left, Families: v6},
		{Name: "a field: payload", Kind: kindField, To: "gateway", Want: Left},
		{Name: "a field: ttl", Kind: kindField, To: "gateway", Want: Left},
		{Name: "a field: class", Kind: kindField, To: "gateway", Want: Left},
		{Name: "a field: sourceport", Kind: kindField, To: "gateway", Want: Left},
		{Name: "a field: mark", Kind: kindField, To: "gateway", Want: Stopped},
	}
	for _, k := range []attack.Kind{attack.DNS, attack.Mark, attack.DoT, attack.NTP, attack.LLMNR, attack.Broadcast, attack.Membership, attack.BindToIndex, attack.PktInfo,
		attack.Connected, attack.ReusePort, attack.Large, attack.GSO, attack.URing, attack.UDPLite, attack.MPTCP, attack.RawProtocol, attack.PacketDgram, attack.SockPacket,
		attack.PacketRing, attack.VLAN, attack.EtherType, attack.ARP} {
		rows = append(rows, Row{Name: string(k) + " to another host", Kind: string(k), To: "host", Want: Stopped})
	}
	for i := range rows {
		if rows[i].Families == nil {
			rows[i].Families = []attack.Family{attack.IPv4, attack.IPv6}
		}
	}
	return rows
}

// tunnelPort is the lab's.
const tunnelPort = 51820
