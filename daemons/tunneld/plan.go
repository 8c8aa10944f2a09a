package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"rempart/boot/manifest"
	"rempart/vpn/egress"
	"rempart/vpn/egress/plan"
	"rempart/vpn/tunnel"
	"rempart/vpn/wireguard"
)

// network is the policy's name of the tunnel's network and device.
const network = "wg0"

// config is what the signed policy says to this daemon. It does not change while
// the process lives.
type config struct {
	plan tunnel.Plan
	// peers are the gateways' keys by name, as the handset connects to them.
	keys map[string]wireguard.Key
	// inner are the prefixes of the tunnel network.
	inner []netip.Prefix
	// digest of the policy that must be in force, by admitted gateway; "" is deny all.
	digests map[string][32]byte
	roots   *x509.CertPool
}

// configure reads a verified policy. cgroup is the id of this daemon's own
// cgroup, by which the gate knows the tunnel.
func configure(p *manifest.Policy, cgroup uint64) (config, error) {
	c := config{keys: map[string]wireguard.Key{}, digests: map[string][32]byte{"": egress.DenyAll().Digest()}}
	if p.Role == manifest.RoleGateway {
		c.plan.Role = tunnel.Gateway
	}
	n, ok := p.Network(network)
	if !ok {
		return config{}, fmt.Errorf("cannot plan the tunnel: the policy has no network %s", network)
	}
	c.inner = n.Inner
	table, err := plan.Compile(p, cgroup)
	if err != nil {
		return config{}, err
	}
	for _, g := range p.Gateways {
		port, ok := tunnelPort(g)
		if !ok {
			continue // a gateway without a tunnel service has none
		}
		addresses := g.Addresses
		if c.plan.Role == tunnel.Gateway {
			addresses = addresses[:min(1, len(addresses))] // one socket pair listens on all
		}
		for _, a := range addresses {
			c.plan.Targets = append(c.plan.Targets, tunnel.Target{Gateway: g.Name, Endpoint: netip.AddrPortFrom(a, port)})
		}
		c.keys[g.Name] = wireguard.Key(g.TunnelKey)
		c.digests[g.Name] = table.For(g.Name).Digest()
	}
	if err := c.plan.Check(); err != nil {
		return config{}, err
	}
	c.roots = x509.NewCertPool()
	for i, text := range p.Keys.Authority {
		if !c.roots.AppendCertsFromPEM([]byte(text)) {
			return config{}, fmt.Errorf("cannot use authority certificate %d of the policy", i)
		}
	}
	return c, nil
}

func tunnelPort(g manifest.Gateway) (uint16, bool) {
	for _, s := range g.Services {
		if s.Purpose == manifest.PurposeTunnel {
			return s.Port, true
		}
	}
	return 0, false
}

// prefixes gives each inner address of the certificate the length of its network.
func (c config) prefixes(addresses []netip.Addr) ([]netip.Prefix, error) {
	if len(addresses) == 0 {
		return nil, errors.New("the certificate has no inner address")
	}
	var out []netip.Prefix
	for _, a := range addresses {
		n, ok := c.networkOf(a)
		if !ok {
			return nil, fmt.Errorf("the certificate's inner address %s is in no prefix of network %s", a, network)
		}
		out = append(out, netip.PrefixFrom(a, n.Bits()))
	}
	return out, nil
}

func (c config) networkOf(a netip.Addr) (netip.Prefix, bool) {
	for _, n := range c.inner {
		if n.Contains(a) {
			return n, true
		}
	}
	return netip.Prefix{}, false
}

// ownCgroup is the id of this process's cgroup: the inode number of its folder.
func ownCgroup() (uint64, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return 0, fmt.Errorf("cannot find the own cgroup: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			info, err := os.Stat(filepath.Join("/sys/fs/cgroup", filepath.Clean(path)))
			if err != nil {
				return 0, fmt.Errorf("cannot find the own cgroup: %w", err)
			}
			st, ok := info.Sys().(*syscall.Stat_t)
			if !ok {
				break
			}
			return st.Ino, nil
		}
	}
	return 0, errors.New("cannot find the own cgroup: this process is in no cgroup2 folder")
}
