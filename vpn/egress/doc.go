// Package egress is the gate's policy as a value: which frames may cross a black
// device. It is pure; vpn/enforce puts a policy into the kernel and internal/bpf
// holds the program that applies it.
//
//   - A [Policy] is a list of classes; the zero Policy admits nothing.
//   - [Policy.Marshal] and [Parse] are its one byte form, [Policy.Digest] its name.
//   - [Policy.Entries] compiles it to the entries of the program's rule map.
//   - [Decide] is the reference model: the same decision as the BPF program, against
//     which that program is compared on random frames.
//   - The wire frames of egressd.sock are in wire.go, fixed and without JSON, since
//     their reader holds CAP_NET_ADMIN.
//
// Sources: NIAP PP-Module for VPN Client v2.5 FDP_IFC_EXT.1 (all traffic through the
// tunnel), RFC 791, RFC 8200, RFC 768, RFC 9293, IEEE 802.1Q.
package egress
