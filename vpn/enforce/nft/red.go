package nft

import (
	"golang.org/x/sys/unix"
)

// Port is a service in red.
type Port struct {
	Protocol uint8
	Number   uint16
}

// redTable is the name of red's table.
const redTable = "rempart-red"

// connectionAnswer are the states of a packet that belongs to a connection which red
// began: NF_CT_STATE_BIT of established and related (errors about it).
const connectionAnswer = 1<<1 | 1<<2

// Red is the inbound filter of red. By the tunnel device come in answers to what red
// asked, and what is for one of the ports input. A machine that forwards (the gateway)
// passes on, from the tunnel into the tunnel, what is for one of the ports forward, and
// answers; one without such ports forwards nothing. All else is dropped without a word.
func Red(device string, input, forward []Port) Table {
	t := Table{Name: redTable, family: unix.NFPROTO_INET}
	from := rule{meta(unix.NFT_META_IIFNAME, reg0), equal(reg0, name(device)...)}
	through := append(from[:len(from):len(from)], meta(unix.NFT_META_OIFNAME, reg0), equal(reg0, name(device)...))
	loopback := rule{meta(unix.NFT_META_IIFNAME, reg0), equal(reg0, name("lo")...), verdict(verdictAccept)}
	t.chains = []chain{
		{name: "input", hook: unix.NF_INET_LOCAL_IN, rules: append([]rule{loopback}, t.doors("input", from, input)...)},
		{name: "forward", hook: unix.NF_INET_FORWARD, rules: t.doors("forward", through, forward)},
	}
	return t
}

// doors are the rules for one way in, and the set of its ports.
func (t *Table) doors(set string, way rule, ports []Port) []rule {
	if len(ports) == 0 && set == "forward" {
		return nil
	}
	way = way[:len(way):len(way)]
	rules := []rule{append(way, tracked(reg0), mask(reg0, host32(connectionAnswer)), compare(unix.NFT_CMP_NEQ, reg0, 0, 0, 0, 0), verdict(verdictAccept))}
	if len(ports) == 0 {
		return rules
	}
	var keys [][]byte
	for _, p := range ports {
		keys = append(keys, key(pad([]byte{p.Protocol}), pad(be16(p.Number))))
	}
	t.addSet(set, keys, typeProtocol, typePort)
	return append(rules, append(way, meta(unix.NFT_META_L4PROTO, reg0), portAt(2, reg1), in(set), verdict(verdictAccept)))
}

// name is a device's name as the kernel compares it.
func name(device string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, device)
	return b
}
