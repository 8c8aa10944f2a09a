/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Whom the guard is for and whom it trusts, the same in both of its forms
 * (guard.c, calls.c).
 */
#ifndef REMPART_HANDSET_H
#define REMPART_HANDSET_H

#include "rempart.h"

#define CORE __attribute__((preserve_access_index))

/* The few kernel fields used, found by name in the running kernel's BTF (CO-RE). */
struct net {
	__u64 net_cookie;
} CORE;
struct nsproxy {
	struct net *net_ns;
} CORE;
struct thread_info {
	unsigned long flags;
	__u32 status; /* x86 only */
} CORE;
struct files_struct;
struct task_struct {
	struct thread_info thread_info;
	struct task_struct *group_leader;
	struct nsproxy *nsproxy;
	struct files_struct *files;
	int tgid;
} CORE;

struct {
	__uint(type, MAP_CGROUP_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} handset SEC(".maps");

struct {
	__uint(type, MAP_TASK_STORAGE);
	__uint(map_flags, F_NO_PREALLOC);
	__type(key, __s32);
	__type(value, __u32);
} supervisors SEC(".maps");

/* Threads share their leader's trust; a forked child is another leader. */
INLINE int supervisor(struct task_struct *task)
{
	return bpf_task_storage_get(&supervisors, task->group_leader, 0, 0) != 0;
}

/* 1 below the cgroup, 0 outside, negative: the map is empty, which is before the
 * guard is attached and never after (the map is frozen). */
INLINE int in_handset(void)
{
	return bpf_current_task_under_cgroup(&handset, 0) == 1;
}

#endif
