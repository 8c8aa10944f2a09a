// Package port names the services that listen in red, inside the tunnel: the inbound filters of handset and gateway open these
// and nothing else.
package port

// Of a handset's inner address; the gateway passes these on from one handset to another.
const (
	Sound  = 5004 // UDP (RFC 3551 §8)
	Keying = 5063 // TCP, key agreement
)

// Of the gateway's inner addresses.
const (
	Calls     = 5061 // TCP, SIP over TLS (RFC 3261 §19.1.2)
	Directory = 80   // TCP, HTTP
)
