// Package backstop is what stands behind the eBPF gate and knows nothing of it: the nft
// tables (vpn/enforce/nft) and the IPsec policies' default (vpn/enforce/xfrm) of a whole
// handset, namespace by namespace.
//
//	place   nft                                    IPsec policies, default block
//	black   every device: nothing, or the classes  nothing, or the classes
//	red     inbound: answers and named ports       the tunnel's networks
//	others  no table                               nothing
//
// A [Wanted] says what should be; it is a value that another process can make for itself.
// [Lay] puts it in force and keeps the tables owned, [ReadBack] compares.
//
// A layer that the kernel does not have is no error: the others hold without it, and
// [Backstop.Layers] says so, as with the guard. A layer that the kernel has and that
// cannot be put in force is one.
package backstop
