/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * How deep a cgroup lies in the machine's hierarchy. No file tells that inside a
 * cgroup namespace, and the level hooks need it. It is run once, by BPF_PROG_TEST_RUN,
 * whose packet belongs to the caller's cgroup; it is attached nowhere.
 */
#include "rempart.h"

/* Id of the cgroup that is looked for above the caller's. */
volatile const __u64 above = 0;

/* 1 if that cgroup lies at depth `mark` above the caller, or is the caller's. One
 * depth a run: a loop needs CAP_PERFMON, which egressd does not hold. */
SEC("classifier")
int cgroup_depth(struct __sk_buff *skb)
{
	return bpf_skb_ancestor_cgroup_id(skb, skb->mark) == above;
}

char _license[] SEC("license") = "GPL";
