/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The link-layer minimum: what a handset must say to its router so that it has
 * an address and a next hop, and nothing else. ARP and neighbour discovery for
 * the device's own addresses towards the router, a router solicitation and DHCP
 * from linkd alone. Every shape is fixed, every kind is rate-limited, and with
 * no facts of the device set nothing of it is admitted.
 *
 * vpn/egress/linklayer.go is the same in Go, and makes the DHCP templates.
 * Included by gate.c, after enum reason.
 */

/* What init knows of the device; all zero: nothing is admitted. */
struct link_facts {
	__u64 linkd;      /* cgroup id of the only process that may send DHCP and router solicitations; 0: no one */
	__u8 mac[6];      /* the device's own */
	__u8 addr4[4];    /* own; zero: none yet, so no ARP */
	__u8 router4[4];
	__u8 addr6[16];   /* own global address; zero: none yet */
	__u8 local6[16];  /* own link-local address; zero: no IPv6 */
	__u8 router6[16]; /* the router's link-local address; zero: none yet, so no ND */
	__u8 reserved[2];
};

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, F_RDONLY_PROG);
	__type(key, __u32);
	__type(value, struct link_facts);
} link_facts SEC(".maps");

/* Outgoing DHCP is one of three messages, of one size. A frame is compared in
 * chunks: 342 = 6 * 57 bytes, each an entry of 64. */
enum { DHCP_DISCOVER, DHCP_SELECT, DHCP_RENEW, DHCP_MESSAGES };
#define DHCP_FRAME 342
#define DHCP_CHUNK 57
#define DHCP_CHUNKS 6

struct dhcp_chunk {
	__u64 value[8];
	__u64 mask[8]; /* a zero bit is not compared */
};

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, DHCP_MESSAGES * DHCP_CHUNKS);
	__uint(map_flags, F_RDONLY_PROG);
	__type(key, __u32);
	__type(value, struct dhcp_chunk);
} link_dhcp SEC(".maps");

/* Token buckets, one per kind and direction, as theoretical arrival times (GCRA,
 * ITU-T I.371): one word each, so that one compare-and-swap takes a token. */
enum { LINK_ARP, LINK_ND, LINK_DHCP, LINK_KINDS };

/* What is remembered, one word an entry: the buckets by direction and kind (ns),
 * until when a DHCP reply is expected (ns), and the number of the last request, as
 * on the wire. Entries, not a struct: egressd holds no CAP_PERFMON, and then the
 * verifier allows no variable offset that two paths computed. */
enum { STATE_UNTIL = 2 * LINK_KINDS, STATE_XID, STATES };

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, STATES);
	__type(key, __u32);
	__type(value, __u64);
} link_state SEC(".maps");

/* Keep in step with egress.LinkInterval and its neighbours. */
#define LINK_INTERVAL 250000000ULL   /* four a second … */
#define LINK_BURST 8                 /* … after eight at once */
#define DHCP_INTERVAL 1000000000ULL  /* outgoing DHCP: one a second … */
#define DHCP_BURST 4                 /* … after four at once */
#define DHCP_EXPECTED 10000000000ULL /* how long a reply is expected */

/* Comparisons of n bytes, unrolled: macros, because a function is unrolled before
 * it is inlined, when n is not known yet, and a loop over two paths' pointers needs
 * CAP_PERFMON, which egressd does not hold. */
#define EACH(n, a, term)                                \
	({                                              \
		const __u8 *a_ = (a);                   \
		__u8 any_ = 0;                          \
		_Pragma("unroll") for (int i_ = 0; i_ < (n); i_++) \
			any_ |= (term);                 \
		!any_;                                  \
	})
#define zero(a, n) EACH(n, a, a_[i_])
#define filled(a, with, n) EACH(n, a, a_[i_] ^ (with))
#define same(a, b, n)                                   \
	({                                              \
		const __u8 *b_ = (b);                   \
		EACH(n, a, a_[i_] ^ b_[i_]);            \
	})

/* Functions of their own: inlined into one, they take more stack than there is, and
 * spill numbers where pointers were, which again needs CAP_PERFMON. */
#define APART static __attribute__((noinline))

APART int same16(const __u8 *a, const __u8 *b)
{
	return same(a, b, 16);
}

APART int same6(const __u8 *a, const __u8 *b)
{
	return same(a, b, 6);
}

APART int zero16(const __u8 *a)
{
	return zero(a, 16);
}

/* A token, or not. Two CPUs that want the last one at once: one of them gets it. */
INLINE int take(int kind, int dir, __u64 now)
{
	__u32 bucket = dir * LINK_KINDS + kind;
	__u64 *word = bpf_map_lookup_elem(&link_state, &bucket);
	__u64 interval = kind == LINK_DHCP && dir == DIR_EGRESS ? DHCP_INTERVAL : LINK_INTERVAL;
	__u64 room = interval * ((kind == LINK_DHCP && dir == DIR_EGRESS ? DHCP_BURST : LINK_BURST) - 1);

	if (!word)
		return 0;
	__u64 before = *word;
	__u64 arrival = before > now ? before : now;

	if (arrival - now > room)
		return 0;
	return __sync_val_compare_and_swap(word, before, arrival + interval) == before;
}

/* Destination and source of the Ethernet header. */
struct ether {
	__u8 dst[6];
	__u8 src[6];
};

struct arp {
	__u8 head[8]; /* hardware, protocol, lengths, operation */
	__u8 sha[6];
	__u8 spa[4];
	__u8 tha[6];
	__u8 tpa[4];
	__u8 padding[18];
};
#define ARP_LEN 28

APART int arp(struct __sk_buff *skb, int dir, const struct link_facts *f, const struct ether *e)
{
	struct arp a = {};

	if (zero(f->addr4, 4) || zero(f->router4, 4))
		return R_ARP;
	/* Padded to Ethernet's minimum when it comes, by zeros; bare when it goes. */
	if (skb->len == ETH_LEN + ARP_LEN) {
		if (bpf_skb_load_bytes(skb, ETH_LEN, &a, ARP_LEN))
			return R_ARP;
	} else if (dir == DIR_INGRESS && skb->len == ETH_LEN + sizeof(a)) {
		if (bpf_skb_load_bytes(skb, ETH_LEN, &a, sizeof(a)) || !zero(a.padding, sizeof(a.padding)))
			return R_ARP;
	} else {
		return R_ARP;
	}
	if (a.head[0] != 0 || a.head[1] != 1 || a.head[2] != 8 || a.head[3] != 0 || a.head[4] != 6 || a.head[5] != 4 || a.head[6] != 0)
		return R_ARP;
	int request = a.head[7] == 1;

	if (!request && a.head[7] != 2)
		return R_ARP;
	int broadcast = filled(e->dst, 0xff, 6);

	if (dir == DIR_EGRESS) {
		if (!same6(a.sha, f->mac) || !same(a.spa, f->addr4, 4) || !same(a.tpa, f->router4, 4))
			return R_ARP;
		if (request)
			return zero(a.tha, 6) && (broadcast || !(e->dst[0] & 1)) ? ADMITTED : R_ARP;
		return same6(a.tha, e->dst) && !(e->dst[0] & 1) ? ADMITTED : R_ARP;
	}
	if (!same6(a.sha, e->src) || !same(a.spa, f->router4, 4) || !same(a.tpa, f->addr4, 4))
		return R_ARP;
	if (request)
		return (broadcast || same6(e->dst, f->mac)) && (zero(a.tha, 6) || same6(a.tha, f->mac)) ? ADMITTED : R_ARP;
	return same6(e->dst, f->mac) && same6(a.tha, f->mac) ? ADMITTED : R_ARP;
}

struct nd {
	__u8 type;
	__u8 code;
	__u8 checksum[2]; /* the receiving kernel's to check */
	__u8 flags[4];
	__u8 target[16];
	__u8 option[8]; /* type, length in units of 8, link-layer address */
};
#define ND_BARE 24 /* without the option */
#define RS_LEN 16

enum { RS = 133, RA = 134, NS = 135, NA = 136 };

/* One of the device's own two addresses. */
INLINE int own6(const struct link_facts *f, const __u8 *a)
{
	return same16(a, f->local6) || (!zero16(f->addr6) && same16(a, f->addr6));
}

/* The solicited-node group of an address (RFC 4291 2.7.1) and its Ethernet group. */
INLINE int solicited(const __u8 *group, const __u8 *a)
{
	return group[0] == 0xff && group[1] == 2 && zero(group + 2, 9) && group[11] == 1 && group[12] == 0xff && same(group + 13, a + 13, 3);
}

INLINE int solicited_mac(const __u8 *mac, const __u8 *a)
{
	return mac[0] == 0x33 && mac[1] == 0x33 && mac[2] == 0xff && same(mac + 3, a + 13, 3);
}

/* ff02::1 or ff02::2 and the Ethernet group. */
INLINE int all(const __u8 *group, const __u8 *mac, __u8 which)
{
	return group[0] == 0xff && group[1] == 2 && zero(group + 2, 13) && group[15] == which &&
	       mac[0] == 0x33 && mac[1] == 0x33 && zero(mac + 2, 3) && mac[5] == which;
}

APART int nd(struct __sk_buff *skb, int dir, const struct link_facts *f, const struct ether *e)
{
	__u8 head[8], src[16], dst[16];
	struct nd n = {};

	if (zero16(f->local6) || skb->len < ETH_LEN + IPV6_LEN + 8)
		return R_ND;
	if (bpf_skb_load_bytes(skb, ETH_LEN, head, 8) || bpf_skb_load_bytes(skb, ETH_LEN + 8, src, 16) || bpf_skb_load_bytes(skb, ETH_LEN + 24, dst, 16))
		return R_ND;
	/* Hop limit 255: it comes from this link. */
	if (ETH_LEN + IPV6_LEN + (head[4] << 8 | head[5]) != skb->len || head[7] != 255)
		return R_ND;
	if (dir == DIR_EGRESS && (head[0] != 0x60 || !zero(head + 1, 3)))
		return R_ND;
	__u32 length = skb->len - ETH_LEN - IPV6_LEN;

	/* The first 8 bytes are in every type; an RS has 16, NS and NA 24 or 32. */
	if (length == sizeof(n)) {
		if (bpf_skb_load_bytes(skb, ETH_LEN + IPV6_LEN, &n, sizeof(n)))
			return R_ND;
	} else if (length == ND_BARE) {
		if (bpf_skb_load_bytes(skb, ETH_LEN + IPV6_LEN, &n, ND_BARE))
			return R_ND;
	} else if (length == RS_LEN) {
		if (bpf_skb_load_bytes(skb, ETH_LEN + IPV6_LEN, &n, RS_LEN))
			return R_ND;
	} else if (bpf_skb_load_bytes(skb, ETH_LEN + IPV6_LEN, &n, 8)) {
		return R_ND;
	}
	if (n.code != 0)
		return R_ND;
	/* The source's link address, so that the router need not ask for it, stands where
	 * another type has its target. */
	if (n.type == RS)
		return dir == DIR_EGRESS && length == RS_LEN && zero(n.flags, 4) && n.target[0] == 1 && n.target[1] == 1 &&
		       same6(n.target + 2, f->mac) && same16(src, f->local6) && all(dst, e->dst, 2) ? ADMITTED : R_ND;
	if (n.type == RA) {
		if (dir == DIR_EGRESS || f->linkd == 0 || length < 16 || length % 8)
			return R_ND;
		if (src[0] != 0xfe || (src[1] & 0xc0) != 0x80 || (!zero16(f->router6) && !same16(src, f->router6)))
			return R_ND;
		return all(dst, e->dst, 1) || (same16(dst, f->local6) && same6(e->dst, f->mac)) ? ADMITTED : R_ND;
	}
	if (zero16(f->router6) || (length != sizeof(n) && length != ND_BARE))
		return R_ND;
	int option = length == sizeof(n);

	if (option && (n.option[0] != (n.type == NS ? 1 : 2) || n.option[1] != 1))
		return R_ND;
	if (dir == DIR_EGRESS) {
		if (option && !same6(n.option + 2, f->mac))
			return R_ND;
		if (n.type == NS) {
			if (!option || !zero(n.flags, 4) || !own6(f, src) || !same16(n.target, f->router6))
				return R_ND;
			return (solicited(dst, f->router6) && solicited_mac(e->dst, f->router6)) || (same16(dst, f->router6) && !(e->dst[0] & 1)) ? ADMITTED : R_ND;
		}
		/* Solicited; override goes with the option, as this kernel answers. */
		if (n.flags[0] != (option ? 0x60 : 0x40) || !zero(n.flags + 1, 3))
			return R_ND;
		return own6(f, src) && same16(src, n.target) && same16(dst, f->router6) && !(e->dst[0] & 1) ? ADMITTED : R_ND;
	}
	if (!same16(src, f->router6))
		return R_ND;
	if (n.type == NS) {
		if (!zero(n.flags, 4) || !own6(f, n.target))
			return R_ND;
		return (solicited(dst, n.target) && solicited_mac(e->dst, n.target)) || (same16(dst, n.target) && same6(e->dst, f->mac)) ? ADMITTED : R_ND;
	}
	if (!(n.flags[0] & 0x40) || (n.flags[0] & 0x1f) || !zero(n.flags + 1, 3))
		return R_ND;
	return same16(n.target, f->router6) && own6(f, dst) && same6(e->dst, f->mac) ? ADMITTED : R_ND;
}

#define DHCP_AT (ETH_LEN + IPV4_LEN + 8)
#define DHCP_TYPE_AT 284 /* the value of option 53, the first one */
#define DHCP_CIADDR_AT 54

APART int dhcp_out(struct __sk_buff *skb, __u64 now)
{
	__u8 type, ciaddr[4];
	__u32 xid;
	__u64 message;

	if (skb->len != DHCP_FRAME)
		return R_DHCP;
	if (bpf_skb_load_bytes(skb, DHCP_TYPE_AT, &type, 1) || bpf_skb_load_bytes(skb, DHCP_CIADDR_AT, ciaddr, 4) || bpf_skb_load_bytes(skb, DHCP_AT + 4, &xid, 4))
		return R_DHCP;
	message = type == 1 ? DHCP_DISCOVER : zero(ciaddr, 4) ? DHCP_SELECT : DHCP_RENEW;
	__u64 difference = 0, any = 0, words[8] = {}; /* the last 7 bytes stay zero */

	/* Not unrolled: the words have one place on the stack. */
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < DHCP_CHUNKS; i++) {
		__u32 index = message * DHCP_CHUNKS + i;
		struct dhcp_chunk *c = bpf_map_lookup_elem(&link_dhcp, &index);

		if (!c || bpf_skb_load_bytes(skb, i * DHCP_CHUNK, words, DHCP_CHUNK))
			return R_DHCP;
#pragma unroll
		for (int j = 0; j < 8; j++) {
			difference |= (words[j] ^ c->value[j]) & c->mask[j];
			any |= c->mask[j];
		}
	}
	/* An empty template, as that of a renewal without an address, admits nothing. */
	if (difference || !any)
		return R_DHCP;
	__u32 until_at = STATE_UNTIL, xid_at = STATE_XID;
	__u64 *until = bpf_map_lookup_elem(&link_state, &until_at);
	__u64 *expected = bpf_map_lookup_elem(&link_state, &xid_at);

	if (!until || !expected)
		return R_DHCP;
	if (!take(LINK_DHCP, DIR_EGRESS, now))
		return R_LINK_RATE;
	*expected = xid;
	*until = now + DHCP_EXPECTED;
	return ADMITTED;
}

APART int dhcp_in(struct __sk_buff *skb, const struct link_facts *f, const struct ether *e, __u64 now)
{
	__u8 udp[8], dst[4], src[4], head[4], chaddr[6], magic[4];
	__u32 xid;

	if (bpf_skb_load_bytes(skb, ETH_LEN + 12, src, 4) || bpf_skb_load_bytes(skb, ETH_LEN + 16, dst, 4) || bpf_skb_load_bytes(skb, ETH_LEN + IPV4_LEN, udp, 8))
		return R_DHCP;
	if (bpf_skb_load_bytes(skb, DHCP_AT, head, 4) || bpf_skb_load_bytes(skb, DHCP_AT + 4, &xid, 4) || bpf_skb_load_bytes(skb, DHCP_AT + 28, chaddr, 6) ||
	    bpf_skb_load_bytes(skb, DHCP_AT + 236, magic, 4))
		return R_DHCP;
	if (ETH_LEN + IPV4_LEN + (udp[4] << 8 | udp[5]) != skb->len || src[0] == 0 || src[0] == 127 || src[0] >= 224)
		return R_DHCP;
	if (!(filled(e->dst, 0xff, 6) || same6(e->dst, f->mac)) || !(filled(dst, 0xff, 4) || (!zero(f->addr4, 4) && same(dst, f->addr4, 4))))
		return R_DHCP;
	if (head[0] != 2 || head[1] != 1 || head[2] != 6 || !same6(chaddr, f->mac) || magic[0] != 99 || magic[1] != 130 || magic[2] != 83 || magic[3] != 99)
		return R_DHCP;
	__u32 until_at = STATE_UNTIL, xid_at = STATE_XID;
	__u64 *until = bpf_map_lookup_elem(&link_state, &until_at);
	__u64 *expected = bpf_map_lookup_elem(&link_state, &xid_at);

	if (!until || !expected || now >= *until || xid != *expected)
		return R_DHCP;
	return take(LINK_DHCP, DIR_INGRESS, now) ? ADMITTED : R_LINK_RATE;
}

/*
 * link_decide decides on a frame of one kind: LINK_ARP for EtherType 0x0806,
 * LINK_ND for ICMPv6 type 133 to 136 right behind a checked IPv6 header, LINK_DHCP
 * for UDP behind a checked IPv4 header, from 68 to 67 when it goes and the other
 * way when it comes, that no class admits.
 */
APART int link_decide(struct __sk_buff *skb, int dir, int kind)
{
	int refused = kind == LINK_ARP ? R_ARP : kind == LINK_ND ? R_ND : R_DHCP;
	__u32 index = 0;
	struct link_facts *f = bpf_map_lookup_elem(&link_facts, &index);
	struct ether e;
	int reason;

	if (!f || bpf_skb_load_bytes(skb, 0, &e, sizeof(e)))
		return refused;
	if (zero(f->mac, 6) || (dir == DIR_EGRESS ? !same6(e.src, f->mac) : (e.src[0] & 1) || same6(e.src, f->mac)))
		return refused;
	__u64 now = bpf_ktime_get_ns();
	__u8 type = 0;

	if (kind == LINK_ND && bpf_skb_load_bytes(skb, ETH_LEN + IPV6_LEN, &type, 1))
		return refused;
	if (dir == DIR_EGRESS) {
		if (skb->mark)
			return R_MARK;
		/* ARP and the answers of ND are the kernel's own; a wish of linkd's is linkd's. */
		if ((kind == LINK_DHCP || type == RS) && (f->linkd == 0 || bpf_skb_cgroup_id(skb) != f->linkd))
			return R_CGROUP;
	}
	if (kind == LINK_DHCP)
		return dir == DIR_EGRESS ? dhcp_out(skb, now) : f->linkd ? dhcp_in(skb, f, &e, now) : R_DHCP;
	reason = kind == LINK_ARP ? arp(skb, dir, f, &e) : nd(skb, dir, f, &e);
	if (reason != ADMITTED)
		return reason;
	return take(kind, dir, now) ? ADMITTED : R_LINK_RATE;
}
