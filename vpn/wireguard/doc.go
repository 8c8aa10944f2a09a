// Package wireguard carries the tunnel with wireguard-go in this process, which
// holds no capability: init opened the TUN device in red and handed over the
// descriptor, and the UDP sockets are born in the network namespace that this
// process lives in (black). Nothing here sets an address, a route or a device.
//
// A [Tunnel] has one key for its life. Sockets exist only between [Tunnel.Connect]
// or [Tunnel.Listen] and [Tunnel.Down], so a closed tunnel has no port.
//
// A tunnel that connects hears its peer's endpoint alone and never follows it to another.
// Its IPv4 socket is connected along the path on which the peer last answered, since the
// kernel then asks for the route once and not for each packet.
//
// What it does not protect: wireguard-go keeps the private key, and whatever the
// X25519 arithmetic left behind, in this process's memory until Close; a
// process that can read it has the tunnel.
package wireguard
