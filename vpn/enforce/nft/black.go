package nft

import (
	"math"
	"net/netip"

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

// Released is the table of a black device that lets the classes of a policy through: from
// and to its own addresses alone, and on the way out only from sockets that were opened by
// uid. A fragment behind the first shows no port; it passes where its packet's protocol and
// addresses could. A device without an address lets nothing through.
func Released(device string, policy egress.Policy, uid uint32, own ...netip.Addr) Table {
	t := Closed(device)
	var b black
	for _, a := range own {
		for _, c := range policy.Classes {
			b.add(c, uid, a)
		}
	}
	b.fill(&t)
	return t
}

// black collects the keys of a device's sets, by family: 0 is IPv4. The own address is a
// part of each, next to the remote's as in the packet, so that it costs no rule.
type black struct {
	out, in, fragmentOut, fragmentIn                         [2][][]byte
	answerOut, answerIn, answerFragmentOut, answerFragmentIn [2][][]byte // of responder's classes
}

func (b *black) add(c egress.Class, uid uint32, own netip.Addr) {
	user, protocol, port, self, f := host32(uid), pad([]byte{c.Proto}), pad(be16(c.Port)), own.AsSlice(), 0
	if own.Is6() {
		f = 1
	}
	put := func(set *[2][][]byte, parts ...[]byte) { set[f] = append(set[f], key(parts...)) }
	switch remote := c.Addr.AsSlice(); {
	case c.Responder():
		put(&b.answerOut, user, protocol, self, port)
		put(&b.answerIn, protocol, self, port)
		put(&b.answerFragmentOut, user, protocol, self)
		put(&b.answerFragmentIn, protocol, self)
	case len(remote) == len(self):
		put(&b.out, user, protocol, self, remote, port)
		put(&b.in, protocol, remote, self, port)
		put(&b.fragmentOut, user, protocol, self, remote)
		put(&b.fragmentIn, protocol, remote, self)
	}
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
		n := a.suffix
		if len(b.out[f]) > 0 {
			t.addSet("out"+n, b.out[f], typeUID, typeProtocol, a.kind, a.kind, typePort)
			t.addSet("in"+n, b.in[f], typeProtocol, a.kind, a.kind, typePort)
			t.addSet("fragment-out"+n, b.fragmentOut[f], typeUID, typeProtocol, a.kind, a.kind)
			t.addSet("fragment-in"+n, b.fragmentIn[f], typeProtocol, a.kind, a.kind)
			both := 2 * a.size
			out.rules = append(out.rules,
				a.rule(nil, user, a.load(a.source, both, reg2), portAt(2, behind(reg2, both)), "out"+n),
				a.rule(a.later, user, a.load(a.source, both, reg2), nil, "fragment-out"+n))
			in.rules = append(in.rules,
				a.rule(nil, nobody, a.load(a.source, both, reg1), portAt(0, behind(reg1, both)), "in"+n),
				a.rule(a.later, nobody, a.load(a.source, both, reg1), nil, "fragment-in"+n))
		}
		if len(b.answerOut[f]) > 0 {
			t.addSet("answer-out"+n, b.answerOut[f], typeUID, typeProtocol, a.kind, typePort)
			t.addSet("answer-in"+n, b.answerIn[f], typeProtocol, a.kind, typePort)
			t.addSet("fragment-answer-out"+n, b.answerFragmentOut[f], typeUID, typeProtocol, a.kind)
			t.addSet("fragment-answer-in"+n, b.answerFragmentIn[f], typeProtocol, a.kind)
			out.rules = append(out.rules,
				a.rule(a.host(a.destination), user, a.load(a.source, a.size, reg2), portAt(0, behind(reg2, a.size)), "answer-out"+n),
				a.rule(append(a.host(a.destination), a.later...), user, a.load(a.source, a.size, reg2), nil, "fragment-answer-out"+n))
			in.rules = append(in.rules,
				a.rule(a.host(a.source), nobody, a.load(a.destination, a.size, reg1), portAt(2, behind(reg1, a.size)), "answer-in"+n),
				a.rule(append(a.host(a.source), a.later...), nobody, a.load(a.destination, a.size, reg1), nil, "fragment-answer-in"+n))
		}
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

// load loads one address, or both: the destination comes right behind the source.
func (a family) load(at, size, into uint32) []byte {
	return load(unix.NFT_PAYLOAD_NETWORK_HEADER, at, size, into)
}

// behind is the register behind size bytes of addresses. One of four has two names, as
// reg0 has, and the kernel reads back the older.
func behind(addresses, size uint32) uint32 {
	n := addresses - unix.NFT_REG32_00 + size/4
	if n%4 == 0 {
		return unix.NFT_REG_1 + n/4
	}
	return unix.NFT_REG32_00 + n
}

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
func (a family) rule(conditions rule, from sender, addresses, port []byte, set string) rule {
	r := rule{meta(unix.NFT_META_PROTOCOL, reg0), equal(reg0, a.etherType...),
		load(unix.NFT_PAYLOAD_LL_HEADER, etherType, protocolBytes, reg0), equal(reg0, a.etherType...)}
	r = append(r, conditions...)
	protocol := uint32(reg0)
	if from {
		r, protocol = append(r, meta(unix.NFT_META_SKUID, reg0)), reg1
	}
	r = append(r, meta(unix.NFT_META_L4PROTO, protocol))
	for _, part := range [][]byte{addresses, port} {
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
		return rule{a.load(at, a.size, reg0), outside(reg0, []byte{0, 0, 0, 0}, []byte{0, 255, 255, 255}), outside(reg0, []byte{127, 0, 0, 0}, []byte{127, 255, 255, 255}),
			compare(unix.NFT_CMP_LT, reg0, 224, 0, 0, 0)}
	}
	return rule{load(unix.NFT_PAYLOAD_NETWORK_HEADER, at, 1, reg0), compare(unix.NFT_CMP_NEQ, reg0, 0xff),
		load(unix.NFT_PAYLOAD_NETWORK_HEADER, at, 8, reg0), compare(unix.NFT_CMP_NEQ, reg0, make([]byte, 8)...)}
}
