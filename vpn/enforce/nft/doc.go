// Package nft is the layer of the gate that is not eBPF: an nf_tables table on
// every black device, and an inbound filter in red.
//
//   - On a black device ([Closed], [Released]): a netdev table, hooked on egress and
//     ingress, policy drop, last in its hook. Released, it admits the classes of the
//     signed policy by protocol, the device's own address, remote and port, and on the
//     way out by the uid that opened the socket ("meta skuid"). The eBPF gate knows the sender by its cgroup:
//     whoever wants to pass both must forge two identities that have nothing in common.
//     It sees packet sockets too, with PACKET_QDISC_BYPASS as without.
//   - In red ([Red]): what comes in by the tunnel device meets the named ports or
//     answers to what red asked, or silence: no RST, no ICMP.
//
// [Owner] puts tables in force, each change of one table or of several in one batch,
// which the kernel carries out as a whole or not at all. The tables are owned by its
// netlink socket (NFT_TABLE_F_OWNER): no other socket can change, flush or delete
// them, whatever capabilities its process has. When the socket is gone, so are the
// tables, unless the kernel knows NFT_TABLE_F_PERSIST (6.9): then they stay as they are.
//
// [ReadBack] is for another process: it compares everything that nf_tables has in a
// namespace, of any family and any owner, with what should be there.
//
// The package speaks netlink itself. The library that the design names sets no table
// flags, and its lists leave out a chain's devices and every expression it does not
// know: good for writing rules, not for finding those of somebody else.
//
// All functions act on the calling thread's network namespace; all need CAP_NET_ADMIN.
//
// What this does not stop: AF_XDP, and a frame that a tc filter of another device of
// the same namespace redirects here (the kernel does not ask the egress hook again).
package nft
