/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The gate: the last word on a black device. It passes a frame only if the frame
 * belongs to a class of `policy` or to the link-layer minimum, and drops, counts
 * and records everything else. With an empty policy it drops everything; where there is
 * neither policy nor link-layer minimum, closed.c stands in its place.
 *
 * vpn/egress.Decide is the same decision in Go, and its package documentation says
 * what is legal in which direction and why. The two are compared frame by frame in
 * vpn/enforce. Change both or neither.
 *
 * Two readers of a frame: plain() admits what has nothing special about it, from
 * registers, in some nanoseconds. What it does not admit is read anew by full(),
 * which knows every header, gives the reason and needs nothing of plain().
 *
 * It is loaded without CAP_PERFMON: no variable offset into a packet or the stack,
 * hence bpf_skb_load_bytes in full().
 */
#include "rempart.h"
#include "drops.h"
#include "reasons.h"

enum { KIND_ANY = 0, KIND_V4 = 4, KIND_V6 = 6 };

#define SLOT_BITS 12 /* at most a quarter of the slots is used: egress.MaxClasses */
#define SLOTS (1 << SLOT_BITS)

struct slot {
	__u64 high, low; /* the remote's address as in the frame; IPv4 in the first four bytes; zero: any */
	__u32 tail;      /* port in network order, the remote's, the local one for KIND_ANY; protocol; kind; zero: empty */
	__u32 reserved;
	__u64 cgroup; /* id of the only cgroup that may send in this class */
};

/* What egress.Policy.Table writes: the rules in a hash table in which each is in one of
 * two places. A constant of the loaded program: the verifier knows its head, and no one
 * can write it. */
const volatile struct {
	__u64 multiplier[3];
	__u64 fragment_life; /* ns */
	__u32 rules;
	__u32 responders; /* rules of KIND_ANY among them */
	struct slot slots[SLOTS];
} policy SEC(".rodata.policy");

/* First fragments that were admitted. Each instance of the gate has its own: a new
 * policy knows no datagram of the old one. */
struct fragment_key {
	__u8 src[16], dst[16];
	__u32 id;
	__u8 proto; /* IPv4 only: part of a datagram's name there (RFC 791), not in IPv6 */
	__u8 family;
	__u8 dir;
	__u8 reserved;
};

struct fragment {
	__u64 expires;
	__u64 cgroup; /* the sender's */
	__u32 first;  /* where the first fragment ends: nothing may overlap it */
	__u32 end;    /* where the datagram ends, at the latest */
	__u32 exact;  /* it ends there */
	__u32 reserved;
};

struct {
	__uint(type, MAP_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps");

#define ETH_LEN 14
#define IPV4_LEN 20
#define IPV6_LEN 40
#define UDP_LEN 8
#define TCP_LEN 20

enum { HOP_BY_HOP = 0, TCP = 6, UDP = 17, ROUTING = 43, FRAGMENT = 44, ICMPV6 = 58, DESTINATION = 60 };

#include "linklayer.h"

/* The cgroup of the rule with this key; 0: there is none. */
INLINE __u64 find(__u64 high, __u64 low, __u32 tail)
{
	__u64 hash = high * policy.multiplier[0] + low * policy.multiplier[1] + tail * policy.multiplier[2];
	const volatile struct slot *slot = &policy.slots[hash >> (64 - SLOT_BITS)];

	if (slot->tail == tail && slot->high == high && slot->low == low)
		return slot->cgroup;
	slot = &policy.slots[(hash >> (64 - 2 * SLOT_BITS)) % SLOTS];
	if (slot->tail == tail && slot->high == high && slot->low == low)
		return slot->cgroup;
	return 0;
}

GLOBAL __u64 rule(__u64 high, __u64 low, __u32 tail)
{
	return find(high, low, tail);
}

/* A responder's remote is one host somewhere else. */
INLINE int host4(__u64 high)
{
	__u8 first = high;

	return first != 0 && first != 127 && first < 224;
}

INLINE int host6(__u64 high)
{
	return high != 0 && (__u8)high != 0xff;
}

/* Only the class's own process sends. 0 where a frame has no socket: no class has
 * cgroup 0. */
INLINE enum reason sender(struct __sk_buff *skb, int dir, __u64 cgroup)
{
	if (dir == DIR_INGRESS)
		return ADMITTED;
	if (skb->mark)
		return R_MARK;
	return bpf_skb_cgroup_id(skb) == cgroup ? ADMITTED : R_CGROUP;
}

#define AT(type, offset) (*(type *)(at + (offset)))

enum { SAYS_NOTHING, ADMITS, NO_RULE };

/* Looks at a frame without tag, option, extension header and fragment, whose headers are
 * in the linear part: by its remote, or as a responder's, by its own port, whoever the
 * remote is. All of it is in registers: the first write to a place on the stack is a
 * barrier in a program that is loaded without CAP_PERFMON. */
INLINE int plain(struct __sk_buff *skb, int dir, int responder)
{
	void *at = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u64 high, low;
	__u32 payload, tail;

	if (at + ETH_LEN + IPV4_LEN > end || skb->vlan_present)
		return SAYS_NOTHING;
	__u16 ethertype = AT(__u16, 12);

	if (ethertype == BE16(0x0800)) {
		__u32 total = ETH_LEN + BE16(AT(__u16, ETH_LEN + 2));

		/* "Don't fragment" does not matter. */
		if (AT(__u8, ETH_LEN) != 0x45 || (AT(__u16, ETH_LEN + 6) & ~BE16(0x4000)))
			return SAYS_NOTHING;
		if (dir == DIR_EGRESS ? total != skb->len : total > skb->len || total < ETH_LEN + IPV4_LEN)
			return SAYS_NOTHING;
		payload = total - ETH_LEN - IPV4_LEN;
		tail = AT(__u8, ETH_LEN + 9) << 16 | KIND_V4 << 24;
		high = AT(__u32, dir == DIR_EGRESS ? ETH_LEN + 16 : ETH_LEN + 12);
		low = 0;
		at += ETH_LEN + IPV4_LEN;
		if (responder && !host4(high))
			return SAYS_NOTHING;
	} else if (ethertype == BE16(0x86dd)) {
		if (at + ETH_LEN + IPV6_LEN > end)
			return SAYS_NOTHING;
		payload = BE16(AT(__u16, ETH_LEN + 4));
		__u32 total = ETH_LEN + IPV6_LEN + payload;

		if ((AT(__u8, ETH_LEN) & 0xf0) != 0x60 || (dir == DIR_EGRESS ? total != skb->len : total > skb->len))
			return SAYS_NOTHING;
		tail = AT(__u8, ETH_LEN + 6) << 16 | KIND_V6 << 24;
		high = AT(__u64, dir == DIR_EGRESS ? ETH_LEN + 24 : ETH_LEN + 8);
		low = AT(__u64, dir == DIR_EGRESS ? ETH_LEN + 32 : ETH_LEN + 16);
		at += ETH_LEN + IPV6_LEN;
		if (responder && !host6(high))
			return SAYS_NOTHING;
	} else {
		return SAYS_NOTHING;
	}
	if (at + UDP_LEN > end)
		return SAYS_NOTHING;
	if ((tail & 0xff0000) == UDP << 16) {
		__u32 length = BE16(AT(__u16, 4));

		if (length < UDP_LEN || (dir == DIR_EGRESS ? length != payload : length > payload))
			return SAYS_NOTHING;
	} else {
		if ((tail & 0xff0000) != TCP << 16 || payload < TCP_LEN || at + TCP_LEN > end)
			return SAYS_NOTHING;
		__u32 header = (AT(__u8, 12) >> 4) * 4;

		if (header < TCP_LEN || header > payload)
			return SAYS_NOTHING;
	}
	/* The remote's port, or a responder's own. */
	tail |= AT(__u16, (dir == DIR_EGRESS) != responder ? 2 : 0);
	__u64 cgroup = responder ? find(0, 0, tail & 0xffffff) : find(high, low, tail);

	if (!cgroup)
		return NO_RULE;
	return sender(skb, dir, cgroup) == ADMITTED ? ADMITS : SAYS_NOTHING;
}

enum part { WHOLE, FIRST, LATER };

/* What full() learns of a frame. */
struct packet {
	struct drop_sample shown;
	__u32 start;   /* offset in the frame of what may be cut: behind the headers that every fragment repeats */
	__u32 l4;      /* offset of the transport header */
	__u32 payload; /* bytes behind it, that header included */
	__u32 id;
	__u32 offset; /* of this fragment in the datagram */
	__u32 size;   /* of it */
	__u32 limit;  /* the longest datagram that may be put together */
	__u32 end;    /* the end that a first fragment tells, else limit */
	__u32 more;
	__u32 bare;   /* no option, no extension header */
	enum part part;
	enum reason fault; /* of a frame that is read on for the record */
};

/* At most 8 options, padding counted. IPv4's list may end early; its length counts
 * type and length. The byte behind the last option is there: a header is followed by
 * something. */
#define OPTIONS 8
#define LSRR 131
#define SSRR 137
#define JUMBO 0xc2 /* RFC 2675 */

/* The length of the option at this offset; 0: malformed. */
#define LIST_ENDS 1000

GLOBAL int option(struct __sk_buff *skb, __u32 at, int version)
{
	__u8 o[2];

	if (bpf_skb_load_bytes(skb, at, o, 2))
		return 0;
	if (version == 6) {
		if (o[0] == JUMBO)
			return 0;
		return o[0] ? 2 + o[1] : 1;
	}
	if (o[0] == 0)
		return LIST_ENDS;
	if (o[0] == 1)
		return 1;
	if (o[0] == LSRR || o[0] == SSRR || o[1] < 2)
		return 0;
	return o[1];
}

GLOBAL int options_ok(struct __sk_buff *skb, __u32 at, __u32 end, int version)
{
#pragma unroll
	for (int i = 0; i < OPTIONS && at < end; i++) {
		int length = option(skb, at, version);

		if (length == 0)
			return 0;
		if (length == LIST_ENDS)
			return 1;
		at += length;
	}
	return at == end;
}

/* Which part of a datagram this is. */
INLINE enum reason part(struct packet *p, __u32 offset, __u32 more)
{
	p->offset = offset;
	p->more = more;
	if (!offset && !more)
		return ADMITTED;
	if ((more && p->size % 8) || offset + p->size > p->limit)
		return R_FRAGMENT;
	p->part = offset ? LATER : FIRST;
	return ADMITTED;
}

INLINE int ipv4(struct __sk_buff *skb, int dir, struct packet *p, __u32 at)
{
	__u8 h[IPV4_LEN];

	if (bpf_skb_load_bytes(skb, at, h, sizeof(h)))
		return R_SHORT;
	if (h[0] >> 4 != 4)
		return R_IP_HEADER;
	p->shown.family = KIND_V4;
	p->shown.proto = h[9];
	__builtin_memcpy(p->shown.src, h + 12, 4);
	__builtin_memcpy(p->shown.dst, h + 16, 4);
	__u32 header = (h[0] & 15) * 4, total = h[2] << 8 | h[3], field = h[6] << 8 | h[7];

	if (header < IPV4_LEN || total < header || at + total > skb->len || (dir == DIR_EGRESS && at + total != skb->len))
		return R_IP_HEADER;
	if (total == header)
		return R_L4_LENGTH;
	if (header > IPV4_LEN) {
		if (!options_ok(skb, at + IPV4_LEN, at + header, 4))
			return R_IP_OPTIONS;
		if (dir == DIR_EGRESS)
			p->fault = R_IP_OPTIONS;
	}
	if (field & 0x8000) /* reserved */
		return R_FRAGMENT;
	p->bare = header == IPV4_LEN;
	p->start = p->l4 = at + header;
	p->payload = p->size = total - header;
	p->limit = 65535 - header;
	p->id = h[4] << 8 | h[5];
	return part(p, (field & 0x1fff) * 8, field & 0x2000);
}

/* The order of RFC 8200 4.1, each at most once: destination options before a routing
 * header and before the transport header, and there alone. */
enum { RANK_HOP_BY_HOP = 1, RANK_FIRST_DESTINATION, RANK_ROUTING, RANK_FRAGMENT, RANK_DESTINATION };
#define EXTENSIONS 4 /* without a fragment header */
#define EXTENSION_BYTES 256

/* Walks extension headers up to a fragment header or what is none. Returns the offset
 * of that, its number and the last one's rank; or MALFORMED. */
#define MALFORMED (~0ull)
#define CHAIN(off, next, rank) ((__u64)(rank) << 40 | (__u64)(next) << 32 | (off))

GLOBAL __u64 extensions(struct __sk_buff *skb, __u32 start, __u32 end, __u64 chain)
{
	__u32 off = chain;
	__u8 next = chain >> 32, rank = chain >> 40;

	/* One round more than there can be headers: its rank refuses it. */
#pragma unroll
	for (int i = 0; i <= EXTENSIONS; i++) {
		__u8 e[4], r;

		if (next == HOP_BY_HOP)
			r = RANK_HOP_BY_HOP;
		else if (next == DESTINATION)
			r = rank < RANK_FIRST_DESTINATION ? RANK_FIRST_DESTINATION : RANK_DESTINATION;
		else if (next == ROUTING)
			r = RANK_ROUTING;
		else
			break;
		if (r <= rank || (rank == RANK_FIRST_DESTINATION && r != RANK_ROUTING))
			return MALFORMED;
		/* Something follows each header. */
		if (off + 8 >= end || bpf_skb_load_bytes(skb, off, e, sizeof(e)))
			return MALFORMED;
		__u32 size = 8 + e[1] * 8;

		if (off + size >= end || off + size - start > EXTENSION_BYTES)
			return MALFORMED;
		/* Type 0 is gone (RFC 5095); with segments left, this is no destination. */
		if (next == ROUTING ? e[2] == 0 || e[3] != 0 : !options_ok(skb, off + 2, off + size, 6))
			return MALFORMED;
		rank = r;
		next = e[0];
		off += size;
	}
	return CHAIN(off, next, rank);
}

INLINE int ipv6(struct __sk_buff *skb, int dir, struct packet *p, __u32 at)
{
	__u8 h[IPV6_LEN], next;

	if (bpf_skb_load_bytes(skb, at, h, sizeof(h)))
		return R_SHORT;
	if (h[0] >> 4 != 6)
		return R_IP_HEADER;
	p->shown.family = KIND_V6;
	p->shown.proto = next = h[6];
	__builtin_memcpy(p->shown.src, h + 8, 16);
	__builtin_memcpy(p->shown.dst, h + 24, 16);
	__u32 payload = h[4] << 8 | h[5];
	__u32 start = at + IPV6_LEN, off = start, end = start + payload;

	if (end > skb->len || (dir == DIR_EGRESS && end != skb->len))
		return R_IP_HEADER;
	if (payload == 0)
		return R_L4_LENGTH;
	p->start = start;
	p->limit = 65535;
	__u64 chain = extensions(skb, start, end, CHAIN(off, next, 0));

	if (chain == MALFORMED)
		return R_EXTENSION;
	if (dir == DIR_EGRESS && (__u32)chain != off)
		p->fault = R_EXTENSION;
	off = chain;
	p->shown.proto = next = chain >> 32;
	p->bare = off == start;
	if (next == FRAGMENT) {
		__u8 e[8];

		p->bare = 0;
		__u8 rank = chain >> 40;

		if (rank == RANK_FIRST_DESTINATION || rank > RANK_FRAGMENT || off + sizeof(e) >= end || bpf_skb_load_bytes(skb, off, e, sizeof(e)))
			return R_EXTENSION;
		__u32 field = e[2] << 8 | e[3];

		/* Reserved fields are ignored when it comes (RFC 8200 4.5). An atomic fragment is a
		 * whole datagram (RFC 6946); our kernel makes none. */
		if (dir == DIR_EGRESS && (e[1] || (field & 6) || field == 0))
			return R_FRAGMENT;
		p->limit = 65535 - (off - start);
		p->id = (__u32)e[4] << 24 | e[5] << 16 | e[6] << 8 | e[7];
		off += sizeof(e);
		p->start = off;
		p->size = end - off;
		int reason = part(p, field & 0xfff8, field & 1);

		if (reason != ADMITTED)
			return reason;
		p->shown.proto = next = e[0];
		if (p->part == LATER)
			return ADMITTED; /* the rest is data */
		chain = extensions(skb, start, end, CHAIN(off, next, RANK_FRAGMENT));
		if (chain == MALFORMED || (__u8)(chain >> 32) == FRAGMENT)
			return R_EXTENSION;
		if (dir == DIR_EGRESS && (__u32)chain != off)
			p->fault = R_EXTENSION;
		off = chain;
		p->shown.proto = chain >> 32;
	}
	p->l4 = off;
	p->payload = end - off;
	return ADMITTED;
}

/* Reads a transport header of which the whole is in the first `payload` bytes. Returns
 * the ports, a UDP datagram's length behind them, and FITS if the header does. */
#define FITS (1ull << 63)

GLOBAL __u64 transport(struct __sk_buff *skb, __u32 at, __u32 payload, __u32 proto)
{
	__u8 t[UDP_LEN], data_offset;

	if (payload < sizeof(t) || bpf_skb_load_bytes(skb, at, t, sizeof(t)))
		return 0;
	__u64 ports = t[0] | t[1] << 8 | t[2] << 16 | (__u32)t[3] << 24;
	__u64 length = t[4] << 8 | t[5];

	if (proto == UDP)
		return ports | length << 32 | (length >= UDP_LEN ? FITS : 0);
	if (payload < TCP_LEN || bpf_skb_load_bytes(skb, at + 12, &data_offset, 1))
		return ports;
	__u32 header = (data_offset >> 4) * 4;

	return ports | (header >= TCP_LEN && header <= payload ? FITS : 0);
}

/* Outgoing frames come from our own kernel and must be exact: bytes after the datagram
 * would be a channel no one looks at. Incoming ones may carry Ethernet padding, and UDP
 * shorter than its datagram. A first fragment has the whole header (RFC 1858, RFC 7112). */
INLINE enum reason datagram(struct __sk_buff *skb, int dir, struct packet *p)
{
	__u8 proto = p->shown.proto;

	if (proto != UDP && proto != TCP)
		return R_PROTOCOL;
	__u64 t = transport(skb, p->l4, p->payload, proto);
	__u32 length = (__u32)(t >> 32) & 0xffff;

	p->shown.sport = t;
	p->shown.dport = t >> 16;
	if (!(t & FITS))
		return p->part == FIRST ? R_FRAGMENT : R_L4_LENGTH;
	p->end = p->limit;
	if (proto == TCP)
		return ADMITTED;
	if (p->part == FIRST) {
		if (dir == DIR_INGRESS)
			return ADMITTED;
		p->end = p->l4 - p->start + length;
		return length <= p->payload || p->end > p->limit ? R_FRAGMENT : ADMITTED;
	}
	return length > p->payload || (dir == DIR_EGRESS && length != p->payload) ? R_L4_LENGTH : ADMITTED;
}

/* Reads all there is to read; p has what was read before a fault. */
INLINE enum reason parse(struct __sk_buff *skb, int dir, struct packet *p)
{
	__u32 tags = skb->vlan_present ? 1 : 0, at = ETH_LEN;
	__u16 ethertype;
	enum reason reason;

	if (bpf_skb_load_bytes(skb, 12, &ethertype, 2))
		return R_SHORT;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (ethertype != BE16(0x8100) && ethertype != BE16(0x88a8))
			break;
		if (++tags > 2 || bpf_skb_load_bytes(skb, at + 2, &ethertype, 2))
			return R_VLAN;
		at += 4;
	}
	if (ethertype == BE16(0x0800))
		reason = ipv4(skb, dir, p, at);
	else if (ethertype == BE16(0x86dd))
		reason = ipv6(skb, dir, p, at);
	else if (ethertype == BE16(0x0806))
		reason = R_ARP;
	else
		reason = R_ETHERTYPE;
	if (reason == ADMITTED && p->part != LATER)
		reason = datagram(skb, dir, p);
	if (tags)
		return R_VLAN;
	return reason == ADMITTED ? p->fault : reason;
}

/* The stages of full(). Global functions, one for each direction: each is verified
 * once, knowing nothing of what the one before it found. */
INLINE void fragment_name(struct fragment_key *key, int dir, const struct packet *p)
{
	__builtin_memcpy(key->src, p->shown.src, 16);
	__builtin_memcpy(key->dst, p->shown.dst, 16);
	key->id = p->id;
	key->proto = p->shown.family == KIND_V4 ? p->shown.proto : 0;
	key->family = p->shown.family;
	key->dir = dir;
}

/* A later fragment has no ports: it goes where its first one went. */
INLINE enum reason later(struct __sk_buff *skb, int dir, const struct packet *p)
{
	struct fragment_key key = {};

	fragment_name(&key, dir, p);
	struct fragment *f = bpf_map_lookup_elem(&fragments, &key);

	if (!f || bpf_ktime_get_coarse_ns() >= f->expires)
		return R_NO_FIRST;
	__u32 end = p->offset + p->size;

	/* RFC 5722: nothing overlaps the ports that were looked at. */
	if (p->offset < f->first || end > f->end || (f->exact && (end == f->end) == !!p->more))
		return R_FRAGMENT;
	return sender(skb, dir, f->cgroup);
}

INLINE enum reason judge(struct __sk_buff *skb, int dir, struct packet *p)
{
	enum reason reason;
	const __u8 *remote = dir == DIR_EGRESS ? p->shown.dst : p->shown.src;
	__u16 port = dir == DIR_EGRESS ? p->shown.dport : p->shown.sport;
	__u16 own = dir == DIR_EGRESS ? p->shown.sport : p->shown.dport;
	__u32 proto = p->shown.proto << 16;
	__u64 high, low, cgroup;

	if (p->part == LATER)
		return later(skb, dir, p);
	__builtin_memcpy(&high, remote, 8);
	__builtin_memcpy(&low, remote + 8, 8);
	cgroup = rule(high, low, port | proto | p->shown.family << 24);
	if (!cgroup) {
		/* A responder's, known by its own port, whoever the remote is. */
		cgroup = rule(0, 0, own | proto | KIND_ANY << 24);
		if (!cgroup)
			return R_CLASS;
		if (p->shown.family == KIND_V4 ? !host4(high) : !host6(high))
			return R_REMOTE;
	}
	reason = sender(skb, dir, cgroup);
	if (reason != ADMITTED || p->part == WHOLE)
		return reason;
	struct fragment_key key = {};
	struct fragment f = {
		.expires = bpf_ktime_get_coarse_ns() + policy.fragment_life,
		.cgroup = cgroup,
		.first = p->size,
		.end = p->end,
		.exact = dir == DIR_EGRESS && p->shown.proto == UDP,
	};

	fragment_name(&key, dir, p);
	return bpf_map_update_elem(&fragments, &key, &f, 0) ? R_FRAGMENT : ADMITTED;
}

/* What no class admits may be of the link-layer minimum. */
INLINE enum reason link_layer(struct __sk_buff *skb, int dir, const struct packet *p, enum reason reason)
{
	const struct drop_sample *s = &p->shown;
	__u8 type;

	switch (reason) {
	case R_ARP:
		return link_decide(skb, dir, LINK_ARP);
	case R_PROTOCOL:
		if (!p->bare || s->family != KIND_V6 || s->proto != ICMPV6 || bpf_skb_load_bytes(skb, p->l4, &type, 1) || type < 133 || type > 136)
			return reason;
		return link_decide(skb, dir, LINK_ND);
	case R_CLASS:
		if (!p->bare || p->part != WHOLE || s->family != KIND_V4 || s->proto != UDP || s->sport != BE16(dir == DIR_EGRESS ? 68 : 67) ||
		    s->dport != BE16(dir == DIR_EGRESS ? 67 : 68))
			return reason;
		return link_decide(skb, dir, LINK_DHCP);
	default:
		return reason;
	}
}

INLINE void record(struct __sk_buff *skb, int dir, struct packet *p, int reason)
{
	p->shown.cgroup = bpf_skb_cgroup_id(skb);
	p->shown.ifindex = skb->ifindex;
	p->shown.program = DROP_GATE;
	p->shown.direction = dir;
	p->shown.reason = reason;
	record_drop(&p->shown);
}

#define STAGES(direction, dir)                                                                      \
	GLOBAL int parse_##direction(struct __sk_buff *skb, struct packet *p)                       \
	{                                                                                           \
		return p ? parse(skb, dir, p) : R_SHORT;                                            \
	}                                                                                           \
	GLOBAL int judge_##direction(struct __sk_buff *skb, struct packet *p)                       \
	{                                                                                           \
		return p ? judge(skb, dir, p) : R_CLASS;                                            \
	}                                                                                           \
	GLOBAL int link_##direction(struct __sk_buff *skb, struct packet *p, int reason)            \
	{                                                                                           \
		return p ? link_layer(skb, dir, p, reason) : reason;                                \
	}                                                                                           \
	GLOBAL int record_##direction(struct __sk_buff *skb, struct packet *p, int reason)          \
	{                                                                                           \
		if (p)                                                                              \
			record(skb, dir, p, reason);                                                \
		return 0;                                                                           \
	}                                                                                           \
	GLOBAL int respond_##direction(struct __sk_buff *skb)                                       \
	{                                                                                           \
		return plain(skb, dir, 1);                                                          \
	}                                                                                           \
	GLOBAL int full_##direction(struct __sk_buff *skb)                                          \
	{                                                                                           \
		struct packet p = {};                                                               \
		int reason = parse_##direction(skb, &p);                                            \
                                                                                                    \
		if (reason == ADMITTED)                                                             \
			reason = judge_##direction(skb, &p);                                        \
		if (reason == R_ARP || reason == R_PROTOCOL || reason == R_CLASS)                   \
			reason = link_##direction(skb, &p, reason);                                 \
		count(dir, reason);                                                                 \
		if (reason == ADMITTED)                                                             \
			return VERDICT_PASS;                                                        \
		record_##direction(skb, &p, reason);                                                \
		return VERDICT_DROP;                                                                \
	}

STAGES(egress, DIR_EGRESS)
STAGES(ingress, DIR_INGRESS)

#define GATE(direction, dir)                                                                        \
	int verdict = policy.rules ? plain(skb, dir, 0) : SAYS_NOTHING;                             \
                                                                                                    \
	if (verdict == NO_RULE && policy.responders)                                                \
		verdict = respond_##direction(skb);                                                 \
	if (verdict != ADMITS)                                                                      \
		return full_##direction(skb);                                                       \
	count(dir, ADMITTED);                                                                       \
	return VERDICT_PASS;

SEC("classifier/egress")
int rempart_egress(struct __sk_buff *skb)
{
	GATE(egress, DIR_EGRESS)
}

SEC("classifier/ingress")
int rempart_ingress(struct __sk_buff *skb)
{
	GATE(ingress, DIR_INGRESS)
}

char _license[] SEC("license") = "GPL";
