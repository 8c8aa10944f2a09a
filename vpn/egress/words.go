package egress

import "fmt"

// reasonWords say the gate's reasons to a person.
var reasonWords = [Reasons]string{
	Admitted:      "admitted",
	Short:         "it ends before a header does",
	VLAN:          "it has a VLAN tag",
	ARP:           "ARP that is not an exchange with the router about the device's own address",
	EtherType:     "neither IPv4 nor IPv6",
	IPHeader:      "the length or version in the IP header disagrees with the frame",
	IPOptions:     "it has IP options that are malformed, a source route, or not for this direction",
	Fragment:      "it is a fragment that does not fit its datagram, or does not say enough",
	Protocol:      "neither UDP nor TCP",
	L4Length:      "the length in the UDP or TCP header disagrees with the packet",
	RemoteRefused: "the remote is no single host",
	NoClass:       "no admitted class has this remote, protocol and port",
	Mark:          "the sender set a mark",
	Cgroup:        "the sender is not the process of this class",
	ND:            "neighbour discovery that is not an exchange with the router about the device's own address",
	DHCP:          "DHCP that is none of the three messages of this handset, or their answer",
	Extension:     "it has IPv6 extension headers that are malformed, out of order, or not for this direction",
	NoFirst:       "it is a later fragment, and no first one of its datagram was admitted just now",
	Closed:        "the device is closed: no gateway is admitted now",
	LinkRate:      "more ARP, ND or DHCP than the rate allows",
}

// Words says the reason to a person.
func (r Reason) Words() string {
	if r < Reasons && reasonWords[r] != "" {
		return reasonWords[r]
	}
	return r.String()
}

// Words says the reason to a person.
func (r LevelReason) Words() string {
	if r < LevelReasons {
		return levelWords[r][1]
	}
	return r.String()
}

// Why is the reason in a word.
func (s Sample) Why() string {
	switch s.Program {
	case ProgramGate:
		return Reason(s.Reason).String()
	case ProgramLevels:
		return LevelReason(s.Reason).String()
	}
	return fmt.Sprintf("reason(%d)", s.Reason)
}

// Words is the reason for a person.
func (s Sample) Words() string {
	switch s.Program {
	case ProgramGate:
		return Reason(s.Reason).Words()
	case ProgramLevels:
		return LevelReason(s.Reason).Words()
	}
	return s.Why()
}
