/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What the programs need of the kernel's headers, declared here so that
 * the objects depend on the compiler alone: Debian's 6.1 headers lack TCX, and
 * another machine's headers would be another input to a committed object.
 * Everything is stable user-space ABI (include/uapi/linux/bpf.h).
 */
#ifndef REMPART_BPF_H
#define REMPART_BPF_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef int __s32;
typedef long long __s64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))
/* Verified once, for all arguments, and not for every path that leads to a call: what
 * is called from many places costs the load of a program that much less. */
#define GLOBAL __attribute__((noinline))

/* BTF-defined maps, as libbpf and cilium/ebpf read them. */
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name

/* Byte order: the targets are little endian (amd64, arm64, riscv64). */
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the committed objects are little endian"
#endif
#define BE16(x) ((__u16)__builtin_bswap16((__u16)(x)))
#define BE32(x) ((__u32)__builtin_bswap32((__u32)(x)))

enum {
	MAP_HASH = 1,
	MAP_ARRAY = 2,
	MAP_PERCPU_ARRAY = 6,
	MAP_CGROUP_ARRAY = 8,
	MAP_LRU_HASH = 9,
	MAP_LPM_TRIE = 11,
	MAP_TASK_STORAGE = 29,
};

enum {
	F_NO_PREALLOC = 1u << 0,
	F_RDONLY_PROG = 1u << 7,
};

/* TCX_PASS and TCX_DROP equal TC_ACT_OK and TC_ACT_SHOT, so one program serves
 * both hooks. NEXT (-1, TC_ACT_UNSPEC) is never returned: it would let a later
 * program overrule the gate. */
#define VERDICT_PASS 0
#define VERDICT_DROP 2

/* The leading fields of the UAPI context of tc programs; order and size fixed. */
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex; /* of the device that it is on */
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data; /* the linear part, from the link-layer header on */
	__u32 data_end;
};

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)5;
static __u32 (*const bpf_get_smp_processor_id)(void) = (void *)8;
static long (*const bpf_skb_load_bytes)(const struct __sk_buff *skb, __u32 off, void *to, __u32 len) = (void *)26;
static long (*const bpf_current_task_under_cgroup)(void *map, __u32 index) = (void *)37;
static __u64 (*const bpf_skb_cgroup_id)(struct __sk_buff *skb) = (void *)79;
static __u64 (*const bpf_get_current_cgroup_id)(void) = (void *)80;
static __u64 (*const bpf_skb_ancestor_cgroup_id)(struct __sk_buff *skb, int depth) = (void *)83;
static long (*const bpf_send_signal)(__u32 signal) = (void *)109;
static long (*const bpf_probe_read_kernel)(void *dst, __u32 size, const void *from) = (void *)113;
static __u64 (*const bpf_get_netns_cookie)(void *context) = (void *)122;
static __u64 (*const bpf_get_current_ancestor_cgroup_id)(int depth) = (void *)123;
static void *(*const bpf_task_storage_get)(void *map, void *task, void *value, __u64 flags) = (void *)156;
static void *(*const bpf_get_current_task_btf)(void) = (void *)158;
static __u64 (*const bpf_ktime_get_coarse_ns)(void) = (void *)160;

#endif
