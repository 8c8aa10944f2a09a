// Command bench measures what a person waits for, on the whole system in a
// world of the netns board, and holds each figure against its bound
// (DESIGN.md §6):
//
//	boot  init's first line → tunnel up, 20 boots of one handset, PIN given at once
//	call  dial → first decoded audio, one-way latency, and the received samples
//	      against a local decode of the same packets, 20 calls
//	device  floor, gate, nft and the IPsec default on 20 new devices, each read back
//	gate  the gate's decision on a frame, above an empty program
//	idle  egressd of a phone that is up while nobody asks it anything, and while
//	      packets are dropped: wakeups and memory
//	tcp   TCP through the tunnel against plain wireguard-go on the same links,
//	      10 interleaved pairs
//
// In every run the link is captured without a filter, from before power-on, and
// no frame may be outside the signed policy's classes.
//
// Each run writes out/bench/NAME.json with every raw sample and the machine's
// facts, and prints a table; the exit code tells whether all bounds held.
// Percentiles are by nearest rank: p95 of 20 samples is the 19th smallest, p50
// of 10 the 5th. It installs nothing (make bench does that first) and is not
// part of make test.
package main
