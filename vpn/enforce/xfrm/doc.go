// Package xfrm is the layer of the gate that needs no rule to hold: the IPsec policy
// database's default, set to "block" in all three directions (in, out, fwd; Linux 5.15).
// What no policy allows, the kernel refuses to route (EPERM to the sender), to take in,
// to forward, and to answer, on every device of the namespace but loopback, one that
// appears a moment later included.
//
// [Put] sets the default and exactly the allow policies that are wanted; [ReadBack] is
// for another process and compares the default, every policy, that there is no state,
// and that no device has been taken out of it by its disable_xfrm or disable_policy.
//
// All functions act on the calling thread's network namespace and need CAP_NET_ADMIN.
//
// A refused send is cheap: the route is looked up and no more. An allowed one of a socket
// that is not connected costs about half a microsecond (Linux 6.18), as the kernel makes a
// bundle for each packet that a policy matches (BenchmarkSend of package backstop). A
// connected one is asked again when [Put] has changed something; a handset's tunnel is
// one in IPv4 (vpn/wireguard).
//
// What this does not stop: packet sockets, AF_XDP, whatever is not IP. Nobody owns these
// settings: who has CAP_NET_ADMIN can change them, and is found by the read-back.
package xfrm
