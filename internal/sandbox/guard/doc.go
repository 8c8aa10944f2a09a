// Package guard keeps the processes of one handset, root included, from passing the gate by. tc programs do not see AF_XDP,
// a packet socket's qdisc bypass, or a device that was made after them; the guard is for those. It acts on processes at and
// below one cgroup; the supervisors among them (init, egressd, watchd) are named by pidfd and excepted.
//
// It has two forms. [Install] takes the first that the kernel runs.
//
// [LSM], BPF LSM programs, refuses with EPERM before anything happens:
//   - sockets of every family but unix, inet and netlink; a send on one that was opened elsewhere and handed in; every option
//     of packet and XDP sockets, and SO_MARK;
//   - link, route, neighbour, filter and IPsec changes by netlink and ioctl; bpf(); perf events;
//   - writing to sysfs, cgroup2, bpffs and the kernel's switches in procfs (/proc/sys, /proc/net, sysrq-trigger); unmounting
//     or moving bpffs and cgroup2;
//   - ptrace access (also /proc/PID/mem and pidfd_getfd) to every other process; signals to supervisors;
//   - new user namespaces; kernel modules, asked for or brought along; what the kernel's lockdown mode refuses (/dev/mem, …).
//
// No one but a supervisor can bring a device up.
// It does not stop: entering another namespace of the handset by setns, mounting over what a supervisor reads, a
// bpf link that was opened outside the handset and handed in.
//
// [Calls], raw tracepoints and cgroup programs, for kernels that take no LSM programs.
//
//	killed     a socket of every family but unix, inet, netlink and AF_ALG; a netlink socket in init's own namespace;
//	           entering that namespace by setns; bpf(); io_uring_setup; pidfd_getfd; 32-bit and x32 system calls; a
//	           child process that shares its parent's table of descriptors (CLONE_FILES without CLONE_THREAD)
//	refused    an inet socket in init's own namespace (EPERM); every option of packet and XDP sockets (EPERM), with
//	           them qdisc bypass and rings; an IPv4 or IPv6 packet of the handset's sockets through any device that
//	           [Guard.Admit] was not told of (dropped, EPERM)
//
// A kill does not keep the call from running. It keeps the caller from using the result, and by the list above there is no
// other process that has it. The inet and device rules hold for supervisors too.
//
// What Calls does not stop, beyond what LSM does not:
//   - one race: a process with several threads, one of them inside sendmmsg or sendmsg with SCM_RIGHTS when another makes the
//     packet socket, can pass the new descriptor to another process before all its threads are dead. In black that socket
//     still meets gate and floor, since it cannot set qdisc bypass. A 32-bit setsockopt is not judged by the kernel's
//     cgroup hook: its caller is killed after it has taken effect, so two such races in a row pass the gate by;
//   - link, address, route, qdisc and filter changes by netlink, ioctl and sysfs. Root in black can take the floor or the
//     radio away (the watcher notices, and takes the radios down) and redirect, with a filter on an admitted device, to another device of
//     the same namespace. It cannot bring a new device there: moving it takes a netlink socket in the namespace where it
//     was born;
//   - a device that was moved or deleted leaves its admitted number to the next one that takes it in that namespace, until
//     init has heard of it and revoked it;
//   - packets without a socket (forwarded, duplicated by netfilter, a kernel tunnel's outer ones) meet no device rule;
//   - ptrace, /proc/PID/mem and process_vm_writev on supervisors: root in the handset that writes into init is init;
//   - writing to cgroup2 and bpffs: a process that sees the desk's cgroup tree can leave the handset. A removed pin is
//     noticed by ReadBack, and init's descriptors hold the guard until init ends;
//   - an honest program gets SIGKILL where an errno would do.
//
// Calls costs every process of the machine, not the handset's alone, the slow path of a system call: some 100 to 150 ns per
// call (measured on a para-virtual x86-64 6.18 where a call takes 1 µs), once per handset on the same kernel.
package guard
