// Command bench measures what a person waits for, on the whole system in a
// world of the netns board, and holds each figure against its bound
// (DESIGN.md §6):
//
//	boot  init's first line → tunnel up, 20 boots of one handset, PIN given at once
//	call  dial → first decoded audio, one-way latency, and the received samples
//	      against a local decode of the same packets, 20 calls
//	device  floor and gate on 20 new devices, and every layer on 20 more as init plugs
//	      a modem in, each read back
//	gate  the gate's decision on a frame, above an empty program
//	idle  egressd of a phone that is up and left alone, every daemon running, and
//	      while packets are dropped: wakeups and memory
//	send  one sendto of 64 bytes, refused and admitted, behind our layers and behind
//	      what a user would write in nft instead, 25 interleaved rounds
//	tcp   TCP through the tunnel against plain wireguard-go on the same links,
//	      10 interleaved pairs
//
// In every run the link is captured without a filter, from before power-on, and
// no frame may be outside the signed policy's classes.
//
// A sample of send is the mean of a block of 10,000 sends through one socket, made on one
// processor by a thread that no ordinary process interrupts. A ratio is that of two blocks
// of the same round, and the bound is on the median of the rounds' ratios, never on a
// ratio of medians; the best block is the column MIN. All places stand at once and differ
// in their layers alone: a veth, whose other end drops at once, and a control group that
// the sender is in. The gate and the hooks are loaded with egressd's capabilities. Bounded
// is the way that tunneld sends: a connected socket over IPv4, not over IPv6. It must run
// while no handset does on the machine: the guard's system-call form is paid by all
// processes, and the figure of a system call that does nothing tells.
//
// Each run writes out/bench/NAME.json with every raw sample and the machine's
// facts, and prints a table; the exit code tells whether all bounds held.
// Percentiles are by nearest rank: p95 of 20 samples is the 19th smallest, p50
// of 10 the 5th. It installs nothing (make bench does that first) and is not
// part of make test.
package main
