// Linkd gets the radios their addresses: it speaks DHCP and listens to IPv6 routers, and wishes of init for what it leased.
//
// It lives in black as uid 907, without a capability. It holds, for each radio that is to be configured so, a UDP socket bound
// to the device and to port 68, and a raw ICMPv6 socket that hears router advertisements alone; init made both, in linkd's
// cgroup, and the sandbox lets it open no other. It keeps no state and no file.
//
// What it parses is hostile: DHCP replies and router advertisements (package vpn/lease). A linkd that is taken over can send
// what the gate compares byte for byte with templates, a few times a second, and can wish for addresses, of which init grants
// none that is in an inner network or a gateway's, and no route but to the router and through it to the signed gateways.
package main
