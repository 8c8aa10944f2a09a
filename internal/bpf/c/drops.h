/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The drop record: the newest samples of what was refused, for a person who asks
 * why. It never blocks, wakes no one and is bounded: of each reason of a program a
 * processor records the first DROP_BURST in a second and only counts the others.
 *
 * vpn/enforce makes the three maps once for all programs that share them, closes
 * them to processes, and reads them. egress.Sample is a sample in Go.
 */
#ifndef REMPART_DROPS_H
#define REMPART_DROPS_H

#include "rempart.h"

#define DROP_SAMPLES 1024
#define DROP_BURST 32
#define DROP_REASONS 32
#define DROP_PROGRAMS 4

enum drop_program { DROP_GATE = 1, DROP_LEVELS, DROP_FLOOR };

struct drop_sample {
	__u64 seq;     /* from 1; 0: never written */
	__u64 time_ns; /* CLOCK_MONOTONIC, to a tick of the kernel */
	__u64 cgroup;  /* id of the sender's or receiver's cgroup, 0: unknown */
	__u32 ifindex; /* 0: no device yet */
	__u8 program;
	__u8 direction; /* 0 egress, 1 ingress */
	__u8 reason;    /* of that program */
	__u8 family;    /* 4, 6, 0: neither */
	__u8 proto;
	__u8 pad[3];
	__u16 sport; /* network order */
	__u16 dport;
	__u8 src[16]; /* IPv4 in the first four bytes */
	__u8 dst[16];
};
_Static_assert(sizeof(struct drop_sample) == 72, "egress.SampleSize");

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, DROP_SAMPLES);
	__type(key, __u32);
	__type(value, struct drop_sample);
} drop_record SEC(".maps");

/* How many samples have been given a place. */
struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} drop_head SEC(".maps");

struct drop_limit {
	__u64 second;
	__u64 seen;     /* in this second */
	__u64 left_out; /* since the map was made */
};

struct {
	__uint(type, MAP_PERCPU_ARRAY);
	__uint(max_entries, DROP_PROGRAMS * DROP_REASONS);
	__type(key, __u32);
	__type(value, struct drop_limit);
} drop_state SEC(".maps");

/* A place that is being written. */
#define DROP_BUSY (~0ull)

/* Records *s, whose seq and time_ns are filled in here. For the path of a drop
 * only: it costs some tens of nanoseconds. */
INLINE void record_drop(struct drop_sample *s)
{
	__u32 index = (s->program % DROP_PROGRAMS) * DROP_REASONS + s->reason % DROP_REASONS;
	struct drop_limit *limit = bpf_map_lookup_elem(&drop_state, &index);
	__u32 zero = 0;

	if (!limit)
		return;
	s->time_ns = bpf_ktime_get_coarse_ns();
	__u64 second = s->time_ns / 1000000000;

	/* An interrupt between the two may record a few more or fewer. */
	if (limit->second != second) {
		limit->second = second;
		limit->seen = 0;
	}
	if (__sync_fetch_and_add(&limit->seen, 1) >= DROP_BURST) {
		__sync_fetch_and_add(&limit->left_out, 1);
		return;
	}
	__u64 *head = bpf_map_lookup_elem(&drop_head, &zero);

	if (!head)
		return;
	s->seq = __sync_fetch_and_add(head, 1) + 1;
	index = (s->seq - 1) % DROP_SAMPLES;
	struct drop_sample *place = bpf_map_lookup_elem(&drop_record, &index);

	if (!place)
		return;
	/* Who is a whole round behind and still writing keeps the place: the reader
	 * misses this number and counts it. */
	__u64 old = place->seq;

	if (old == DROP_BUSY || !__sync_bool_compare_and_swap(&place->seq, old, DROP_BUSY))
		return;
	place->time_ns = s->time_ns;
	place->cgroup = s->cgroup;
	place->ifindex = s->ifindex;
	place->program = s->program;
	place->direction = s->direction;
	place->reason = s->reason;
	place->family = s->family;
	place->proto = s->proto;
	place->sport = s->sport;
	place->dport = s->dport;
	__builtin_memcpy(place->src, s->src, sizeof(s->src));
	__builtin_memcpy(place->dst, s->dst, sizeof(s->dst));
	/* The number last, as an atomic instruction, which is a barrier. */
	__sync_lock_test_and_set(&place->seq, s->seq);
}

/* Fills in what the IP packet at offset `at` says of itself, believing nothing:
 * what is not there stays zero. Of a later fragment the ports are not ports. */
INLINE void sample_packet(struct drop_sample *s, struct __sk_buff *skb, __u32 at)
{
	__u8 h[40];
	__u32 ports;

	if (bpf_skb_load_bytes(skb, at, h, 1))
		return;
	if (h[0] >> 4 == 4 && !bpf_skb_load_bytes(skb, at, h, 20)) {
		s->family = 4;
		s->proto = h[9];
		__builtin_memcpy(s->src, h + 12, 4);
		__builtin_memcpy(s->dst, h + 16, 4);
		if ((h[6] & 0x1f) || h[7])
			return;
		at += (h[0] & 15) * 4;
	} else if (h[0] >> 4 == 6 && !bpf_skb_load_bytes(skb, at, h, 40)) {
		s->family = 6;
		s->proto = h[6];
		__builtin_memcpy(s->src, h + 8, 16);
		__builtin_memcpy(s->dst, h + 24, 16);
		at += 40;
	} else {
		return;
	}
	if ((s->proto == 6 || s->proto == 17) && !bpf_skb_load_bytes(skb, at, &ports, sizeof(ports)))
		__builtin_memcpy(&s->sport, &ports, sizeof(ports));
}

#endif
