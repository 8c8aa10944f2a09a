/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The gate: the last word on a black device. It passes a frame only if the frame
 * belongs to a class in `rules`, and drops and counts everything else. With the
 * map empty it drops everything: deny-all is what the program is before anyone
 * has told it a policy.
 *
 * vpn/egress.Decide is the same decision in Go; the two are compared frame by
 * frame in vpn/enforce. Change both or neither.
 */
#include "rempart.h"

/* Keep in step with egress.Reason. */
enum reason {
	ADMITTED,
	R_SHORT,       /* ends before a header does */
	R_VLAN,        /* 802.1Q or 802.1ad tag, in the frame or offloaded */
	R_ARP,         /* RFC 826 beyond the link-layer minimum */
	R_ETHERTYPE,   /* neither IPv4 nor IPv6 */
	R_IP_HEADER,   /* version or length fields disagree with the frame */
	R_IP_OPTIONS,  /* RFC 791 options */
	R_FRAGMENT,    /* RFC 791: any part of a datagram, or the reserved flag */
	R_PROTOCOL,    /* neither UDP nor TCP; in IPv6 also any extension header, MLD */
	R_L4_LENGTH,   /* UDP length or TCP data offset disagree with the datagram */
	R_REMOTE,      /* a remote that a responder class does not talk to (multicast, …) */
	R_CLASS,       /* no class has this remote, protocol and port */
	R_MARK,        /* the sender set a mark (SO_MARK) */
	R_CGROUP,      /* a process other than the class's own */
	R_ND,          /* RFC 4861 beyond the link-layer minimum */
	R_DHCP,        /* RFC 2131 beyond the link-layer minimum */
	R_LINK_RATE,   /* more of the link-layer minimum than its rate */
	REASONS = 32,
};

enum { DIR_EGRESS, DIR_INGRESS };
enum { KIND_ANY = 0, KIND_V4 = 4, KIND_V6 = 6 };

struct rule_key {
	__u8 addr[16]; /* remote; IPv4 in the first four bytes; zero for KIND_ANY */
	__u16 port;    /* network order: the remote's port; the local port for KIND_ANY */
	__u8 proto;
	__u8 kind;
};

struct rule {
	__u64 cgroup; /* cgroup id of the only process that may send in this class */
};

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 256); /* egress.MaxClasses */
	__uint(map_flags, F_RDONLY_PROG);
	__type(key, struct rule_key);
	__type(value, struct rule);
} rules SEC(".maps");

struct {
	__uint(type, MAP_PERCPU_ARRAY);
	__uint(max_entries, 2 * REASONS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

#define ETH_LEN 14
#define IPV4_LEN 20
#define IPV6_LEN 40
#define UDP 17
#define TCP 6
#define ICMPV6 58

#include "linklayer.h"

struct ports {
	__u16 source;
	__u16 dest;
	__u16 length; /* UDP only */
	__u16 checksum;
};

/* The L4 length rule. Outgoing frames come from our own kernel and must be exact:
 * bytes after the datagram would be a channel no one looks at. Incoming ones may
 * carry Ethernet padding, and UDP shorter than its datagram. */
INLINE int l4_ok(struct __sk_buff *skb, __u32 off, __u32 payload, __u8 proto, int dir, struct ports *p)
{
	if (proto == UDP) {
		__u32 length = BE16(p->length);

		if (length < 8 || length > payload)
			return 0;
		return dir == DIR_INGRESS || length == payload;
	}
	__u8 data_offset;

	if (payload < 20 || bpf_skb_load_bytes(skb, off + 12, &data_offset, 1))
		return 0;
	__u32 header = (data_offset >> 4) * 4;

	return header >= 20 && header <= payload;
}

INLINE enum reason decide(struct __sk_buff *skb, int dir)
{
	struct rule_key key = {};
	struct ports ports;
	__u16 ethertype;
	__u32 l4, payload;

	if (bpf_skb_load_bytes(skb, 12, &ethertype, 2))
		return R_SHORT;
	if (skb->vlan_present || ethertype == BE16(0x8100) || ethertype == BE16(0x88a8))
		return R_VLAN;
	if (ethertype == BE16(0x0806))
		return link_decide(skb, dir, LINK_ARP);

	if (ethertype == BE16(0x0800)) {
		__u8 h[IPV4_LEN];

		if (bpf_skb_load_bytes(skb, ETH_LEN, h, sizeof(h)))
			return R_SHORT;
		if (h[0] >> 4 != 4 || (h[0] & 15) < 5)
			return R_IP_HEADER;
		if ((h[0] & 15) != 5)
			return R_IP_OPTIONS;
		__u32 total = h[2] << 8 | h[3];

		if (total < IPV4_LEN || ETH_LEN + total > skb->len)
			return R_IP_HEADER;
		if (dir == DIR_EGRESS && ETH_LEN + total != skb->len)
			return R_IP_HEADER;
		/* Only "don't fragment" may be set. */
		if ((h[6] & 0xbf) || h[7])
			return R_FRAGMENT;
		key.proto = h[9];
		key.kind = KIND_V4;
		__builtin_memcpy(key.addr, dir == DIR_EGRESS ? h + 16 : h + 12, 4);
		l4 = ETH_LEN + IPV4_LEN;
		payload = total - IPV4_LEN;
	} else if (ethertype == BE16(0x86dd)) {
		__u8 h[IPV6_LEN];

		if (bpf_skb_load_bytes(skb, ETH_LEN, h, sizeof(h)))
			return R_SHORT;
		if (h[0] >> 4 != 6)
			return R_IP_HEADER;
		payload = h[4] << 8 | h[5];
		if (ETH_LEN + IPV6_LEN + payload > skb->len)
			return R_IP_HEADER;
		if (dir == DIR_EGRESS && ETH_LEN + IPV6_LEN + payload != skb->len)
			return R_IP_HEADER;
		key.proto = h[6];
		key.kind = KIND_V6;
		__builtin_memcpy(key.addr, dir == DIR_EGRESS ? h + 24 : h + 8, 16);
		l4 = ETH_LEN + IPV6_LEN;
	} else {
		return R_ETHERTYPE;
	}

	if (key.kind == KIND_V6 && key.proto == ICMPV6) {
		__u8 type;

		if (payload < 1 || bpf_skb_load_bytes(skb, l4, &type, 1) || type < 133 || type > 136)
			return R_PROTOCOL;
		return link_decide(skb, dir, LINK_ND);
	}
	if (key.proto != UDP && key.proto != TCP)
		return R_PROTOCOL;
	if (payload < sizeof(ports) || bpf_skb_load_bytes(skb, l4, &ports, sizeof(ports)))
		return R_L4_LENGTH;
	if (!l4_ok(skb, l4, payload, key.proto, dir, &ports))
		return R_L4_LENGTH;

	key.port = dir == DIR_EGRESS ? ports.dest : ports.source;
	struct rule *rule = bpf_map_lookup_elem(&rules, &key);

	if (!rule) {
		/* A responder's class: known by its own port, whoever the remote is,
		 * but a remote is one host somewhere else. */
		struct rule_key any = {
			.port = dir == DIR_EGRESS ? ports.source : ports.dest,
			.proto = key.proto,
			.kind = KIND_ANY,
		};
		rule = bpf_map_lookup_elem(&rules, &any);
		if (!rule) {
			if (key.kind == KIND_V4 && key.proto == UDP && ports.source == BE16(dir == DIR_EGRESS ? 68 : 67) &&
			    ports.dest == BE16(dir == DIR_EGRESS ? 67 : 68))
				return link_decide(skb, dir, LINK_DHCP);
			return R_CLASS;
		}
		if (key.kind == KIND_V4) {
			if (key.addr[0] == 0 || key.addr[0] == 127 || key.addr[0] >= 224)
				return R_REMOTE;
		} else {
			__u64 high;

			__builtin_memcpy(&high, key.addr, 8);
			if (high == 0 || key.addr[0] == 0xff)
				return R_REMOTE;
		}
	}
	if (dir == DIR_INGRESS)
		return ADMITTED;
	if (skb->mark)
		return R_MARK;
	/* 0 where the frame has no socket: no class has cgroup 0. */
	if (bpf_skb_cgroup_id(skb) != rule->cgroup)
		return R_CGROUP;
	return ADMITTED;
}

INLINE int gate(struct __sk_buff *skb, int dir)
{
	enum reason reason = decide(skb, dir);
	__u32 index = dir * REASONS + reason;
	__u64 *n = bpf_map_lookup_elem(&counters, &index);

	if (n)
		(*n)++;
	return reason == ADMITTED ? VERDICT_PASS : VERDICT_DROP;
}

SEC("classifier/egress")
int rempart_egress(struct __sk_buff *skb)
{
	return gate(skb, DIR_EGRESS);
}

SEC("classifier/ingress")
int rempart_ingress(struct __sk_buff *skb)
{
	return gate(skb, DIR_INGRESS);
}

char _license[] SEC("license") = "GPL";
