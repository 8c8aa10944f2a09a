/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The closed gate: what stands on a black device that admits nothing, not even the
 * link-layer minimum. It drops, counts and records every frame, and judges none: no
 * policy is in it that could be wrong, and the kernel checks it in a moment, where it
 * takes tens of milliseconds for gate.c.
 */
#include "rempart.h"
#include "drops.h"
#include "reasons.h"

#define ETH_LEN 14

INLINE int closed(struct __sk_buff *skb, int dir)
{
	struct drop_sample s = {
		.cgroup = bpf_skb_cgroup_id(skb),
		.ifindex = skb->ifindex,
		.program = DROP_GATE,
		.direction = dir,
		.reason = R_CLOSED,
	};
	__u16 ethertype;

	count(dir, R_CLOSED);
	/* Of a tagged frame the record shows no addresses: nothing is read through here. */
	if (!bpf_skb_load_bytes(skb, 12, &ethertype, 2) && (ethertype == BE16(0x0800) || ethertype == BE16(0x86dd)))
		sample_packet(&s, skb, ETH_LEN);
	record_drop(&s);
	return VERDICT_DROP;
}

SEC("classifier/egress")
int rempart_closed_egress(struct __sk_buff *skb)
{
	return closed(skb, DIR_EGRESS);
}

SEC("classifier/ingress")
int rempart_closed_ingress(struct __sk_buff *skb)
{
	return closed(skb, DIR_INGRESS);
}

char _license[] SEC("license") = "GPL";
