/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What the gate's two forms (gate.c, closed.c) say of a frame, and where they count it.
 */
#ifndef REMPART_REASONS_H
#define REMPART_REASONS_H

#include "rempart.h"

/* Keep in step with egress.Reason. */
enum reason {
	ADMITTED,
	R_SHORT,       /* ends before a header does */
	R_VLAN,        /* 802.1Q or 802.1ad tag, in the frame or offloaded */
	R_ARP,         /* RFC 826 beyond the link-layer minimum */
	R_ETHERTYPE,   /* neither IPv4 nor IPv6 */
	R_IP_HEADER,   /* version or length fields disagree with the frame */
	R_IP_OPTIONS,  /* RFC 791 options: source routes, malformed; outgoing: any */
	R_FRAGMENT,    /* a part of a datagram that does not fit the rest, or says too little */
	R_PROTOCOL,    /* neither UDP nor TCP */
	R_L4_LENGTH,   /* UDP length or TCP data offset disagree with the datagram */
	R_REMOTE,      /* a remote that a responder class does not talk to (multicast, …) */
	R_CLASS,       /* no class has this remote, protocol and port */
	R_MARK,        /* the sender set a mark (SO_MARK) */
	R_CGROUP,      /* a process other than the class's own */
	R_ND,          /* RFC 4861 beyond the link-layer minimum */
	R_DHCP,        /* RFC 2131 beyond the link-layer minimum */
	R_LINK_RATE,   /* more of the link-layer minimum than its rate */
	R_EXTENSION,   /* RFC 8200 extension headers: order, repetition, routing, malformed; outgoing: any but fragment */
	R_NO_FIRST,    /* a later fragment of no datagram that was admitted just now */
	R_CLOSED,      /* nothing is admitted in this state: the frame was not judged */
	REASONS = 32,
};

enum { DIR_EGRESS, DIR_INGRESS };
/* Frames by direction and reason. A place for each processor, not a per-CPU map: that
 * needs a key on the stack, and the first write to a place on the stack is a barrier
 * of some 15 ns in a program that is loaded without CAP_PERFMON. Two processors that
 * share a place may lose a count. */
#define PLACES 64
struct {
	__u64 n[PLACES][2 * REASONS];
} counters SEC(".data.counters");

INLINE void count(int dir, __u32 reason)
{
	counters.n[bpf_get_smp_processor_id() % PLACES][dir * REASONS + reason % REASONS]++;
}

#endif
