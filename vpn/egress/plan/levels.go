package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"rempart/boot/manifest"
	"rempart/vpn/egress"
	"rempart/vpn/levels"
)

// Places are the numbers that only the running kernel knows.
type Places struct {
	Red, Black uint64            // cookies of the network namespaces
	Devices    map[string]int    // of red, by the names of the policy's networks
	Cgroups    map[string]uint64 // ids by the names of processes: each app of the policy, tunneld and linkd
}

// The networks of black in a level table. No level permits them: tunneld has the first,
// linkd the others, and no app has any.
const (
	Black = "black" // the gateways
	Ask   = "ask"   // where linkd asks for a lease or a router, and hears nothing
	Told  = "told"  // whence it is answered, and where it sends nothing
)

// The processes with sockets in black.
const (
	tunneld = "tunneld"
	linkd   = "linkd"
)

// nowhere is the device of a network whose device is not there (yet).
const nowhere = 1<<31 - 1

// Levels compiles the level rule of a policy to the table that the kernel enforces: a
// row for each app of the policy, in red, by [levels.Rule]; and one for tunneld, in
// black, which may talk to the addresses of the policy's gateways (in role gateway: to
// anyone) and to nothing in red. A handset's linkd may ask every host of the link for a
// lease and a router; what it may say is the gate's matter.
func Levels(p *manifest.Policy, at Places) (egress.LevelTable, error) {
	table, err := compileLevels(p, at)
	if err != nil {
		return egress.LevelTable{}, fmt.Errorf("cannot compile the policy for the level hooks: %w", err)
	}
	return table, nil
}

func compileLevels(p *manifest.Policy, at Places) (t egress.LevelTable, err error) {
	if p == nil {
		return t, fmt.Errorf("there is no policy")
	}
	for _, n := range p.Networks {
		device, ok := at.Devices[n.Name]
		if !ok {
			device = nowhere
		}
		t.Networks = append(t.Networks, egress.LevelNetwork{Name: n.Name, Netns: at.Red, Ifindex: device, Prefixes: n.Inner})
	}
	black := egress.LevelNetwork{Name: Black, Netns: at.Black}
	for _, g := range p.Gateways {
		addresses, err := remotes(p.Role, g)
		if err != nil {
			return t, err
		}
		for _, a := range addresses {
			black.Prefixes = appendRemote(black.Prefixes, a)
		}
	}
	t.Networks = append(t.Networks, black)
	rule := levels.New(p)
	for _, app := range p.Apps {
		row := egress.LevelRow{Name: app.Name, Netns: at.Red, Cgroup: at.Cgroups[app.Name]}
		for i, n := range p.Networks {
			if rule.Send(app.Name, n.Name).Allowed {
				row.Send |= 1 << i
			}
			if rule.Receive(app.Name, n.Name).Allowed {
				row.Receive |= 1 << i
			}
		}
		t.Rows = append(t.Rows, row)
	}
	only := uint32(1) << len(p.Networks)
	t.Rows = append(t.Rows, egress.LevelRow{Name: tunneld, Netns: at.Black, Cgroup: at.Cgroups[tunneld], Send: only, Receive: only})
	if p.Role == manifest.RoleHandset {
		addLinkd(&t, at)
	}
	return t, t.Check()
}

// Rights are the rights ([egress.LevelTable.Rights]) of the table that a policy leads to, when the
// phone is open and when it is closed. They need none of the numbers of a running kernel.
func Rights(p *manifest.Policy) (open, closed [32]byte, err error) {
	if p == nil {
		return open, closed, fmt.Errorf("there is no policy")
	}
	at := Places{Red: 1, Black: 2, Cgroups: map[string]uint64{tunneld: 1, linkd: 2}}
	for i, app := range p.Apps {
		at.Cgroups[app.Name] = uint64(i + 3)
	}
	table, err := Levels(p, at)
	if err != nil {
		return open, closed, err
	}
	return table.Rights(), table.Closed().Rights(), nil
}

// addLinkd adds linkd's row and the two halves of the link that it talks to.
func addLinkd(t *egress.LevelTable, at Places) {
	n := len(t.Networks)
	t.Networks = append(t.Networks,
		egress.LevelNetwork{Name: Ask, Netns: at.Black, Prefixes: []netip.Prefix{
			netip.MustParsePrefix("255.255.255.255/32"), netip.MustParsePrefix("ff02::2/128")}},
		egress.LevelNetwork{Name: Told, Netns: at.Black, Prefixes: []netip.Prefix{
			netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("fe80::/10")}})
	// Raw: router solicitations are ICMPv6.
	t.Rows = append(t.Rows, egress.LevelRow{Name: linkd, Netns: at.Black, Cgroup: at.Cgroups[linkd], Raw: true, Send: 1 << n, Receive: 1 << (n + 1)})
}

// appendRemote adds a gateway's address once; the zero address is any remote.
func appendRemote(prefixes []netip.Prefix, a netip.Addr) []netip.Prefix {
	add := []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}
	if !a.IsValid() {
		add = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	}
	for _, p := range add {
		if !slices.Contains(prefixes, p) {
			prefixes = append(prefixes, p)
		}
	}
	return prefixes
}
