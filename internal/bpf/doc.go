// Package bpf holds the seven BPF objects of a handset and the Go that bpf2go
// makes from them. It is the only package that knows their maps by name, and with
// vpn/enforce and internal/sandbox/guard the only one that imports cilium/ebpf.
//
//	floor   drops every frame of a device, on clsact, for the device's life
//	gate    passes the frames of the admitted classes, both directions, on TCX or clsact
//	closed  the gate while nothing is admitted: drops, counts and records every frame
//	guard   LSM programs: what root inside a handset may not do
//	level   cgroup programs: which process may talk to which network
//	depth   how deep a cgroup lies, which the level hooks need; attached nowhere
//	calls   tracepoint and cgroup programs: the guard where the kernel runs no LSM programs
//
// What is dropped is sampled into one record that gate, closed and level share (drops.h).
//
// One object serves Debian's kernels 6.1, 6.12 and 6.18: the tc programs use
// stable user-space ABI alone, the guard and calls find their few struct fields through the
// running kernel's BTF.
package bpf
