/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The guard for kernels that run no BPF LSM programs. It has two kinds of
 * programs:
 *
 *   raw tracepoints   cannot refuse a call, they can only kill the caller. The
 *                     call itself still runs: its caller is dead when it would
 *                     have used the result.
 *   cgroup programs   refuse: inet sockets in init's own namespace, packets
 *                     through a device that init did not name, and the options
 *                     of packet and XDP sockets.
 *
 * A kill is worth what the result is worth to others than the caller. That is why
 * taking and sharing descriptors across processes is killed too. What remains is a
 * thread of the same process that was inside a call before the kill and passes the
 * new descriptor on from there (sendmmsg with SCM_RIGHTS): docs/known-limits.md.
 */
#include "handset.h"

#define SIGKILL 9

/* Keep in step with guard.calls. */
enum call {
	CALL_FAMILY,   /* a socket of a family that is no one's business */
	CALL_HERE,     /* a socket in init's own namespace */
	CALL_COMPAT,   /* a 32-bit or x32 system call: other numbers */
	CALL_URING,    /* io_uring_setup: calls that no tracepoint sees */
	CALL_BPF,
	CALL_GETFD,    /* pidfd_getfd: a descriptor of a dying process */
	CALL_SHARE,    /* two processes with one table of descriptors */
	CALL_SETNS,    /* entering init's own namespace */
	CALL_INET,     /* refused, not killed: an inet socket in init's own namespace */
	CALL_OPTION,   /* refused, not killed: an option of a packet or XDP socket */
	CALL_DEVICE,   /* dropped: a packet through a device that init did not name */
	CALLS = 16,
};
/* FAILED: the kernel did not take the signal. */
enum outcome { TRUSTED, ALLOWED, REFUSED, FAILED, OUTCOMES };

/* What the loader knows of this machine, read-only once loaded. */
volatile const __u32 nr_socket = 0;
volatile const __u32 nr_socketpair = 0;
volatile const __u32 nr_bpf = 0;
volatile const __u32 nr_pidfd_getfd = 0;
volatile const __u32 nr_setns = 0;
volatile const __u32 nr_uring_setup = 0;
volatile const __u32 on_arm64 = 0;
volatile const __u64 own_netns = 0; /* cookie of init's network namespace */

struct {
	__uint(type, MAP_PERCPU_ARRAY);
	__uint(max_entries, CALLS * OUTCOMES);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

struct device {
	__u64 netns; /* cookie */
	__u64 ifindex;
};

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 64); /* guard.MaxDevices */
	__uint(map_flags, F_RDONLY_PROG);
	__type(key, struct device);
	__type(value, __u32);
} devices SEC(".maps");

INLINE void count(enum call call, enum outcome outcome)
{
	__u32 index = call * OUTCOMES + outcome;
	__u64 *n = bpf_map_lookup_elem(&seen, &index);

	if (n)
		(*n)++;
}

/* The registers of a caller: struct pt_regs of either architecture. */
struct pt_regs___x86 {
	unsigned long di, si, orig_ax;
} CORE;
struct pt_regs___arm64 {
	__u64 regs[31];
	__u64 orig_x0;
	__s32 syscallno;
} CORE;

INLINE __u64 first_argument(void *regs)
{
	__u64 v = ~0ull;

	if (on_arm64)
		bpf_probe_read_kernel(&v, sizeof(v), &((struct pt_regs___arm64 *)regs)->orig_x0);
	else
		bpf_probe_read_kernel(&v, sizeof(v), &((struct pt_regs___x86 *)regs)->di);
	return v;
}

INLINE __u64 second_argument(void *regs)
{
	__u64 v = ~0ull;

	if (on_arm64)
		bpf_probe_read_kernel(&v, sizeof(v), &((struct pt_regs___arm64 *)regs)->regs[1]);
	else
		bpf_probe_read_kernel(&v, sizeof(v), &((struct pt_regs___x86 *)regs)->si);
	return v;
}

INLINE __u32 number(void *regs)
{
	__u64 v = ~0ull;

	if (on_arm64) {
		__u32 n = ~0u;

		bpf_probe_read_kernel(&n, sizeof(n), &((struct pt_regs___arm64 *)regs)->syscallno);
		return n;
	}
	bpf_probe_read_kernel(&v, sizeof(v), &((struct pt_regs___x86 *)regs)->orig_ax);
	return v;
}

#define TS_COMPAT 2          /* arch/x86: int 0x80 and 32-bit sysenter and syscall */
#define TIF_32BIT (1ul << 22) /* arch/arm64 */
#define X32_BIT 0x40000000l

INLINE int foreign(struct task_struct *task, long id)
{
	if (on_arm64)
		return (task->thread_info.flags & TIF_32BIT) != 0;
	return (task->thread_info.status & TS_COMPAT) || (id > 0 && (id & X32_BIT));
}

INLINE int in_own_netns(struct task_struct *task)
{
	struct nsproxy *ns = task->nsproxy;

	return ns && ns->net_ns->net_cookie == own_netns;
}

/* Before the count of refusals goes up the signal is on its way to every thread. */
INLINE void kill_caller(struct task_struct *task, enum call call)
{
	if (supervisor(task)) {
		count(call, TRUSTED);
		return;
	}
	if (!in_handset())
		return;
	/* -EBUSY: this processor's last signal is not out yet. It goes out by an
	 * interrupt, which is not masked here. */
	for (int i = 0; i < 8; i++) {
		if (bpf_send_signal(SIGKILL) == 0) {
			count(call, REFUSED);
			return;
		}
	}
	count(call, FAILED);
}

#define AF_UNSPEC 0
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define AF_NETLINK 16
#define AF_ALG 38

#define SOCK_TYPE_MASK 15
#define SOCK_PACKET 10

/* 0 where the family is allowed. The kernel reads it as an int. */
INLINE int family_refused(struct task_struct *task, int family, int type, enum call *call)
{
	*call = CALL_FAMILY;
	switch (family) {
	case AF_INET: /* calls_inet answers them with an error */
		/* Linux 2.0's name of a packet socket: the kernel still makes one. */
		return (type & SOCK_TYPE_MASK) == SOCK_PACKET;
	case AF_UNSPEC: /* no family has it: an error */
	case AF_UNIX:
	case AF_INET6:
	case AF_ALG: /* the kernel's ciphers, no way out */
		return 0;
	case AF_NETLINK:
		/* From in there a new device could be moved to where sockets are. */
		*call = CALL_HERE;
		return in_own_netns(task);
	}
	return 1;
}

/* Every system call of the machine passes here: first what rules nearly all out. */
SEC("raw_tracepoint/sys_enter")
int calls_enter(__u64 *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	long id = ctx[1];
	enum call call;

	if (foreign(task, id)) {
		call = CALL_COMPAT;
	} else if (id == nr_socket || id == nr_socketpair) {
		void *regs = (void *)ctx[0];

		if (!family_refused(task, (int)first_argument(regs), (int)second_argument(regs), &call))
			return 0;
	} else if (id == nr_bpf) {
		call = CALL_BPF;
	} else if (id == nr_uring_setup) {
		call = CALL_URING;
	} else if (id == nr_pidfd_getfd) {
		call = CALL_GETFD;
	} else {
		return 0;
	}
	kill_caller(task, call);
	return 0;
}

/* Which namespace setns names is known when it has been entered, and only the
 * thread that entered is in it. */
SEC("raw_tracepoint/sys_exit")
int calls_exit(__u64 *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();

	if (!in_own_netns(task) || number((void *)ctx[0]) != nr_setns || (long)ctx[1] != 0)
		return 0;
	kill_caller(task, CALL_SETNS);
	return 0;
}

/* A child process with its parent's table of descriptors: what one is killed for
 * the other would hold. The parent dies before the child's first instruction. */
SEC("raw_tracepoint/sched_process_fork")
int calls_fork(__u64 *ctx)
{
	struct task_struct *parent = bpf_get_current_task_btf();
	struct task_struct *child = (void *)ctx[1];
	struct files_struct *files = 0;
	int tgid = 0;

	if (bpf_probe_read_kernel(&files, sizeof(files), &child->files) ||
	    bpf_probe_read_kernel(&tgid, sizeof(tgid), &child->tgid))
		return 0;
	if (!files || files != parent->files || tgid == parent->tgid)
		return 0;
	kill_caller(parent, CALL_SHARE);
	return 0;
}

/* Runs for every inet socket that a process of the cgroup makes, also for those of
 * supervisors: none of them needs one there. 1 allows, 0 is EPERM. */
SEC("cgroup/sock_create")
int calls_inet(void *sock)
{
	if (bpf_get_netns_cookie(sock) != own_netns)
		return 1;
	count(CALL_INET, REFUSED);
	return 0;
}

struct sockopt {
	__u64 sk, optval, optval_end;
	__s32 level, optname, optlen;
};
#define SOL_PACKET 263
#define SOL_XDP 283

/* Should a packet socket be there after all, it must not pass the gate by:
 * PACKET_QDISC_BYPASS and the rings of AF_XDP are options. */
SEC("cgroup/setsockopt")
int calls_option(struct sockopt *option)
{
	if (option->level == SOL_PACKET || option->level == SOL_XDP) {
		count(CALL_OPTION, REFUSED);
		return 0;
	}
	option->optlen = 0; /* the kernel takes the caller's value as it is */
	return 1;
}

/* The leading fields of the UAPI context, up to the two that are read. */
struct packet {
	__u32 before[10];
	__u32 ifindex; /* offset 40: the device that it leaves through */
	__u32 between[31];
	void *sk; /* offset 168 */
};
_Static_assert(__builtin_offsetof(struct packet, sk) == 168, "struct __sk_buff");

typedef struct {
	struct net *net;
} possible_net_t;
struct sock_common {
	possible_net_t skc_net;
} CORE;
#define BYTE_OFFSET 0

/* A device that appears while running has a number that init did not name. The
 * packet may be a whole GSO train: it is not cut yet. 1 passes, 0 drops. */
SEC("cgroup_skb/egress")
int calls_device(struct packet *skb)
{
	struct device key = { .ifindex = skb->ifindex };
	struct net *net = 0;
	__u8 head[64];
	void *sk = skb->sk;

	/* Arithmetic on a socket's pointer is not allowed here, so its head is
	 * copied and the field taken from the copy. */
	if (sk && !bpf_probe_read_kernel(head, sizeof(head), sk)) {
		__u64 at = __builtin_preserve_field_info(((struct sock_common *)0)->skc_net, BYTE_OFFSET);

		net = *(struct net **)(head + at);
	}
	if (net && !bpf_probe_read_kernel(&key.netns, sizeof(key.netns), &net->net_cookie) &&
	    bpf_map_lookup_elem(&devices, &key))
		return 1;
	count(CALL_DEVICE, REFUSED);
	return 0;
}

char _license[] SEC("license") = "GPL";
