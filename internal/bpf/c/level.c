/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The level hooks: which process of the handset may talk to which network. They
 * stand at the handset's cgroup. Without a table everything is refused.
 */
#include "drops.h"

/* Keep in step with levels.Reason. */
enum reason {
	ALLOWED,
	L_APP,    /* a process that the table does not name */
	REASONS = 32,
};

enum { DIR_EGRESS, DIR_INGRESS };
#define REFUSE 0

INLINE int skb_refuse(struct __sk_buff *skb, int dir, enum reason reason)
{
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
	return skb_refuse(skb, DIR_EGRESS, L_APP);
}

SEC("cgroup_skb/ingress")
int level_ingress(struct __sk_buff *skb)
{
	return skb_refuse(skb, DIR_INGRESS, L_APP);
}

char _license[] SEC("license") = "GPL";
