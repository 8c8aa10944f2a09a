/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The floor: drops every frame of the device it is attached to. It knows no
 * policy and reads no packet. A frame reaches it only when the gate in front is
 * missing, so its counter above zero after the gate is up is itself news.
 */
#include "rempart.h"

struct {
	__uint(type, MAP_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} floor_drops SEC(".maps");

SEC("classifier")
int rempart_floor(struct __sk_buff *skb)
{
	__u32 zero = 0;
	__u64 *n = bpf_map_lookup_elem(&floor_drops, &zero);

	if (n)
		(*n)++;
	return VERDICT_DROP;
}

char _license[] SEC("license") = "GPL";
