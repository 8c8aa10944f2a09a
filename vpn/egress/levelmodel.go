package egress

import (
	"fmt"
	"net/netip"
)

// Loopback is the index of lo in every network namespace.
const Loopback = 1

// LevelHook is where a level hook stands.
type LevelHook uint8

// Hooks; the values are the programs'.
const (
	HookConnect LevelHook = iota // connect, both families
	HookSend                     // sendto and sendmsg with an address, both families
	HookSocket                   // a socket is made
	HookPacketOut
	HookPacketIn
	LevelHooks // number of hooks
)

var levelHookNames = [LevelHooks]string{"connect", "sendmsg", "socket", "packet out", "packet in"}

func (h LevelHook) String() string {
	if h < LevelHooks {
		return levelHookNames[h]
	}
	return fmt.Sprintf("hook(%d)", uint8(h))
}

// LevelReason says why a level hook decided as it did. The values are the programs'.
type LevelReason uint8

// Reasons. Only LevelAllowed lets pass.
const (
	LevelAllowed   LevelReason = iota
	LevelProcess               // a process that the table does not name
	LevelNamespace             // a socket of another network namespace than the process's own
	LevelSocket                // a kind of socket that the process may not have
	LevelNetworkNo             // an address in no network of the table
	LevelDevice                // the network's address through another device
	LevelSend                  // the level rule: it may not send there
	LevelReceive               // the level rule: it may not receive from there
	LevelLoopback              // on lo, from another process
	LevelPacket                // neither IPv4 nor IPv6, or cut off
	LevelReasons               // number of reasons
)

// levelWords are the reasons as a word, and for a person.
var levelWords = [LevelReasons][2]string{
	{"allowed", "allowed"},
	{"process", "the level table does not name this process"},
	{"namespace", "its socket is of another network namespace than its own"},
	{"socket-kind", "it may not have this kind of socket"},
	{"network", "the address is in no network of the level table"},
	{"device", "the address is of a network behind another device"},
	{"send", "the level rule: it may not send to this network"},
	{"receive", "the level rule: it may not receive from this network"},
	{"loopback", "on the loopback device a process talks to itself alone"},
	{"packet", "neither an IPv4 nor an IPv6 packet"},
}

func (r LevelReason) String() string {
	if r < LevelReasons {
		return levelWords[r][0]
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// LevelCounters are decisions by hook and reason since the hooks were first attached.
type LevelCounters [LevelHooks][LevelReasons]uint64

// Refused is the number of refusals at hook h.
func (c LevelCounters) Refused(h LevelHook) (n uint64) {
	for r := LevelAllowed + 1; r < LevelReasons; r++ {
		n += c[h][r]
	}
	return n
}

// row finds the row of a process by the ids of its cgroup and those above it.
func (t LevelTable) row(cgroups ...uint64) (number int, r LevelRow) {
	for i, r := range t.Rows {
		for _, id := range cgroups {
			if r.Cgroup == id {
				return i + 1, r
			}
		}
	}
	return 0, LevelRow{}
}

// network finds the network of an address, by the longest prefix.
func (t LevelTable) network(netns uint64, a netip.Addr) (number int, found bool) {
	longest := -1
	a = a.Unmap()
	for i, n := range t.Networks {
		for _, p := range n.Prefixes {
			if n.Netns == netns && p.Contains(a) && p.Bits() > longest {
				number, longest = i, p.Bits()
			}
		}
	}
	return number, longest >= 0
}

// DecideSocket tells whether a process may make a socket: stream is true for TCP and
// datagram for UDP, and both false for all others. It is the model of the socket hook.
func (t LevelTable) DecideSocket(cgroup, netns uint64, typ, proto int) LevelReason {
	const stream, datagram, raw = 1, 2, 3
	_, r := t.row(cgroup)
	switch {
	case r.Cgroup == 0:
		return LevelProcess
	case netns != r.Netns:
		return LevelNamespace
	case typ == stream && proto == int(TCP), typ == datagram && proto == int(UDP), typ == raw && r.Raw:
		return LevelAllowed
	}
	return LevelSocket
}

// DecideCall tells whether a process may connect or send to an address. It is the model
// of the connect and sendmsg hooks.
func (t LevelTable) DecideCall(cgroup, netns uint64, to netip.Addr) LevelReason {
	_, r := t.row(cgroup)
	switch {
	case r.Cgroup == 0:
		return LevelProcess
	case netns != r.Netns:
		return LevelNamespace
	case to.Unmap().IsLoopback():
		return LevelAllowed
	}
	n, ok := t.network(netns, to)
	switch {
	case !ok:
		return LevelNetworkNo
	case r.Send>>n&1 == 0:
		return LevelSend
	}
	return LevelAllowed
}

// DecidePacket tells whether a packet of a process's socket may leave or come in.
// remote is the far end, mark the packet's mark on lo. It is the model of the packet
// hooks.
func (t LevelTable) DecidePacket(dir Direction, cgroup uint64, ifindex int, remote netip.Addr, mark uint32) LevelReason {
	number, r := t.row(cgroup)
	if r.Cgroup == 0 {
		return LevelProcess
	}
	if ifindex == Loopback {
		if dir == Ingress && mark != LoopbackMark|uint32(number) {
			return LevelLoopback
		}
		return LevelAllowed
	}
	n, ok := t.network(r.Netns, remote)
	switch {
	case !ok:
		return LevelNetworkNo
	case t.Networks[n].Ifindex != 0 && t.Networks[n].Ifindex != ifindex:
		return LevelDevice
	case dir == Egress && r.Send>>n&1 == 0:
		return LevelSend
	case dir == Ingress && r.Receive>>n&1 == 0:
		return LevelReceive
	}
	return LevelAllowed
}

// LoopbackMark is the upper half of the mark that a packet on lo gets from the packet
// hook: the lower half is the number of the sender's row.
const LoopbackMark = 0x52470000
