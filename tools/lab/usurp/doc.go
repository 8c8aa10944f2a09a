// Package usurp is a tunneld that was taken over: a program of ours in its place (netns.World.InPlaceOf) with its uid, no
// capability, its namespaces, the handset's files and its control group, once with the system call filter that tunneld puts on
// itself and once without, the worst case. It tries what an attacker in tunneld would: other hosts and ports, other protocols,
// raw and packet sockets, the other namespaces, other processes' sockets, and what egressd and init would have to be fooled
// into. Each try carries a marker that an unfiltered capture outside looks for.
//
// What is left to it is what tunneld is for: packets of its own to the admitted gateway, with any payload and any
// header field that a UDP socket may set. The rows that say "left to it" name them one by one; see docs/known-limits.md.
package usurp
