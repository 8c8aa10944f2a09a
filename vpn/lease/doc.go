// Package lease gets a radio its address: the client of DHCP (RFC 2131, in the anonymity profile of RFC 7844) and of IPv6
// router advertisements (RFC 4861, RFC 4862), pure. It reads hostile bytes and keeps of them an address, a router and a time.
//
// Everything else that such a message can carry is an attack or a convenience, and is not read: further routes (options 33,
// 121, 249; RIO), several routers, name servers and search domains, an MTU (26; MTU option), a captive portal (114), a proxy
// (252), host names, a second server. What goes out is made by package egress, the same bytes that the gate compares with.
//
// The caller brings the bytes, the clock and the randomness.
package lease
