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
 * It is loaded without CAP_PERFMON. No variable offset into a packet or the stack is
 * allowed then, and each first write to a place on the stack is a barrier of some 15 ns:
 * full() copies the headers once to memory of its own and works there.
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
	__u32 zero;      /* in the first slot: the key of a map with one entry, which need not be on the stack */
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
 * policy knows no datagram of the old one. A table of the gate's own, in which a datagram
 * has one place, and the newest of two that share one has it: the kernel's hash table
 * takes longer than all the rest of a decision. */
struct fragment {
	__u64 src[2], dst[2]; /* as in the frame; IPv4 in the first four bytes */
	__u64 name;           /* id, IPv4's protocol (in IPv6 no part of a datagram's name), family, direction */
	__u64 expires;        /* ns; 0: empty */
	__u64 cgroup;         /* the sender's */
	__u32 first;          /* where the first fragment ends: nothing may overlap it */
	__u32 end;            /* where the datagram ends, at the latest */
	__u32 exact;          /* it ends there */
	__u32 taken;          /* a processor is there. One that finds it so gives up: the frame is dropped */
};

#define FRAGMENT_BITS 12
struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 1 << FRAGMENT_BITS);
	__type(key, __u32);
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

/* What full() learns of a frame. Offsets are from the IP header on. */
struct packet {
	struct drop_sample shown;
	__u32 at;      /* of the IP header in the frame */
	__u32 l4;      /* of the transport header, or of a later fragment's data */
	__u32 payload; /* bytes behind it, that header included */
	__u32 id;
	__u32 offset; /* of this fragment in the datagram */
	__u32 limit;  /* the longest datagram that may be put together */
	__u32 end;    /* the end that a first fragment tells, else limit */
	__u32 more;
	__u32 bare;   /* no option, no extension header */
	enum part part;
	enum reason fault; /* of a frame that is read on for the record */
	__u32 reserved;
};

/* The longest headers that are legal: IPv6, one of options, one of a fragment, TCP. */
#define EXTENSION_BYTES 40
#define HEADERS (IPV6_LEN + EXTENSION_BYTES + 8 + TCP_LEN)
#define HEAD 128 /* a power of two that holds them: an offset is masked, as the verifier asks */
_Static_assert(HEADERS <= HEAD, "headers fit");

/* Where full() works. A processor's own: it runs with softirqs off, so that there is one
 * frame at a time. Of head, only what was read of this frame may be looked at. */
struct desk {
	struct packet p;
	/* Through memory, so that the verifier forgets what they can be: it follows one number
	 * then, not a path for each, and allows no place in an array where it knows the
	 * number on one path and not on another. */
	volatile __u32 reason, walk, room; /* room: from the IP header to the frame's end */
	volatile __u16 ethertype;
	volatile __u64 name, cgroup; /* of a fragment, through memory to save places on the stack */
	__u8 head[HEAD + 16];
};

struct {
	__uint(type, MAP_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct desk);
} desks SEC(".maps");

/* What was read of memory is read again, and takes no place on the stack until then. */
#define FORGET() asm volatile("" : : : "memory")
#define KEEP(x) asm volatile("" : "+r"(x))
#define HEAD_AT(type, offset, align) (*(type *)(d->head + ((offset) & (HEAD - (align)))))

/* At most 4 options, padding counted. IPv4's list may end early; its length counts
 * type and length. The byte behind the last option is there: a header is followed by
 * something. */
#define OPTIONS 4
#define LSRR 131
#define SSRR 137
#define JUMBO 0xc2 /* RFC 2675 */

#define MALFORMED 0xffff

/* Where the option behind the one at d->walk is. */
INLINE void step4(struct desk *d, __u32 end)
{
	if (d->walk >= end)
		return;
	__u32 at = d->walk; /* read again: the comparison has narrowed the other one, differently on each path */
	__u32 type = HEAD_AT(__u8, at, 1), length = HEAD_AT(__u8, at + 1, 1);

	if (type == 0)
		d->walk = end;
	else if (type == 1)
		d->walk = at + 1;
	else
		d->walk = length < 2 || type == LSRR || type == SSRR ? MALFORMED : at + length;
}

INLINE void step6(struct desk *d, __u32 end)
{
	if (d->walk >= end)
		return;
	__u32 at = d->walk;
	__u32 type = HEAD_AT(__u8, at, 1), length = HEAD_AT(__u8, at + 1, 1);

	d->walk = type == JUMBO ? MALFORMED : at + (type ? 2 + length : 1);
}

INLINE int options(struct desk *d, __u32 start, __u32 end, int version)
{
	d->walk = start;
#pragma unroll
	for (int i = 0; i < OPTIONS; i++)
		version == 4 ? step4(d, end) : step6(d, end);
	return d->walk == end;
}

/* Which part of a datagram this is. */
INLINE enum reason part(struct packet *p, __u32 offset, __u32 more)
{
	p->offset = offset;
	p->more = more;
	if (!offset && !more)
		return ADMITTED;
	if ((more && p->payload % 8) || offset + p->payload > p->limit)
		return R_FRAGMENT;
	p->part = offset ? LATER : FIRST;
	return ADMITTED;
}

NOINLINE int ipv4(struct desk *d, int dir)
{
	struct packet *p = &d->p;
	const __u8 *h = d->head;

	if (h[0] >> 4 != 4)
		return R_IP_HEADER;
	p->shown.family = KIND_V4;
	p->shown.proto = h[9];
	__builtin_memcpy(p->shown.src, h + 12, 4);
	__builtin_memcpy(p->shown.dst, h + 16, 4);
	__u32 header = (h[0] & 15) * 4, total = BE16(*(__u16 *)(h + 2)), room = d->room;

	if (header < IPV4_LEN || total < header || total > room || (dir == DIR_EGRESS && total != room))
		return R_IP_HEADER;
	if (total == header)
		return R_L4_LENGTH;
	p->bare = header == IPV4_LEN;
	p->l4 = header;
	p->payload = total - header;
	p->limit = 65535 - header;
	p->id = BE16(*(__u16 *)(h + 4));
	if (dir == DIR_EGRESS && header > IPV4_LEN)
		p->fault = R_IP_OPTIONS;
	if (header > IPV4_LEN && !options(d, IPV4_LEN, header, 4))
		return R_IP_OPTIONS;
	__u32 field = BE16(*(volatile __u16 *)(h + 6)); /* not before: few registers are kept */

	if (field & 0x8000) /* reserved */
		return R_FRAGMENT;
	return part(p, (field & 0x1fff) * 8, field & 0x2000);
}

/* One header of options and one of a fragment at most, in this order, and no routing
 * header. */
NOINLINE int ipv6(struct desk *d, int dir)
{
	struct packet *p = &d->p;
	const __u8 *h = d->head;
	__u32 next = h[6], off = IPV6_LEN, room = d->room;

	if (room < IPV6_LEN)
		return R_SHORT;
	if (h[0] >> 4 != 6)
		return R_IP_HEADER;
	p->shown.family = KIND_V6;
	p->shown.proto = next;
	__builtin_memcpy(p->shown.src, h + 8, 16);
	__builtin_memcpy(p->shown.dst, h + 24, 16);
	__u32 payload = BE16(*(__u16 *)(h + 4)), end = IPV6_LEN + payload;

	if (end > room || (dir == DIR_EGRESS && end != room))
		return R_IP_HEADER;
	if (payload == 0)
		return R_L4_LENGTH;
	p->limit = 65535;
	p->bare = 1;
	if (next == HOP_BY_HOP || next == DESTINATION) {
		/* Something follows each header. */
		__u32 size = 8 + h[IPV6_LEN + 1] * 8;

		if (payload <= 8 || size >= payload || size > EXTENSION_BYTES || !options(d, IPV6_LEN + 2, IPV6_LEN + size, 6))
			return R_EXTENSION;
		if (dir == DIR_EGRESS)
			p->fault = R_EXTENSION;
		p->bare = 0;
		p->limit -= size;
		p->shown.proto = next = h[IPV6_LEN];
		off += size;
	}
	d->walk = off;
	if (next == FRAGMENT) {
		if (off + 8 >= end)
			return R_EXTENSION;
		__u32 first = HEAD_AT(__u32, d->walk, 8), field = BE16(first >> 16);

		/* Reserved fields are ignored when it comes (RFC 8200 4.5). An atomic fragment is a
		 * whole datagram (RFC 6946); our kernel makes none. */
		if (dir == DIR_EGRESS && ((first & 0xff00) || (field & 6) || field == 0))
			return R_FRAGMENT;
		p->bare = 0;
		p->id = BE32(HEAD_AT(__u32, d->walk + 4, 4));
		off += 8;
		p->payload = end - off;
		int reason = part(p, field & 0xfff8, field & 1);

		if (reason != ADMITTED)
			return reason;
		p->shown.proto = next = first & 0xff;
		if (p->part == LATER)
			return ADMITTED; /* the rest is data */
	}
	if (next == HOP_BY_HOP || next == DESTINATION || next == ROUTING || next == FRAGMENT)
		return R_EXTENSION;
	p->l4 = off;
	p->payload = end - off;
	return ADMITTED;
}

/* Outgoing frames come from our own kernel and must be exact: bytes after the datagram
 * would be a channel no one looks at. Incoming ones may carry Ethernet padding, and UDP
 * shorter than its datagram. A first fragment has the whole header (RFC 1858, RFC 7112). */
NOINLINE int datagram(struct desk *d, int dir)
{
	struct packet *p = &d->p;
	__u32 proto = p->shown.proto, payload = p->payload, at = p->l4;

	if (proto != UDP && proto != TCP)
		return R_PROTOCOL;
	enum reason unfit = p->part == FIRST ? R_FRAGMENT : R_L4_LENGTH;

	if (payload < UDP_LEN)
		return unfit;
	*(__u32 *)&p->shown.sport = HEAD_AT(__u32, at, 4);
	p->end = p->limit;
	if (proto == TCP) {
		__u32 header = (HEAD_AT(__u8, at + 12, 1) >> 4) * 4;

		return payload < TCP_LEN || header < TCP_LEN || header > payload ? unfit : ADMITTED;
	}
	__u32 length = BE16(HEAD_AT(__u16, at + 4, 4));

	if (length < UDP_LEN)
		return unfit;
	if (p->part == FIRST) {
		if (dir == DIR_INGRESS)
			return ADMITTED;
		p->end = length;
		return length <= payload || length > p->limit ? R_FRAGMENT : ADMITTED;
	}
	return length > payload || (dir == DIR_EGRESS && length != payload) ? R_L4_LENGTH : ADMITTED;
}

/* Finds the IP header and brings all headers to the desk. */
NOINLINE int fetch(struct __sk_buff *skb, struct desk *d)
{
	d->reason = R_SHORT;
	d->walk = ETH_LEN;
	if (bpf_skb_load_bytes(skb, 12, (void *)&d->ethertype, 2))
		return 0;
	d->reason = R_VLAN;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (d->ethertype != BE16(0x8100) && d->ethertype != BE16(0x88a8))
			break;
		if ((i == 1 && skb->vlan_present) || bpf_skb_load_bytes(skb, d->walk + 2, (void *)&d->ethertype, 2))
			return 0;
		d->walk += 4;
	}
	d->p.at = d->walk;
	if (d->ethertype == BE16(0x0800) || d->ethertype == BE16(0x86dd)) {
		__u32 at = d->p.at, room = skb->len - at, n = room < HEADERS ? room : HEADERS;

		d->room = room;
		KEEP(n); /* else the compiler drops the bounds that the verifier asks for */
		if (skb->len < at || n < IPV4_LEN || n > HEADERS || bpf_skb_load_bytes(skb, at, d->head, n))
			d->reason = R_SHORT;
		else
			d->reason = ADMITTED;
	} else if (d->ethertype == BE16(0x0806)) {
		d->reason = R_ARP;
	} else {
		d->reason = R_ETHERTYPE;
	}
	return 0;
}

/* Reads all there is to read; d->p has what was read before a fault, d->reason what the
 * fault is. */
INLINE void parse(struct __sk_buff *skb, int dir, struct desk *d)
{
	fetch(skb, d);
	if (d->reason == ADMITTED)
		d->reason = d->ethertype == BE16(0x0800) ? ipv4(d, dir) : ipv6(d, dir);
	if (d->reason == ADMITTED && d->p.part != LATER)
		d->reason = datagram(d, dir);
	if (d->p.at && (d->p.at != ETH_LEN || skb->vlan_present))
		d->reason = R_VLAN;
	else if (d->reason == ADMITTED)
		d->reason = d->p.fault;
}

/* The stages of full(). Global functions, one for each direction: each is verified
 * once, knowing nothing of what the one before it found. */
INLINE __u64 fragment_name(int dir, const struct packet *p)
{
	return p->id | (__u64)(p->shown.family == KIND_V4 ? p->shown.proto : 0) << 32 | (__u64)p->shown.family << 40 | (__u64)dir << 48;
}

#define HALF(address, n) (*(const __u64 *)(p->shown.address + 8 * (n)))

/* The place of a datagram: egress.fragmentKey.place. */
INLINE struct fragment *place(struct desk *d, int dir)
{
	const struct packet *p = &d->p;
	__u64 name = fragment_name(dir, p);

	__u64 hash = (HALF(src, 0) ^ HALF(dst, 1)) * 0x9e3779b97f4a7c15ull + (HALF(src, 1) ^ HALF(dst, 0)) * 0xbf58476d1ce4e5b9ull + name * 0x94d049bb133111ebull;

	d->name = name;
	d->walk = hash >> (64 - FRAGMENT_BITS);
	return bpf_map_lookup_elem(&fragments, (const void *)&d->walk);
}

/* A later fragment has no ports: it goes where its first one went. */
INLINE enum reason later(struct __sk_buff *skb, int dir, struct desk *d)
{
	const struct packet *p = &d->p;
	struct fragment *f = place(d, dir);
	enum reason reason = R_NO_FIRST;
	__u64 cgroup = 0;

	if (!f || __sync_lock_test_and_set(&f->taken, 1))
		return R_NO_FIRST;
	if (f->name == d->name && f->src[0] == HALF(src, 0) && f->src[1] == HALF(src, 1) && f->dst[0] == HALF(dst, 0) && f->dst[1] == HALF(dst, 1) &&
	    bpf_ktime_get_coarse_ns() < f->expires) {
		__u32 end = p->offset + p->payload;

		/* RFC 5722: nothing overlaps the ports that were looked at. */
		reason = p->offset < f->first || end > f->end || (f->exact && (end == f->end) == !!p->more) ? R_FRAGMENT : ADMITTED;
		cgroup = f->cgroup;
	}
	__sync_lock_test_and_set(&f->taken, 0);
	return reason == ADMITTED ? sender(skb, dir, cgroup) : reason;
}

INLINE enum reason first(int dir, struct desk *d, __u64 cgroup)
{
	const struct packet *p = &d->p;

	d->cgroup = cgroup;
	struct fragment *f = place(d, dir);

	if (!f || __sync_lock_test_and_set(&f->taken, 1))
		return R_FRAGMENT;
	f->cgroup = d->cgroup;
	f->name = d->name;
	f->src[0] = HALF(src, 0);
	f->src[1] = HALF(src, 1);
	f->dst[0] = HALF(dst, 0);
	f->dst[1] = HALF(dst, 1);
	f->first = p->payload;
	f->end = p->end;
	f->exact = dir == DIR_EGRESS && p->shown.proto == UDP;
	f->expires = bpf_ktime_get_coarse_ns() + policy.fragment_life;
	__sync_lock_test_and_set(&f->taken, 0);
	return ADMITTED;
}

INLINE enum reason judge(struct __sk_buff *skb, int dir, struct desk *d)
{
	struct packet *p = &d->p;
	enum reason reason;
	const __u8 *remote = dir == DIR_EGRESS ? p->shown.dst : p->shown.src;
	__u16 port = dir == DIR_EGRESS ? p->shown.dport : p->shown.sport;
	__u64 cgroup;

	if (p->part == LATER)
		return later(skb, dir, d);
	cgroup = rule(*(__u64 *)remote, *(__u64 *)(remote + 8), port | p->shown.proto << 16 | p->shown.family << 24);
	if (!cgroup) {
		/* A responder's, known by its own port, whoever the remote is. */
		FORGET();
		__u16 own = dir == DIR_EGRESS ? p->shown.sport : p->shown.dport;

		cgroup = rule(0, 0, own | p->shown.proto << 16 | KIND_ANY << 24);
		if (!cgroup)
			return R_CLASS;
		if (p->shown.family == KIND_V4 ? !host4(*(__u64 *)remote) : !host6(*(__u64 *)remote))
			return R_REMOTE;
	}
	reason = sender(skb, dir, cgroup);
	if (reason != ADMITTED || p->part == WHOLE)
		return reason;
	return first(dir, d, cgroup);
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
		if (!p->bare || s->family != KIND_V6 || s->proto != ICMPV6 || bpf_skb_load_bytes(skb, ETH_LEN + IPV6_LEN, &type, 1) || type < 133 || type > 136)
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
	GLOBAL int judge_##direction(struct __sk_buff *skb, struct desk *d)                         \
	{                                                                                           \
		return d ? judge(skb, dir, d) : R_CLASS;                                            \
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
		struct desk *d = bpf_map_lookup_elem(&desks, (const void *)&policy.slots[0].zero);  \
                                                                                                    \
		if (!d)                                                                             \
			return VERDICT_DROP;                                                        \
		__builtin_memset(&d->p, 0, sizeof(d->p));                                           \
		parse(skb, dir, d);                                                                 \
		if (d->reason == ADMITTED)                                                          \
			d->reason = judge_##direction(skb, d);                                      \
		__u32 reason = d->reason;                                                           \
		if (reason == R_ARP || reason == R_PROTOCOL || reason == R_CLASS)                   \
			d->reason = link_##direction(skb, &d->p, reason);                           \
		reason = d->reason;                                                                 \
		count(dir, reason);                                                                 \
		if (reason == ADMITTED)                                                             \
			return VERDICT_PASS;                                                        \
		record_##direction(skb, &d->p, reason);                                             \
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
