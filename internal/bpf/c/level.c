/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The level hooks: which process of the handset may talk to which network, in both
 * directions (DESIGN.md §2). They stand at the handset's cgroup, so they run for every
 * process and socket of the handset and for no other.
 *
 *   connect, sendmsg   say no at once (EPERM), by the caller's cgroup
 *   socket             UDP and TCP alone, and in the process's own namespace alone
 *   packet             the last word: every packet of an inet socket, by the cgroup
 *                      that made it, whoever holds it now
 *
 * A process is its cgroup and every cgroup below that: it is known by the ancestor at
 * one of the two depths where the handset has processes. With both maps empty
 * everything is refused.
 *
 * vpn/egress.LevelTable decides the same in Go; the two are compared in vpn/enforce.
 */
#include "drops.h"

/* Keep in step with egress.LevelReason. */
enum reason {
	ALLOWED,
	L_PROCESS,   /* no row */
	L_NAMESPACE, /* a socket of another network namespace than the row's */
	L_SOCKET,    /* neither UDP nor TCP, nor raw where the row has that */
	L_NETWORK,   /* an address in no network */
	L_DEVICE,    /* the network's address through another device */
	L_SEND,      /* the rule: no write down */
	L_RECEIVE,   /* the rule: no read up */
	L_LOOPBACK,  /* on lo, from another row */
	L_PACKET,    /* neither IPv4 nor IPv6 */
	REASONS = 32,
};

/* Keep in step with egress.LevelHook. */
enum hook { HOOK_CONNECT, HOOK_SEND, HOOK_SOCKET, HOOK_OUT, HOOK_IN, HOOKS = 8 };

enum { DIR_EGRESS, DIR_INGRESS };
#define REFUSE 0
#define ALLOW 1

/* The leading fields of the UAPI contexts; order and size fixed. */
struct sock_addr {
	__u32 user_family;
	__u32 user_ip4; /* these three in network order */
	__u32 user_ip6[4];
	__u32 user_port;
	__u32 family;
	__u32 type;
	__u32 protocol;
};
struct inet_sock {
	__u32 bound_dev_if;
	__u32 family;
	__u32 type;
	__u32 protocol;
};

/* Depth of the handset's cgroup in the machine's hierarchy. */
volatile const __u32 depth = 0;

struct row {
	__u64 netns; /* cookie */
	__u32 send;  /* a bit per network */
	__u32 receive;
	__u32 raw;
	__u32 number; /* from 1 */
};

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 128); /* egress.MaxLevelRows */
	__uint(map_flags, F_RDONLY_PROG);
	__type(key, __u64); /* cgroup id */
	__type(value, struct row);
} level_rows SEC(".maps");

struct prefix {
	__u32 bits;
	__u32 netns[2];
	__u8 addr[16]; /* IPv4 as ::ffff:a.b.c.d */
};
_Static_assert(sizeof(struct prefix) == 28, "egress.LevelPrefix");

struct network {
	__u32 number;
	__u32 ifindex; /* 0: any device */
};

struct {
	__uint(type, MAP_LPM_TRIE);
	__uint(max_entries, 512); /* egress.MaxLevelPrefixes */
	__uint(map_flags, F_NO_PREALLOC | F_RDONLY_PROG);
	__type(key, struct prefix);
	__type(value, struct network);
} level_nets SEC(".maps");

struct {
	__uint(type, MAP_PERCPU_ARRAY);
	__uint(max_entries, HOOKS * REASONS);
	__type(key, __u32);
	__type(value, __u64);
} level_counts SEC(".maps");

INLINE void count(enum hook hook, enum reason reason)
{
	__u32 index = hook * REASONS + reason;
	__u64 *n = bpf_map_lookup_elem(&level_counts, &index);

	if (n)
		(*n)++;
}

/* 0 where there is no ancestor at that depth: no row has cgroup 0. */
INLINE struct row *row_of_caller(void)
{
	__u64 id = bpf_get_current_ancestor_cgroup_id(depth + 1);
	struct row *r = bpf_map_lookup_elem(&level_rows, &id);

	if (r)
		return r;
	id = bpf_get_current_ancestor_cgroup_id(depth + 2);
	return bpf_map_lookup_elem(&level_rows, &id);
}

/*
 * All that the decision on a packet keeps on its stack. Behind the first store to each
 * place of a stack the verifier puts a barrier, as egressd has no CAP_PERFMON, and every
 * packet pays for it; a helper that fills many places costs one. So the head of the
 * packet is loaded to where the address of an IPv4 one is in its place, over the rest.
 */
struct asked {
	__u64 number; /* of a cgroup, then of a counter */
	/* struct prefix */
	__u64 bits; /* and the low half of netns */
	__u32 netns;
	__u32 addr[4];
};
_Static_assert(__builtin_offsetof(struct asked, addr) - __builtin_offsetof(struct asked, bits) == __builtin_offsetof(struct prefix, addr), "struct prefix");

#define IPV4_HEADER 20 /* ends with the destination */
_Static_assert(__builtin_offsetof(struct asked, addr) + 16 - __builtin_offsetof(struct asked, netns) == IPV4_HEADER, "where the header goes");

INLINE struct row *row_of_socket(struct __sk_buff *skb, struct asked *a)
{
	a->number = bpf_skb_ancestor_cgroup_id(skb, depth + 1);
	struct row *r = bpf_map_lookup_elem(&level_rows, &a->number);

	if (r)
		return r;
	a->number = bpf_skb_ancestor_cgroup_id(skb, depth + 2);
	return bpf_map_lookup_elem(&level_rows, &a->number);
}

/* The network of an address, given as four words. */
INLINE struct network *network_of(__u64 netns, const __u32 *addr)
{
	struct prefix key = { .bits = 64 + 128 };

	__builtin_memcpy(key.netns, &netns, sizeof(netns));
	__builtin_memcpy(key.addr, addr, sizeof(key.addr));
	return bpf_map_lookup_elem(&level_nets, &key);
}

INLINE int mapped(const __u32 *addr)
{
	return !addr[0] && !addr[1] && addr[2] == BE32(0xffff);
}

INLINE int loopback(const __u32 *addr)
{
	if (mapped(addr))
		return (addr[3] & BE32(0xff000000)) == BE32(0x7f000000);
	return !addr[0] && !addr[1] && !addr[2] && addr[3] == BE32(1);
}

INLINE enum reason decide_call(struct sock_addr *ctx, const __u32 *addr)
{
	struct row *r = row_of_caller();

	if (!r)
		return L_PROCESS;
	if (bpf_get_netns_cookie(ctx) != r->netns)
		return L_NAMESPACE;
	if (loopback(addr))
		return ALLOWED;
	struct network *n = network_of(r->netns, addr);

	if (!n)
		return L_NETWORK;
	return r->send >> (n->number & 31) & 1 ? ALLOWED : L_SEND;
}

INLINE int call(struct sock_addr *ctx, enum hook hook, const __u32 *addr)
{
	enum reason reason = decide_call(ctx, addr);

	count(hook, reason);
	if (reason == ALLOWED)
		return ALLOW;
	struct drop_sample s = {
		.cgroup = bpf_get_current_cgroup_id(),
		.program = DROP_LEVELS,
		.reason = reason,
		.family = 6,
		.proto = ctx->protocol,
		.dport = ctx->user_port,
	};

	if (mapped(addr)) {
		s.family = 4;
		__builtin_memcpy(s.dst, addr + 3, 4);
	} else {
		__builtin_memcpy(s.dst, addr, 16);
	}
	record_drop(&s);
	return REFUSE;
}

INLINE int call4(struct sock_addr *ctx, enum hook hook)
{
	__u32 addr[4] = { 0, 0, BE32(0xffff), ctx->user_ip4 };

	return call(ctx, hook, addr);
}

/* An IPv6 socket also sends to IPv4, as ::ffff:a.b.c.d. */
INLINE int call6(struct sock_addr *ctx, enum hook hook)
{
	__u32 addr[4] = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] };

	return call(ctx, hook, addr);
}

SEC("cgroup/connect4")
int level_connect4(struct sock_addr *ctx)
{
	return call4(ctx, HOOK_CONNECT);
}

SEC("cgroup/connect6")
int level_connect6(struct sock_addr *ctx)
{
	return call6(ctx, HOOK_CONNECT);
}

SEC("cgroup/sendmsg4")
int level_sendmsg4(struct sock_addr *ctx)
{
	return call4(ctx, HOOK_SEND);
}

SEC("cgroup/sendmsg6")
int level_sendmsg6(struct sock_addr *ctx)
{
	return call6(ctx, HOOK_SEND);
}

#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_RAW 3
#define TCP 6
#define UDP 17

INLINE enum reason decide_socket(struct inet_sock *ctx)
{
	struct row *r = row_of_caller();

	if (!r)
		return L_PROCESS;
	if (bpf_get_netns_cookie(ctx) != r->netns)
		return L_NAMESPACE;
	if ((ctx->type == SOCK_STREAM && ctx->protocol == TCP) || (ctx->type == SOCK_DGRAM && ctx->protocol == UDP) ||
	    (ctx->type == SOCK_RAW && r->raw))
		return ALLOWED;
	return L_SOCKET;
}

/* Inet sockets alone come here. */
SEC("cgroup/sock_create")
int level_socket(struct inet_sock *ctx)
{
	enum reason reason = decide_socket(ctx);

	count(HOOK_SOCKET, reason);
	if (reason == ALLOWED)
		return ALLOW;
	/* MPTCP's number (262) is no protocol of a packet. */
	struct drop_sample s = {
		.cgroup = bpf_get_current_cgroup_id(),
		.program = DROP_LEVELS,
		.reason = reason,
		.proto = ctx->protocol > 255 ? 0 : ctx->protocol,
	};

	record_drop(&s);
	return REFUSE;
}

#define LOOPBACK_IFINDEX 1
/* Keep in step with egress.LoopbackMark. */
#define LOOPBACK_MARK 0x52470000

INLINE enum reason decide_packet(struct __sk_buff *skb, int dir, struct asked *a)
{
	struct row *r = row_of_socket(skb, a);

	if (!r)
		return L_PROCESS;
	if (skb->ifindex == LOOPBACK_IFINDEX) {
		/* On lo a packet keeps its mark and loses its socket. No sender can
		 * choose the mark: it is set here, behind the socket's own. */
		if (dir == DIR_EGRESS)
			skb->mark = LOOPBACK_MARK | r->number;
		else if (skb->mark != (LOOPBACK_MARK | r->number))
			return L_LOOPBACK;
		return ALLOWED;
	}
	/* What is shorter than this is no packet of either family. */
	if (bpf_skb_load_bytes(skb, 0, &a->netns, IPV4_HEADER))
		return L_PACKET;
	switch (*(__u8 *)&a->netns >> 4) {
	case 4:
		if (dir == DIR_INGRESS) /* the source is in front of the destination */
			a->addr[3] = a->addr[2];
		a->addr[0] = 0;
		a->addr[1] = 0;
		a->addr[2] = BE32(0xffff);
		break;
	case 6:
		if (bpf_skb_load_bytes(skb, dir == DIR_EGRESS ? 24 : 8, a->addr, 16))
			return L_PACKET;
		break;
	default:
		return L_PACKET;
	}
	a->bits = (64 + 128) | r->netns << 32;
	a->netns = r->netns >> 32;
	struct network *n = bpf_map_lookup_elem(&level_nets, &a->bits);

	if (!n)
		return L_NETWORK;
	if (n->ifindex && n->ifindex != skb->ifindex)
		return L_DEVICE;
	if (dir == DIR_EGRESS)
		return r->send >> (n->number & 31) & 1 ? ALLOWED : L_SEND;
	return r->receive >> (n->number & 31) & 1 ? ALLOWED : L_RECEIVE;
}

INLINE int packet(struct __sk_buff *skb, int dir)
{
	struct asked a;
	enum reason reason = decide_packet(skb, dir, &a);

	a.number = (dir == DIR_EGRESS ? HOOK_OUT : HOOK_IN) * REASONS + reason;
	__u64 *n = bpf_map_lookup_elem(&level_counts, &a.number); /* its low half */

	if (n)
		(*n)++;
	if (reason == ALLOWED)
		return ALLOW;
	struct drop_sample s = {
		.cgroup = bpf_skb_cgroup_id(skb),
		.ifindex = skb->ifindex,
		.program = DROP_LEVELS,
		.direction = dir,
		.reason = reason,
	};

	sample_packet(&s, skb, 0);
	record_drop(&s);
	return REFUSE;
}

SEC("cgroup_skb/egress")
int level_egress(struct __sk_buff *skb)
{
	return packet(skb, DIR_EGRESS);
}

SEC("cgroup_skb/ingress")
int level_ingress(struct __sk_buff *skb)
{
	return packet(skb, DIR_INGRESS);
}

char _license[] SEC("license") = "GPL";
