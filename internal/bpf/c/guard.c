/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The guard: what root inside a handset may not do. tc programs do not see
 * AF_XDP, a packet socket's qdisc bypass, or a device that was made after them;
 * the guard closes the doors to those for every process of the handset's cgroup
 * but the supervisors (init and egressd).
 *
 * It acts only on tasks below the one cgroup in `handset`: on a desk machine the
 * kernel is everyone's. A supervisor is known by task storage that init sets
 * through a pidfd. Unlike a cgroup, a uid or a name, a task cannot move into it,
 * and a child does not inherit it.
 */
#include "handset.h"

#define EPERM 1

struct sock_common {
	unsigned short skc_family;
} CORE;
struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
} CORE;
struct socket {
	struct sock *sk;
} CORE;
struct sk_buff {
	unsigned int len;
	unsigned int data_len;
	unsigned char *data;
} CORE;
struct super_block {
	unsigned long s_magic;
} CORE;
struct inode {
	unsigned short i_mode;
	struct super_block *i_sb;
} CORE;
struct vfsmount {
	struct super_block *mnt_sb;
} CORE;
struct path {
	struct vfsmount *mnt;
} CORE;
struct proc_dir_entry;
struct ctl_table_header;
struct proc_inode {
	struct proc_dir_entry *pde;
	struct ctl_table_header *sysctl;
	struct inode vfs_inode;
} CORE;

/* Keep in step with guard.HookSocket and the others. */
enum hook {
	HOOK_SOCKET_CREATE,
	HOOK_NETLINK_SEND,
	HOOK_FILE_IOCTL,
	HOOK_BPF,
	HOOK_INODE_PERMISSION,
	HOOK_PTRACE,
	HOOK_SETSOCKOPT,
	HOOK_SENDMSG,
	HOOK_MOUNT,
	HOOK_KILL,
	HOOK_MODULE,
	HOOK_PERF,
	HOOK_USERNS,
	HOOK_LOCKDOWN,
	HOOKS = 16,
};
/* A task outside the handset is not counted. */
enum outcome { TRUSTED, ALLOWED, REFUSED, OUTCOMES = 4 };

struct {
	__uint(type, MAP_PERCPU_ARRAY);
	__uint(max_entries, HOOKS * OUTCOMES);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

INLINE void count(enum hook hook, enum outcome outcome)
{
	__u32 index = hook * OUTCOMES + outcome;
	__u64 *n = bpf_map_lookup_elem(&seen, &index);

	if (n)
		(*n)++;
}

/* 1 if the current task is the handset's and must be judged. */
INLINE int judged(enum hook hook)
{
	if (supervisor(bpf_get_current_task_btf())) {
		count(hook, TRUSTED);
		return 0;
	}
	return in_handset();
}

/* An earlier program's refusal needs no care here: the kernel stops at it. */
INLINE int answer(enum hook hook, int refused)
{
	count(hook, refused ? REFUSED : ALLOWED);
	return refused ? -EPERM : 0;
}

#define AF_UNSPEC 0
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define AF_NETLINK 16

/* An allow-list: AF_PACKET and AF_XDP pass the gate by, PF_KEY prints and sets
 * IPsec keys, and no other family (Bluetooth, CAN, vsock, …) is a way out of a
 * handset that the policy knows. */
SEC("lsm/socket_create")
int guard_socket(__u64 *ctx)
{
	int family = (int)ctx[0];
	int kern = (int)ctx[3];

	if (kern || !judged(HOOK_SOCKET_CREATE))
		return 0;
	return answer(HOOK_SOCKET_CREATE, family != AF_UNSPEC && family != AF_UNIX && family != AF_INET &&
						  family != AF_INET6 && family != AF_NETLINK);
}

#define NETLINK_ROUTE 0
#define NETLINK_SOCK_DIAG 4
#define NETLINK_GENERIC 16
#define GENL_ID_CTRL 16
#define SOCK_DIAG_BY_FAMILY 20
#define RTM_BASE 16
#define RTM_NEWLINK 16
#define NLMSG_HDR 16
#define NLM_F_REQUEST_ACK 5

struct nlmsghdr {
	__u32 len;
	__u16 type;
	__u16 flags;
	__u32 seq;
	__u32 pid;
};

struct probe {
	struct nlmsghdr header;
	__u64 body[2]; /* struct ifinfomsg */
};

/* Reads by one message are allowed, everything else is not. The message is the
 * kernel's own copy, so it cannot change after it was judged. */
INLINE int netlink_refused(struct sock *sk, struct sk_buff *skb)
{
	struct nlmsghdr h, next;
	__u32 length = skb->len;
	unsigned char *data = skb->data;
	__u16 protocol = sk->sk_protocol;

	if (skb->data_len || length < NLMSG_HDR)
		return 1;
	if (bpf_probe_read_kernel(&h, sizeof(h), data))
		return 1;
	if (h.len < NLMSG_HDR || h.len > length)
		return 1;
	/* A second message would not be looked at here. The kernel stops where less
	 * than a header is left or the next length is below a header's: iproute2
	 * sends such zeros behind its requests. */
	__u64 end = ((__u64)h.len + 3) & ~3ull;

	if (end + NLMSG_HDR <= length) {
		if (bpf_probe_read_kernel(&next, sizeof(next), data + end))
			return 1;
		if (next.len >= NLMSG_HDR)
			return 1;
	}
	switch (protocol) {
	case NETLINK_ROUTE:
		/* rtnetlink's own rule for what needs no CAP_NET_ADMIN. */
		if (h.type >= RTM_BASE && ((h.type - RTM_BASE) & 3) == 2)
			return 0;
		/* "ip link show" first asks, with an empty message that changes
		 * nothing, whether the kernel knows RTM_NEWLINK. */
		if (h.type == RTM_NEWLINK && h.flags == NLM_F_REQUEST_ACK && h.len == sizeof(struct probe)) {
			struct probe p;

			if (bpf_probe_read_kernel(&p, sizeof(p), data))
				return 1;
			return p.body[0] || p.body[1];
		}
		return 1;
	case NETLINK_SOCK_DIAG:
		/* "ss". SOCK_DESTROY is another type. */
		return h.type != SOCK_DIAG_BY_FAMILY;
	case NETLINK_GENERIC:
		/* Only the controller, which lists families. In every other family
		 * (nl80211, WireGuard, ethtool, MACsec, OVPN, …) a read and a write
		 * differ by a number that only that family knows. */
		return h.type != GENL_ID_CTRL;
	}
	/* XFRM prints and sets keys, NETFILTER rewrites and duplicates packets. */
	return 1;
}

SEC("lsm/netlink_send")
int guard_netlink(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct sk_buff *skb = (void *)ctx[1];

	if (!judged(HOOK_NETLINK_SEND))
		return 0;
	return answer(HOOK_NETLINK_SEND, netlink_refused(sk, skb));
}

/* Socket ioctls (include/uapi/linux/sockios.h) are 0x89xx. Allowed are the reads
 * by name below; refused are the sets, and what cannot be told from a set: the
 * ethtool command, since its number lies in the caller's memory and may change
 * after it was judged; and device-private ones, tunnels among them. Wireless
 * extensions (0x8bxx) are refused whole. */
INLINE int ioctl_refused(__u32 cmd)
{
	if (cmd >> 8 == 0x8b)
		return 1;
	if (cmd >> 8 != 0x89)
		return 0;
	if (cmd <= 0x890a) /* owner, process group, out-of-band mark, time stamps */
		return 0;
	switch (cmd) {
	case 0x8910: /* SIOCGIFNAME */
	case 0x8912: /* SIOCGIFCONF */
	case 0x8913: /* SIOCGIFFLAGS */
	case 0x8915: /* SIOCGIFADDR */
	case 0x8917: /* SIOCGIFDSTADDR */
	case 0x8919: /* SIOCGIFBRDADDR */
	case 0x891b: /* SIOCGIFNETMASK */
	case 0x891d: /* SIOCGIFMETRIC */
	case 0x8921: /* SIOCGIFMTU */
	case 0x8927: /* SIOCGIFHWADDR */
	case 0x8933: /* SIOCGIFINDEX */
	case 0x8935: /* SIOCGIFPFLAGS */
	case 0x8938: /* SIOCGIFCOUNT */
	case 0x8942: /* SIOCGIFTXQLEN */
	case 0x894b: /* SIOCOUTQNSD */
	case 0x8954: /* SIOCGARP */
	case 0x8970: /* SIOCGIFMAP */
		return 0;
	}
	return 1;
}

SEC("lsm/file_ioctl")
int guard_ioctl(__u64 *ctx)
{
	__u32 cmd = (__u32)ctx[1];

	/* The kind first: most ioctls of the machine are none of ours. */
	if ((cmd >> 8 != 0x89 && cmd >> 8 != 0x8b) || !judged(HOOK_FILE_IOCTL))
		return 0;
	return answer(HOOK_FILE_IOCTL, ioctl_refused(cmd));
}

SEC("lsm/file_ioctl_compat")
int guard_ioctl_compat(__u64 *ctx)
{
	__u32 cmd = (__u32)ctx[1];

	if ((cmd >> 8 != 0x89 && cmd >> 8 != 0x8b) || !judged(HOOK_FILE_IOCTL))
		return 0;
	return answer(HOOK_FILE_IOCTL, ioctl_refused(cmd));
}

/* Every command: a program, link or map in other hands is the gate in other
 * hands. */
SEC("lsm/bpf")
int guard_bpf(__u64 *ctx)
{
	if (!judged(HOOK_BPF))
		return 0;
	return answer(HOOK_BPF, 1);
}

#define MAY_WRITE 2
#define SYSFS_MAGIC 0x62656572
#define CGROUP2_MAGIC 0x63677270
#define BPFFS_MAGIC 0xcafe4a11
#define PROC_SUPER_MAGIC 0x9fa0
#define S_IFMT 0170000
#define S_IFREG 0100000

/* Of procfs the files that are not of a process: /proc/sys (forwarding, the
 * programs that the kernel starts for a core dump or a module), /proc/net
 * (pktgen), /proc/sysrq-trigger. A process's own (oom_score_adj, comm) stay. */
INLINE int kernel_switch(struct inode *inode)
{
	struct proc_inode *p = (void *)inode - __builtin_preserve_field_info(((struct proc_inode *)0)->vfs_inode, 0);
	void *of[2] = {};

	if ((inode->i_mode & S_IFMT) != S_IFREG)
		return 0;
	if (bpf_probe_read_kernel(&of[0], sizeof(of[0]), &p->pde) || bpf_probe_read_kernel(&of[1], sizeof(of[1]), &p->sysctl))
		return 1;
	return of[0] || of[1];
}

/* Four file systems are the kernel's switches, not files:
 *   sysfs    /sys/class/net/DEVICE/flags sets a link up with no netlink at all;
 *   cgroup2  a process that writes itself into another cgroup has left the guard,
 *            or put on the tunnel's identity (clone3 into a cgroup asks here too);
 *   bpffs    removing a pin may be the end of a link;
 *   procfs   see above. */
SEC("lsm/inode_permission")
int guard_inode(__u64 *ctx)
{
	struct inode *inode = (void *)ctx[0];
	int mask = (int)ctx[1];

	if (!(mask & MAY_WRITE))
		return 0;
	unsigned long magic = inode->i_sb->s_magic;

	if (magic != SYSFS_MAGIC && magic != CGROUP2_MAGIC && magic != BPFFS_MAGIC &&
	    (magic != PROC_SUPER_MAGIC || !kernel_switch(inode)))
		return 0;
	if (!judged(HOOK_INODE_PERMISSION))
		return 0;
	return answer(HOOK_INODE_PERMISSION, 1);
}

#define PTRACE_MODE_ATTACH 2

/* Who can write into another process's memory, or take its descriptors, is it: a
 * supervisor, a daemon with keys, or, on a desk, a process outside. */
SEC("lsm/ptrace_access_check")
int guard_ptrace(__u64 *ctx)
{
	struct task_struct *child = (void *)ctx[0];
	unsigned int mode = (unsigned int)ctx[1];

	if (!(mode & PTRACE_MODE_ATTACH) || !judged(HOOK_PTRACE))
		return 0;
	struct task_struct *self = bpf_get_current_task_btf();

	return answer(HOOK_PTRACE, child->tgid != self->tgid);
}

#define SOL_SOCKET 1
#define SO_MARK 36
#define SOL_PACKET 263
#define SOL_XDP 283

/* A packet socket that was opened elsewhere and handed in must not get a ring or
 * pass the qdisc by; a mark is what many take for the tunnel's identity. */
SEC("lsm/socket_setsockopt")
int guard_setsockopt(__u64 *ctx)
{
	int level = (int)ctx[1], option = (int)ctx[2];

	if (level != SOL_PACKET && level != SOL_XDP && (level != SOL_SOCKET || option != SO_MARK))
		return 0;
	if (!judged(HOOK_SETSOCKOPT))
		return 0;
	return answer(HOOK_SETSOCKOPT, 1);
}

/* Nor can it be used: a send on it ends here, one that only rings for a ring too. */
SEC("lsm/socket_sendmsg")
int guard_sendmsg(__u64 *ctx)
{
	struct socket *sock = (void *)ctx[0];
	struct sock *sk = sock->sk;

	if (!sk)
		return 0;
	unsigned short family = sk->__sk_common.skc_family;

	if (family == AF_INET || family == AF_INET6 || family == AF_UNIX || family == AF_NETLINK)
		return 0;
	if (!judged(HOOK_SENDMSG))
		return 0;
	return answer(HOOK_SENDMSG, 1);
}

#define MS_MOVE 0x2000

INLINE int switches(struct vfsmount *mnt)
{
	unsigned long magic = mnt->mnt_sb->s_magic;

	return magic == BPFFS_MAGIC || magic == CGROUP2_MAGIC;
}

/* The pins live as long as their file system is mounted somewhere. */
SEC("lsm/sb_umount")
int guard_umount(__u64 *ctx)
{
	struct vfsmount *mnt = (void *)ctx[0];

	if (!switches(mnt) || !judged(HOOK_MOUNT))
		return 0;
	return answer(HOOK_MOUNT, 1);
}

SEC("lsm/move_mount")
int guard_move(__u64 *ctx)
{
	struct path *from = (void *)ctx[0];

	if (!switches(from->mnt) || !judged(HOOK_MOUNT))
		return 0;
	return answer(HOOK_MOUNT, 1);
}

/* mount(2) gives what it moves as a path that may change: refused whole. */
SEC("lsm/sb_mount")
int guard_mount(__u64 *ctx)
{
	unsigned long flags = (unsigned long)ctx[3];

	if (!(flags & MS_MOVE) || !judged(HOOK_MOUNT))
		return 0;
	return answer(HOOK_MOUNT, 1);
}

/* A supervisor that is stopped or dead supervises nothing. Signal 0 only asks. */
SEC("lsm/task_kill")
int guard_kill(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	int sig = (int)ctx[2];

	if (!sig || !supervisor(task) || !judged(HOOK_KILL))
		return 0;
	return answer(HOOK_KILL, 1);
}

/* Code in the kernel is above every rule here; and what a module brings (a tunnel,
 * a redirect, pktgen) the handset's kernel should have or not have, not get. */
SEC("lsm/kernel_module_request")
int guard_module_request(__u64 *ctx)
{
	if (!judged(HOOK_MODULE))
		return 0;
	return answer(HOOK_MODULE, 1);
}

#define READING_MODULE 2
#define READING_KEXEC_IMAGE 3

SEC("lsm/kernel_read_file")
int guard_module_file(__u64 *ctx)
{
	int id = (int)ctx[1];

	if ((id != READING_MODULE && id != READING_KEXEC_IMAGE) || !judged(HOOK_MODULE))
		return 0;
	return answer(HOOK_MODULE, 1);
}

SEC("lsm/kernel_load_data")
int guard_module_data(__u64 *ctx)
{
	int id = (int)ctx[0];

	if ((id != READING_MODULE && id != READING_KEXEC_IMAGE) || !judged(HOOK_MODULE))
		return 0;
	return answer(HOOK_MODULE, 1);
}

/* Perf events attach programs and read the kernel. */
SEC("lsm/perf_event_open")
int guard_perf(__u64 *ctx)
{
	if (!judged(HOOK_PERF))
		return 0;
	return answer(HOOK_PERF, 1);
}

/* In a user namespace of its own anyone has every capability, and can take a
 * device there that lies in a namespace it may administer. */
SEC("lsm/userns_create")
int guard_userns(__u64 *ctx)
{
	if (!judged(HOOK_USERNS))
		return 0;
	return answer(HOOK_USERNS, 1);
}

/* What the kernel's own lockdown refuses on a phone: /dev/mem, ports, kprobes,
 * debugfs, … */
SEC("lsm/locked_down")
int guard_lockdown(__u64 *ctx)
{
	if (!judged(HOOK_LOCKDOWN))
		return 0;
	return answer(HOOK_LOCKDOWN, 1);
}

char _license[] SEC("license") = "GPL";
