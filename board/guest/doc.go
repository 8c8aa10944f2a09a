// Package guest runs commands of this desk under another kernel: Debian's 6.12, booted directly by QEMU without hardware
// acceleration. It is for what the desk's own kernel lacks (BPF LSM programs, FOU, WireGuard, IPsec, pktgen, …).
//
// The guest sees the desk's root file system read-only (9p) under an overlay in its own memory, so it runs the desk's
// programs and the built ones, and what it writes is gone with it. It has no network device to the desk. [Run] boots,
// runs one command as root in a kernel where nothing else runs, passes its output on and returns how it ended;
// [RunEach] runs several after another in one boot.
//
// The guest's process 1 is the calling program itself, put into the initial RAM disk: a program that uses this package
// calls [Stage] first thing in main and is linked statically. The kernel comes from tools/setup/kernel.sh.
//
// The two speak over one virtio port whose far end is a descriptor that QEMU inherits: no path, no socket that another
// process could open. QEMU dies with the process that started it.
package guest
