package nft

import (
	"math"

	"golang.org/x/sys/unix"

	"rempart/vpn/egress"
)

// last is the priority of our chains on a black device: whatever another chain of the
// hook does to a packet, ours judges what comes of it.
const last = math.MaxInt32

// Names of the chains of a black device.
const (
	chainEgress  = "egress"
	chainIngress = "ingress"
)

// Places in the headers that rules read.
const (
	etherType     = 12
	protocolBytes = 2
)

// Closed is the table of a black device that lets nothing through.
func Closed(device string) Table {
	return Table{Name: "rempart-" + device, family: unix.NFPROTO_NETDEV, chains: []chain{
		{name: chainEgress, hook: unix.NF_NETDEV_EGRESS, priority: last, device: device},
		{name: chainIngress, hook: unix.NF_NETDEV_INGRESS, priority: last, device: device},
	}}
}

// Released is the table of a black device that lets the classes of a policy through: on
// the way out only from sockets that were opened by uid. A fragment behind the first
// shows no port; it passes where its packet's protocol and remote could.
func Released(device string, policy egress.Policy, uid uint32) Table {
	t := Closed(device)
	if len(policy.Classes) == 0 {
		return t
	}
	var b black
	for _, c := range policy.Classes {
		b.add(c, uid)
	}
	b.fill(&t)
	return t
}

// black collects the keys of a device's sets.
type black struct {
	out, in, fragmentOut, fragmentIn [2][][]byte // by family: 0 is IPv4
	anyOut, anyIn, anyFragment       [][]byte    // of responder's classes
	anyFragmentIn                    [][]byte
}

func (b *black) add(c egress.Class, uid uint32) {
	user, protocol, port := host32(uid), pad([]byte{c.Proto}), pad(be16(c.Port))
	if c.Responder() {
		b.anyOut = append(b.anyOut, key(user, protocol, port))
		b.anyIn = append(b.anyIn, key(protocol, port))
		b.anyFragment = append(b.anyFragment, key(user, protocol))
		b.anyFragmentIn = append(b.anyFragmentIn, []byte{c.Proto})
		return
	}
	f, remote := 0, c.Addr.AsSlice()
	if c.Addr.Is6() {
		f = 1
	}
	b.out[f] = append(b.out[f], key(user, protocol, remote, port))
	b.in[f] = append(b.in[f], key(protocol, remote, port))
	b.fragmentOut[f] = append(b.fragmentOut[f], key(user, protocol, remote))
	b.fragmentIn[f] = append(b.fragmentIn[f], key(protocol, remote))
}

func key(parts ...[]byte) (k []byte) {
	for _, p := range parts {
		k = append(k, p...)
	}
	return k
}

func (b *black) fill(t *Table) {
	out, in := &t.chains[0], &t.chains[1]
	for f, a := range families {
		if len(b.out[f]) == 0 {
			continue
		}
		n := a.suffix
		t.addSet("out"+n, b.out[f], typeUID, typeProtocol, a.kind, typePort)
		t.addSet("in"+n, b.in[f], typeProtocol, a.kind, typePort)
		t.addSet("fragment-out"+n, b.fragmentOut[f], typeUID, typeProtocol, a.kind)
		t.addSet("fragment-in"+n, b.fragmentIn[f], typeProtocol, a.kind)
		out.rules = append(out.rules,
			a.rule(nil, user, a.load(a.destination, reg2), portAt(2, a.portBehind(reg2)), "out"+n),
			a.rule(a.later, user, a.load(a.destination, reg2), nil, "fragment-out"+n))
		in.rules = append(in.rules,
			a.rule(nil, nobody, a.load(a.source, reg1), portAt(0, a.portBehind(reg1)), "in"+n),
			a.rule(a.later, nobody, a.load(a.source, reg1), nil, "fragment-in"+n))
	}
	if len(b.anyOut) == 0 {
		return
	}
	t.addSet("answer-out", b.anyOut, typeUID, typeProtocol, typePort)
	t.addSet("answer-in", b.anyIn, typeProtocol, typePort)
	t.addSet("fragment-answer-out", b.anyFragment, typeUID, typeProtocol)
	t.addSet("fragment-answer-in", b.anyFragmentIn, typeProtocol)
	for _, a := range families {
		out.rules = append(out.rules,
			a.rule(a.host(a.destination), user, nil, portAt(0, reg2), "answer-out"),
			a.rule(append(a.host(a.destination), a.later...), user, nil, nil, "fragment-answer-out"))
		in.rules = append(in.rules,
			a.rule(a.host(a.source), nobody, nil, portAt(2, reg1), "answer-in"),
			a.rule(append(a.host(a.source), a.later...), nobody, nil, nil, "fragment-answer-in"))
	}
}

// family is what the rules of one IP version differ in.
type family struct {
	suffix              string
	kind                uint32
	etherType           []byte
	source, destination uint32
	size                uint32
	later               rule // holds for a fragment behind the first
}

var families = []family{
	{"4", typeIPv4, be16(unix.ETH_P_IP), 12, 16, 4, rule{
		load(unix.NFT_PAYLOAD_NETWORK_HEADER, 6, 2, reg0), mask(reg0, []byte{0x1f, 0xff}), compare(unix.NFT_CMP_NEQ, reg0, 0, 0)}},
	{"6", typeIPv6, be16(unix.ETH_P_IPV6), 8, 24, 16, rule{
		fragmentOffset6(reg0), mask(reg0, []byte{0xff, 0xf8}), compare(unix.NFT_CMP_NEQ, reg0, 0, 0)}},
}

func (a family) load(at, into uint32) []byte {
	return load(unix.NFT_PAYLOAD_NETWORK_HEADER, at, a.size, into)
}

// portBehind is the register behind an address.
func (a family) portBehind(address uint32) uint32 { return address + a.size/4 }

func portAt(offset, into uint32) []byte {
	return load(unix.NFT_PAYLOAD_TRANSPORT_HEADER, offset, 2, into)
}

// sender says whether the opener of the socket is the first part of the key.
type sender bool

const (
	user   sender = true
	nobody sender = false
)

// rule accepts what is of this family both as the kernel took it and as its bytes say,
// for which the conditions hold, and whose key is in the set.
func (a family) rule(conditions rule, from sender, address, port []byte, set string) rule {
	r := rule{meta(unix.NFT_META_PROTOCOL, reg0), equal(reg0, a.etherType...),
		load(unix.NFT_PAYLOAD_LL_HEADER, etherType, protocolBytes, reg0), equal(reg0, a.etherType...)}
	r = append(r, conditions...)
	protocol := uint32(reg0)
	if from {
		r, protocol = append(r, meta(unix.NFT_META_SKUID, reg0)), reg1
	}
	r = append(r, meta(unix.NFT_META_L4PROTO, protocol))
	for _, part := range [][]byte{address, port} {
		if part != nil {
			r = append(r, part)
		}
	}
	return append(r, in(set), verdict(verdictAccept))
}

// host holds if the address is that of one host somewhere else, as the gate has it
// (egress.RemoteRefused): no multicast, no reserved address, no loopback.
func (a family) host(at uint32) rule {
	if a.size == 4 {
		return rule{a.load(at, reg0), outside(reg0, []byte{0, 0, 0, 0}, []byte{0, 255, 255, 255}), outside(reg0, []byte{127, 0, 0, 0}, []byte{127, 255, 255, 255}),
			compare(unix.NFT_CMP_LT, reg0, 224, 0, 0, 0)}
	}
	return rule{load(unix.NFT_PAYLOAD_NETWORK_HEADER, at, 1, reg0), compare(unix.NFT_CMP_NEQ, reg0, 0xff),
		load(unix.NFT_PAYLOAD_NETWORK_HEADER, at, 8, reg0), compare(unix.NFT_CMP_NEQ, reg0, make([]byte, 8)...)}
}
