// Package hostilenet holds the attacks of a hostile network on a handset that leases its addresses there, as tests on the netns
// board: TunnelVision (CVE-2024-3661), TunnelCrack LocalNet and ServerIP (CVE-2023-36672, -35838, -36671, -36673) and probes from
// the link. The network's services are the real ones, dnsmasq and radvd; one file is one attack.
//
// Each has a twin: a host of the same link that does what the attack counts on, and that the attack is seen to work on.
package hostilenet
