package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
	"rempart/vpn/egress"
	"rempart/vpn/enforce"
	"rempart/vpn/enforce/nft"
	"rempart/vpn/enforce/xfrm"
)

// Whom the sends are for: the gateway, and a host that no one may reach.
var (
	sendGateways = []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:113::1")}
	sendHosts    = []netip.Addr{netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8:113::7")}
	sendOwn      = []netip.Prefix{netip.MustParsePrefix("203.0.113.11/24"), netip.MustParsePrefix("2001:db8:113::11/64")}
)

const (
	sendPort   = 51820
	sendDevice = "wwan0"
)

// What a user would write instead of our layers. The first is all that is needed to block a send.
const (
	dropRules       = `table inet user { chain out { type filter hook output priority 0; policy accept; drop; }; }`
	killSwitchRules = `table inet user { chain out { type filter hook output priority 0; policy drop; oifname lo accept; ip daddr 203.0.113.1 udp dport 51820 accept; ip6 daddr 2001:db8:113::1 udp dport 51820 accept; }; }`
)

// place is a namespace with a device, the namespace at its other end, and a control group with one below, where the
// sockets are opened.
type place struct {
	name    string
	ns, far *link.NS
	ifindex int
	own     string // this process's control group, before and after
	handset string
	tunneld string
	id      uint64 // of the control group tunneld
	undo    []func() error
}

func (p *place) later(fn func() error) { p.undo = append(p.undo, fn) }

// close takes all away again, the last first.
func (p *place) close() (err error) {
	for i := len(p.undo) - 1; i >= 0; i-- {
		err = errors.Join(err, p.undo[i]())
	}
	p.undo = nil
	return err
}

// sendArms makes every place and the sockets in it.
func sendArms() (arms []*arm, closeAll func() error, err error) {
	var places []*place
	closeAll = func() (err error) {
		for _, a := range arms {
			err = errors.Join(err, a.close())
		}
		for i := len(places) - 1; i >= 0; i-- {
			err = errors.Join(err, places[i].close())
		}
		return err
	}
	for i, layers := range []struct {
		name string
		lay  func(*place) error
		ways []string
	}{
		{placeNone, func(*place) error { return nil }, []string{wayConnected, wayUnconnected}},
		{placeDrop, func(p *place) error { return p.rules(dropRules) }, []string{wayBlocked}},
		{placeKillSwitch, func(p *place) error { return p.rules(killSwitchRules) }, []string{wayConnected, wayUnconnected}},
		{placeHooks, (*place).gateAndHooks, []string{wayConnected, wayUnconnected}},
		{placeAll, (*place).allLayers, []string{wayConnected, wayUnconnected, wayBlocked}},
	} {
		p, err := newPlace(layers.name, i)
		if p != nil {
			places = append(places, p)
		}
		if err == nil {
			err = layers.lay(p)
		}
		if err != nil {
			return arms, closeAll, fmt.Errorf("%s: %w", layers.name, err)
		}
		more, err := p.arms(layers.ways)
		arms = append(arms, more...)
		if err != nil {
			return arms, closeAll, err
		}
	}
	return arms, closeAll, nil
}

// newPlace makes a place without layers. What it returns must be closed, also with an error.
func newPlace(name string, number int) (p *place, err error) {
	p = &place{name: name}
	for _, ns := range []**link.NS{&p.ns, &p.far} {
		made, err := link.Create("")
		if err != nil {
			return p, err
		}
		*ns = made
		p.later(made.Close)
	}
	if p.own, err = ownCgroupDir(); err != nil {
		return p, err
	}
	p.handset = filepath.Join(p.own, fmt.Sprintf("rempart-bench-%d-%d", os.Getpid(), number))
	p.tunneld = filepath.Join(p.handset, "tunneld")
	for _, dir := range []string{p.handset, p.tunneld} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return p, fmt.Errorf("cannot make a control group: %w", err)
		}
		p.later(func() error { return os.Remove(dir) })
	}
	var st unix.Stat_t
	if err := unix.Stat(p.tunneld, &st); err != nil {
		return p, err
	}
	p.id = st.Ino
	return p, p.cable()
}

// cable connects the device: both of its ends are up, only ours has addresses, and the other drops what it gets.
func (p *place) cable() error {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	err := p.ns.Do(func() (err error) {
		if err := link.AddVeth(link.Port{Name: sendDevice}, link.Port{Name: "far0", NS: p.far, MAC: mac}); err != nil {
			return err
		}
		p.ifindex, err = link.Index(sendDevice)
		return err
	})
	if err != nil {
		return err
	}
	err = p.far.Do(func() error {
		i, err := link.Index("far0")
		if err != nil {
			return err
		}
		return errors.Join(link.Sysctl("net.ipv6.conf.far0.disable_ipv6", "1"), enforce.AttachFloor(i), link.SetUp("far0"))
	})
	if err != nil {
		return err
	}
	return p.ns.Do(func() error {
		steps := []error{link.Sysctl("net.ipv6.conf."+sendDevice+".accept_dad", "0"), link.SetUp("lo"), link.SetUp(sendDevice)}
		for i := range sendOwn {
			steps = append(steps, link.AddAddr(sendDevice, sendOwn[i]), link.AddNeighbour(sendDevice, sendGateways[i], mac), link.AddNeighbour(sendDevice, sendHosts[i], mac))
		}
		return errors.Join(steps...)
	})
}

// rules lays a table that a user would write.
func (p *place) rules(rules string) error {
	return p.ns.Do(func() error {
		if out, err := exec.Command("nft", rules).CombinedOutput(); err != nil {
			return fmt.Errorf("cannot lay the rules: %w: %s", err, strings.TrimSpace(string(out)))
		}
		return nil
	})
}

// policy admits the gateway from the place's own control group.
func (p *place) policy() (all egress.Policy) {
	for _, a := range sendGateways {
		all.Classes = append(all.Classes, egress.Class{Gateway: "gateway", Addr: a, Proto: egress.UDP, Port: sendPort, Purpose: egress.Tunnel, Cgroup: p.id})
	}
	return all
}

// gateAndHooks puts floor and gate on the device and the level hooks on the control group, released to the gateway.
func (p *place) gateAndHooks() error {
	pins, unmount, err := bpffs()
	if err != nil {
		return err
	}
	p.later(unmount)
	err = p.ns.Do(func() error {
		if err := asEgressd(); err != nil {
			return err
		}
		if err := enforce.AttachFloor(p.ifindex); err != nil {
			return err
		}
		g, err := enforce.Attach(p.ifindex, pins)
		if err != nil {
			return err
		}
		p.later(g.Release)
		return g.Swap(p.policy())
	})
	if err != nil {
		return err
	}
	record, err := enforce.OpenRecord(pins)
	if err != nil {
		return err
	}
	p.later(record.Close)
	cookie, err := p.ns.Cookie()
	if err != nil {
		return err
	}
	n := egress.LevelNetwork{Name: "gateways", Netns: cookie}
	for _, a := range sendGateways {
		n.Prefixes = append(n.Prefixes, netip.PrefixFrom(a, a.BitLen()))
	}
	table := egress.LevelTable{Networks: []egress.LevelNetwork{n}, Rows: []egress.LevelRow{{Name: "tunneld", Cgroup: p.id, Netns: cookie, Send: 1, Receive: 1}}}
	return p.within(func() error {
		return p.ns.Do(func() error {
			if err := asEgressd(); err != nil {
				return err
			}
			levels, err := enforce.AttachLevels(p.handset, pins, record)
			if err != nil {
				return err
			}
			p.later(levels.Release)
			return levels.Swap(table)
		})
	})
}

// allLayers are the gate, the hooks, the nft table of a black device and the IPsec default.
func (p *place) allLayers() error {
	if err := p.gateAndHooks(); err != nil {
		return err
	}
	return p.ns.Do(func() error {
		owner, err := nft.Open()
		if err != nil {
			return err
		}
		p.later(owner.Close)
		return errors.Join(owner.Put(nft.Released(sendDevice, p.policy(), uint32(os.Getuid()), sendOwn[0].Addr(), sendOwn[1].Addr())), xfrm.Put(xfrm.Classes(p.policy())))
	})
}

// within runs fn while this process is in the place's control group.
func (p *place) within(fn func() error) (err error) {
	join := func(dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("cannot join a control group: %w", err)
		}
		return nil
	}
	if err := join(p.tunneld); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, join(p.own)) }()
	return fn()
}

// arms opens the place's sockets: they stay of its namespace and control group.
func (p *place) arms(ways []string) (all []*arm, err error) {
	err = p.within(func() error {
		return p.ns.Do(func() error {
			for f, family := range []string{"IPv4", "IPv6"} {
				for _, way := range ways {
					target, want := sendGateways[f], unix.Errno(0)
					if way == wayBlocked {
						target, want = sendHosts[f], unix.EPERM
					}
					a, err := p.newArm(armName(p.name, way, family), netip.AddrPortFrom(target, sendPort), way == wayConnected, want)
					if err != nil {
						return err
					}
					all = append(all, a)
				}
			}
			return nil
		})
	})
	return all, err
}
