// Tunneld decides the tunnel and carries it.
//
// Trusted with: the plaintext of red, in its memory on the way through, and the
// tunnel's private key, which it fetches from keyd. It is not trusted with
// policy: what may leave is egressd's, asked for here and read back by init.
//
// Holds: no capability; the TUN descriptor that init opened in red; UDP sockets
// in black, only while a policy that admits them is in force; its listening socket.
//
// Order is law: the policy of the new state is in force, egressd's word awaited
// and its digest compared with what the signed policy says, before the effect
// that needs it. The decisions are vpn/tunnel's; this process runs the effects.
//
// When it dies: the gate keeps the last policy, but only sockets of this cgroup
// pass it and there are none left. The next one closes the gate first, fetches
// the key again and rebuilds the device from the inherited descriptor.
package main
