// Package plan compiles the signed policy into what the gate may ever admit:
// one class per gateway address and service in role handset, one responder's
// class per service in role gateway. It is pure. It stands apart from package
// egress so that egressd, which receives the result as fixed frames, maps no
// policy parser and no JSON.
package plan

import (
	"fmt"
	"net/netip"

	"rempart/boot/manifest"
	"rempart/vpn/egress"
)

// Compile returns the table of a policy: every class of every gateway, of
// which a tunnel state admits those of one gateway ([egress.Policy.For]).
// cgroup is the id of tunneld's cgroup (the inode number of its cgroup2
// folder), the only one whose sockets may send; 0 is an error.
//
// What the policy cannot mean exactly is an error, and with it no table:
// nothing is left out in silence.
func Compile(p *manifest.Policy, cgroup uint64) (egress.Policy, error) {
	table, err := compile(p, cgroup)
	if err != nil {
		return egress.DenyAll(), fmt.Errorf("cannot compile the policy for the gate: %w", err)
	}
	return table, nil
}

func compile(p *manifest.Policy, cgroup uint64) (egress.Policy, error) {
	if p == nil {
		return egress.DenyAll(), fmt.Errorf("there is no policy")
	}
	if p.Role == manifest.RoleGateway && len(p.Gateways) != 1 {
		return egress.DenyAll(), fmt.Errorf("role %s has %d gateways, want one: itself", p.Role, len(p.Gateways))
	}
	var table egress.Policy
	for _, g := range p.Gateways {
		remotes, err := remotes(p.Role, g)
		if err != nil {
			return egress.DenyAll(), err
		}
		for _, service := range g.Services {
			class := egress.Class{Gateway: g.Name, Port: service.Port, Cgroup: cgroup}
			if class.Proto, err = protocol(service.Protocol); err != nil {
				return egress.DenyAll(), fmt.Errorf("gateway %s: %w", g.Name, err)
			}
			if class.Purpose, err = egress.ParsePurpose(service.Purpose); err != nil {
				return egress.DenyAll(), fmt.Errorf("gateway %s: %w", g.Name, err)
			}
			for _, class.Addr = range remotes {
				table.Classes = append(table.Classes, class)
			}
		}
	}
	return table, table.Check()
}

// remotes returns the addresses that classes of a gateway name. A handset
// speaks to the gateway's addresses; the gateway itself answers whoever asks,
// which is the zero address.
func remotes(role string, g manifest.Gateway) ([]netip.Addr, error) {
	switch {
	case role == manifest.RoleGateway:
		return []netip.Addr{{}}, nil
	case role != manifest.RoleHandset:
		return nil, fmt.Errorf("unknown role %q", role)
	case len(g.Addresses) == 0:
		return nil, fmt.Errorf("gateway %s has no address", g.Name)
	}
	for _, addr := range g.Addresses {
		if !addr.IsValid() {
			// The zero address would admit any remote.
			return nil, fmt.Errorf("gateway %s has an empty address", g.Name)
		}
	}
	return g.Addresses, nil
}

func protocol(name string) (uint8, error) {
	switch name {
	case "udp":
		return egress.UDP, nil
	case "tcp":
		return egress.TCP, nil
	}
	return 0, fmt.Errorf("unknown protocol %q", name)
}
