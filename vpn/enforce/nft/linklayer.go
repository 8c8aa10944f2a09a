package nft

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"rempart/vpn/egress"
)

// Link is the link-layer minimum of a black device that leases its addresses: what the
// gate is told of the link, and the uid that opens linkd's sockets. The zero value is a
// device with fixed next hops, which needs none.
type Link struct {
	Facts egress.LinkFacts
	UID   uint32
}

// ND messages as the first two bytes of ICMPv6, type and code 0 (RFC 4861).
var (
	routerSolicitation    = []byte{133, 0}
	routerAdvertisement   = []byte{134, 0}
	neighbourSolicitation = []byte{135, 0}
	neighbourAdvert       = []byte{136, 0}
)

// WithLink is the table with the link-layer minimum let through: ARP and ND between the
// device and its router, DHCP and router solicitations of linkd. The exact shape of each
// message, and how often it may come, is the gate's to judge; here it is who speaks of
// whom.
func (t Table) WithLink(l Link) Table {
	f := l.Facts
	if !f.Set() {
		return t
	}
	out, in := &t.chains[0], &t.chains[1]
	linkd := rule{meta(unix.NFT_META_SKUID, reg0), equal(reg0, host32(l.UID)...)}
	mine := rule{load(unix.NFT_PAYLOAD_LL_HEADER, 6, 6, reg0), equal(reg0, f.MAC[:]...)}
	out.rules = append(out.rules, join(frameOf(unix.ETH_P_IP), mine, linkd, dhcp(68, 67)))
	in.rules = append(in.rules, join(frameOf(unix.ETH_P_IP), dhcp(67, 68)))
	if f.Addr4.IsValid() {
		out.rules = append(out.rules, join(frameOf(unix.ETH_P_ARP), mine, header(8, f.MAC[:]...), header(14, f.Addr4.AsSlice()...), header(24, f.Router4.AsSlice()...)))
		in.rules = append(in.rules, join(frameOf(unix.ETH_P_ARP), header(14, f.Router4.AsSlice()...), header(24, f.Addr4.AsSlice()...)))
	}
	if !f.Local6.IsValid() {
		return t.accepting()
	}
	out.rules = append(out.rules, join(nd(routerSolicitation), mine, linkd, source(f.Local6), header(24, allRouters.AsSlice()...)))
	if !f.Router6.IsValid() {
		in.rules = append(in.rules, join(nd(routerAdvertisement), header(8, linkLocal...)))
		return t.accepting()
	}
	in.rules = append(in.rules, join(nd(routerAdvertisement), source(f.Router6)))
	for _, own := range []netip.Addr{f.Local6, f.Addr6} {
		out.rules = append(out.rules,
			join(nd(neighbourSolicitation), mine, source(own), target(f.Router6)),
			join(nd(neighbourAdvert), mine, source(own), header(24, f.Router6.AsSlice()...)))
		in.rules = append(in.rules,
			join(nd(neighbourSolicitation), source(f.Router6), target(own)),
			join(nd(neighbourAdvert), source(f.Router6), header(24, own.AsSlice()...)))
	}
	return t.accepting()
}

// accepting ends each rule that has no verdict yet with one.
func (t Table) accepting() Table {
	for i := range t.chains {
		for j, r := range t.chains[i].rules {
			if accept := verdict(verdictAccept); string(r[len(r)-1]) != string(accept) {
				t.chains[i].rules[j] = append(r, accept)
			}
		}
	}
	return t
}

func join(parts ...rule) (r rule) {
	for _, p := range parts {
		r = append(r, p...)
	}
	return r
}

// frameOf holds for a frame of this EtherType, as the kernel took it and as its bytes say.
func frameOf(kind uint16) rule {
	return rule{meta(unix.NFT_META_PROTOCOL, reg0), equal(reg0, be16(kind)...),
		load(unix.NFT_PAYLOAD_LL_HEADER, etherType, protocolBytes, reg0), equal(reg0, be16(kind)...)}
}

// header compares bytes of the network header.
func header(at uint32, want ...byte) rule {
	return rule{load(unix.NFT_PAYLOAD_NETWORK_HEADER, at, uint32(len(want)), reg0), equal(reg0, want...)}
}

func source(a netip.Addr) rule { return header(8, a.AsSlice()...) }

// nd holds for an ND message that nobody has passed on: next header ICMPv6, hop limit 255.
func nd(kind []byte) rule {
	return join(frameOf(unix.ETH_P_IPV6), header(6, unix.IPPROTO_ICMPV6, 255),
		rule{load(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2, reg0), equal(reg0, kind...)})
}

// target compares whom an ND message speaks of.
func target(a netip.Addr) rule {
	return rule{load(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 8, 16, reg0), equal(reg0, a.AsSlice()...)}
}

func dhcp(from, to uint16) rule {
	return rule{meta(unix.NFT_META_L4PROTO, reg0), equal(reg0, unix.IPPROTO_UDP),
		load(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 4, reg0), equal(reg0, append(be16(from), be16(to)...)...)}
}

var (
	allRouters = netip.MustParseAddr("ff02::2")
	linkLocal  = []byte{0xfe, 0x80, 0, 0, 0, 0, 0, 0}
)
