// Package egress is the gate's policy as a value: which frames may cross a black
// device. It is pure; vpn/enforce puts a policy into the kernel and internal/bpf
// holds the program that applies it.
//
//   - A [Policy] is a list of classes; the zero Policy admits nothing.
//   - [Policy.Marshal] and [Parse] are its one byte form, [Policy.Digest] its name.
//   - [Policy.Table] compiles it to the table that is a constant of the program.
//   - [Decide] is the reference model: the same decision as the BPF program, against
//     which that program is compared on random frames.
//   - The wire frames of egressd.sock are in wire.go, fixed and without JSON, since
//     their reader holds CAP_NET_ADMIN.
//
// Where no class is admitted and no fact of the link is known ([ClosedBy]), no frame is
// judged: all are dropped as [Closed].
//
// # What is legal, and in which direction
//
// What goes out is our own kernel's work, so all that it does not write is refused: it
// could carry something. What comes in may have been changed on its way, so all that is
// well-formed and cannot lead a datagram elsewhere is taken.
//
//	                       out                       in
//	VLAN tags              dropped, read through for the drop record: two, in the frame or taken off it
//	lengths                exact                     Ethernet padding, UDP shorter than its datagram
//	IPv4 options           none                      a list of 4 at most, padding counted, without source routes
//	IPv6 extensions        fragment                  one header of options, hop-by-hop or destination, of 40 bytes and
//	                                                 4 options, padding counted, at most, no jumbogram; then a fragment
//	                                                 header; no routing header, nothing else and no other order
//	first fragment         the whole transport header, a multiple of 8 bytes, and for UDP (out) a length
//	                       beyond it
//	later fragment         for 2 s after a first one that was admitted, of the same addresses and number, in
//	                       the same direction, behind its end and within its datagram; out: from the same
//	                       cgroup, up to exactly the length that the UDP header told
//	atomic fragment        dropped                   as a whole datagram (RFC 6946)
//
// The bounds on options are there so that the longest legal headers are short: neither our
// gateways nor their systems write any, so what comes is the network's, and rare.
//
// A fragment that overtakes its first one is dropped. A new policy knows no datagram of
// the old one. Fragments may overlap each other, as the receiving kernel drops those, but
// not the first, whose ports were looked at.
//
// Sources: NIAP PP-Module for VPN Client v2.5 FDP_IFC_EXT.1 (all traffic through the
// tunnel), RFC 791, RFC 1858, RFC 5722, RFC 7112,
// RFC 8200, RFC 768, RFC 9293, IEEE 802.1Q.
package egress
