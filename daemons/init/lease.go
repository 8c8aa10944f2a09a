package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"rempart/boot/manifest"
	"rempart/internal/journal"
	"rempart/internal/link"
	"rempart/internal/run"
	"rempart/internal/sandbox"
	"rempart/internal/wish"
	"rempart/vpn/egress"
	"rempart/vpn/egress/ask"
)

// leased is an address that linkd wished for and init granted.
type leased struct {
	address, router netip.Addr
	until           int64 // CLOCK_MONOTONIC; init takes it back then, whether linkd lives or not
}

// dynamic is a radio whose addresses come from the network. Every fact of it is untrusted but its own link address.
type dynamic struct {
	index   int
	mac     [6]byte
	local6  netip.Addr
	leases  [2]leased // IPv4, IPv6
	sockets []sandbox.Handed
}

// raiseDynamic brings a radio up without an address: a random link address (or the one that the command line gives), a
// random link-local address, and two sockets for linkd. The kernel answers ARP and ND on it for its own addresses; the gate
// admits of that what is exchanged with the router, once there is one.
func (p *phone) raiseDynamic(r radio, index int) error {
	d := &dynamic{index: index, mac: [6]byte{}}
	var random [14]byte
	_, _ = rand.Read(random[:]) // crypto/rand ends the process where it has none
	copy(d.mac[:], random[:6])
	d.mac[0] = d.mac[0]&^1 | 2 // unicast, locally administered (RFC 7844 section 2.1)
	if r.mac != nil {
		d.mac = [6]byte(r.mac)
	}
	local := [16]byte{0xfe, 0x80}
	copy(local[8:], random[6:])
	local[8] &^= 3
	d.local6 = netip.AddrFrom16(local)
	err := errors.Join(
		link.SetMAC(r.name, net.HardwareAddr(d.mac[:])),
		// Answers for addresses of this device alone. The greater of "all" and the device's counts: others keep "none".
		link.Sysctl("net/ipv4/conf/all/arp_ignore", "1"),
		link.Sysctl("net/ipv4/conf/"+r.name+"/arp_ignore", "1"),
		link.Sysctl("net/ipv4/conf/"+r.name+"/arp_announce", "2"),
		// A server's answer comes from an address that there is no route to yet.
		link.Sysctl("net/ipv4/conf/all/rp_filter", "0"),
		link.Sysctl("net/ipv4/conf/"+r.name+"/rp_filter", "0"),
		link.SetUp(r.name),
		link.AddAddr(r.name, netip.PrefixFrom(d.local6, 128)),
	)
	if err != nil {
		return err
	}
	// A socket is for ever of the cgroup of who made it, and the gate knows linkd by its cgroup.
	err = p.within("linkd", func() error {
		dhcp, err := link.OpenDHCP(r.name, uidLinkd)
		if err != nil {
			return err
		}
		nd, err := link.OpenND(r.name, uidLinkd)
		if err != nil {
			return errors.Join(err, dhcp.Close())
		}
		d.sockets = []sandbox.Handed{{Name: dhcp.Name(), File: dhcp}, {Name: nd.Name(), File: nd}}
		return nil
	})
	if err != nil {
		return err
	}
	p.dynamic[r.name] = d
	return nil
}

// raiseAgain brings a radio up that was taken down: IPv6 addresses and all routes went with that.
func (p *phone) raiseAgain(r radio, d *dynamic) error {
	if err := link.SetUp(r.name); err != nil {
		return err
	}
	if err := link.AddAddr(r.name, netip.PrefixFrom(d.local6, 128)); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	for _, l := range d.leases {
		if err := p.route(r.name, l); err != nil {
			return err
		}
	}
	return nil
}

// within runs fn with init in a daemon's cgroup.
func (p *phone) within(daemon string, fn func() error) error {
	enter := func(group string) error {
		if err := os.WriteFile(filepath.Join(cgroupDir, group, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("cannot enter cgroup %s: %w", group, err)
		}
		return nil
	}
	if err := enter(daemon); err != nil {
		return err
	}
	return errors.Join(fn(), enter("init"))
}

// startLinkd tells the gate which links there are and starts linkd, if a radio needs it.
func (p *phone) startLinkd(ctx context.Context) error {
	if len(p.dynamic) == 0 {
		return nil
	}
	if p.policy.Role != manifest.RoleHandset {
		return run.Hint(errors.New("a gateway cannot lease its addresses: who calls it must know them"), "name them on the command line")
	}
	if err := p.tellLinks(ctx); err != nil {
		return err
	}
	if err := p.readBack(egress.DenyAll()); err != nil {
		return err
	}
	return p.sup.start("linkd")
}

// facts are what the gate of a radio is told of its link; none for a radio whose addresses and next hops are fixed.
func (p *phone) facts(device string) egress.LinkFacts {
	d, ok := p.dynamic[device]
	if !ok {
		return egress.LinkFacts{}
	}
	return egress.LinkFacts{
		Linkd: p.linkdCgroup, MAC: d.mac, Local6: d.local6,
		Addr4: d.leases[0].address, Router4: d.leases[0].router, Addr6: d.leases[1].address, Router6: d.leases[1].router,
	}
}

// tellLinks tells egressd the facts of every radio that has some.
func (p *phone) tellLinks(ctx context.Context) error {
	if len(p.dynamic) == 0 {
		return nil
	}
	id, err := cgroupID(p.cgroups["linkd"])
	if err != nil {
		return err
	}
	p.linkdCgroup = id
	for name := range p.dynamic {
		if err := p.tellLink(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// tellLink tells egressd, and the watcher before and after it.
func (p *phone) tellLink(ctx context.Context, name string) error {
	p.tell()
	err := p.change(ctx, func(ctx context.Context) (egress.Status, error) {
		return p.gate.Link(ctx, p.dynamic[name].index, p.facts(name))
	})
	if err != nil {
		return fmt.Errorf("cannot tell the gate of %s's link: %w", name, err)
	}
	p.told[name] = p.facts(name)
	return p.behindTheGate(func() error { return p.backstop.SetLink(name, p.facts(name), uidLinkd) })
}

// grantLease sets or takes back the address that linkd wished for.
func (p *phone) grantLease(ctx context.Context, l wish.Lease) error {
	err := p.mayLease(l)
	if err == nil {
		family := 0
		if l.Six {
			family = 1
		}
		var got leased
		if l.Address.IsValid() {
			got = leased{l.Address, l.Router, mono() + int64(l.For)}
		}
		err = p.setLease(ctx, l.Device, family, got)
	}
	outcome, reason := journal.Success, ""
	if err != nil {
		outcome, reason = journal.Refused, err.Error()
	}
	p.journal.Event(eventLease, l.Device, outcome, "address", l.Address.String(), "router", l.Router.String(), "for", l.For.String(), "reason", reason)
	return err
}

// mayLease judges a wish. What the network says decides about reachability and nothing else: an address that is one of the
// tunnel's, or a gateway's, would turn what is inside out, or the tunnel on itself.
func (p *phone) mayLease(l wish.Lease) error {
	if _, ok := p.dynamic[l.Device]; !ok {
		return fmt.Errorf("%s is no radio that leases its address", l.Device)
	}
	if !l.Address.IsValid() {
		return nil
	}
	if l.Six != l.Router.IsLinkLocalUnicast() || l.Address.IsLinkLocalUnicast() || l.Address == l.Router {
		return fmt.Errorf("%s behind %s is no address with a router", l.Address, l.Router)
	}
	// What neither the map of the gate nor egressd would take.
	facts := p.facts(l.Device)
	if l.Six {
		facts.Addr6, facts.Router6 = l.Address, l.Router
	} else {
		facts.Addr4, facts.Router4 = l.Address, l.Router
	}
	if err := facts.Check(); err != nil {
		return err
	}
	for _, n := range p.policy.Networks {
		for _, inner := range n.Inner {
			if inner.Contains(l.Address) || inner.Contains(l.Router) {
				return fmt.Errorf("%s behind %s is inside network %s", l.Address, l.Router, n.Name)
			}
		}
	}
	for _, c := range p.table.Classes {
		if c.Addr == l.Address || c.Addr == l.Router {
			return fmt.Errorf("%s is the address of gateway %s", c.Addr, c.Gateway)
		}
	}
	for name, d := range p.dynamic {
		for _, held := range d.leases {
			if name != l.Device && held.address == l.Address {
				return fmt.Errorf("%s is the address of %s", l.Address, name)
			}
		}
	}
	return nil
}

// setLease exchanges a family's address: the old one goes with its routes, the gate learns the new one, then it is set. No
// route is made of what the network says but to the router, and through it to the signed gateways: no network is local
// (TunnelCrack), no destination has another way (TunnelVision), and there is no default route.
func (p *phone) setLease(ctx context.Context, device string, family int, want leased) error {
	d := p.dynamic[device]
	old := d.leases[family]
	if old.address == want.address && old.router == want.router {
		d.leases[family].until = want.until
		return nil
	}
	if err := p.blackDo(func() error { return p.unroute(device, old) }); err != nil {
		return err
	}
	d.leases[family] = want
	// A severed gate is told when it is attached again; the floor drops until then.
	if !p.severed {
		err := p.tellLink(ctx, device)
		if refused := (*ask.RefusedError)(nil); errors.As(err, &refused) {
			d.leases[family] = leased{}
			return err
		} else if err != nil {
			// Nobody knows which facts are in force. This egressd ends; the next one is told the new ones.
			p.close(err.Error())
		}
	}
	err := p.blackDo(func() error { return p.route(device, want) })
	if err != nil {
		d.leases[family] = leased{}
		err = errors.Join(err, p.blackDo(func() error { return p.unroute(device, want) }))
		if !p.severed {
			err = errors.Join(err, p.tellLink(ctx, device))
		}
	}
	for i := range p.report.Devices {
		if r := &p.report.Devices[i]; r.Name == device {
			r.Addresses = nil
			for _, l := range d.leases {
				if l.address.IsValid() {
					r.Addresses = append(r.Addresses, netip.PrefixFrom(l.address, l.address.BitLen()).String())
				}
			}
		}
	}
	return err
}

// routes are what a lease brings, in the order they are made.
func (p *phone) routes(device string, l leased) []link.Route {
	host := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	var routes []link.Route
	if l.router.Is4() {
		routes = append(routes, link.Route{To: host(l.router), Device: device, Source: l.address})
	}
	var seen []netip.Addr
	for _, c := range p.table.Classes {
		if c.Addr.Is4() == l.router.Is4() && c.Addr.IsValid() && !slices.Contains(seen, c.Addr) {
			seen = append(seen, c.Addr)
			routes = append(routes, link.Route{To: host(c.Addr), Device: device, Via: l.router, Source: l.address})
		}
	}
	return routes
}

func (p *phone) route(device string, l leased) error {
	if !l.address.IsValid() {
		return nil
	}
	if err := link.AddAddr(device, netip.PrefixFrom(l.address, l.address.BitLen())); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	for _, r := range p.routes(device, l) {
		if err := link.AddRoute(r); err != nil {
			return err
		}
	}
	return nil
}

func (p *phone) unroute(device string, l leased) error {
	if !l.address.IsValid() {
		return nil
	}
	var all error
	for _, r := range slices.Backward(p.routes(device, l)) {
		all = errors.Join(all, link.DelRoute(r))
	}
	return errors.Join(all, link.DelAddr(device, netip.PrefixFrom(l.address, l.address.BitLen())))
}

// forgetLeases takes everything back before linkd starts anew: it knows of none, and while an address is there the kernel
// puts it on a discovery, which the gate then drops.
func (p *phone) forgetLeases(ctx context.Context) {
	for _, d := range p.dynamic {
		for family := range d.leases {
			d.leases[family].until = 0
		}
	}
	p.expireLeases(ctx)
}

// expireLeases takes back what is over, whether linkd lives or not.
func (p *phone) expireLeases(ctx context.Context) {
	for name, d := range p.dynamic {
		for family, l := range d.leases {
			if !l.address.IsValid() || mono() < l.until {
				continue
			}
			err := p.setLease(ctx, name, family, leased{})
			outcome, reason := journal.Success, ""
			if err != nil {
				outcome, reason = journal.Failure, err.Error()
			}
			p.journal.Event(eventLease, name, outcome, "address", l.address.String(), "over", time.Duration(mono()-l.until).String(), "reason", reason)
		}
	}
}

// linkdArgs name the radios of linkd, and linkdFiles are their sockets.
func (p *phone) linkdArgs() (args []string) {
	for _, name := range p.dynamicNames() {
		args = append(args, name+","+net.HardwareAddr(p.dynamic[name].mac[:]).String())
	}
	return args
}

func (p *phone) linkdFiles() (files []sandbox.Handed, err error) {
	for _, name := range p.dynamicNames() {
		files = append(files, p.dynamic[name].sockets...)
	}
	return files, nil
}

func (p *phone) dynamicNames() []string {
	var names []string
	for name := range p.dynamic {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
