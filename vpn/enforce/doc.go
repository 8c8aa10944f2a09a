// Package enforce puts an egress policy in force on a device and reads it back.
//
// Two layers, both directions (DESIGN §1):
//
//   - The floor: a drop-all classifier on the device's clsact. It has no owner and
//     no pin; it lives as long as the device does ([AttachFloor]).
//   - The gate: in front of the floor, a TCX link pinned in a bpffs, or, where the
//     kernel has no TCX (before 6.6), a clsact filter of a higher priority
//     ([Attach]). A frame that the gate passes never meets the floor; if the gate
//     is gone for any reason, every frame does.
//
// A policy is never edited in place: [Gate.Swap] loads new programs with a rule
// map of their own, frozen before first use, and exchanges them with one atomic
// update per direction, in an order in which nothing opens early.
//
// While nothing is admitted, a smaller program stands there, the closed gate: to close
// takes no time in the kernel's verifier, and there is no rule in it to be wrong.
//
// [ReadBack] is for another process than the one that attached: it starts from the
// kernel's ids, not from pins or descriptors, and names every difference.
//
// All functions act on devices of the calling thread's network namespace.
//
// Behind both stand layers that know nothing of eBPF: packages nft, xfrm and backstop.
//
// What this does not stop: a sender that tc does not see (AF_XDP, a packet socket
// with PACKET_QDISC_BYPASS, pktgen). That is internal/sandbox's guard and the
// capability sets.
package enforce
