package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Port describes one end of a veth pair.
type Port struct {
	Name string           // required, at most 15 bytes
	NS   *NS              // where it is born; nil means the calling thread's namespace
	MAC  net.HardwareAddr // nil means a random one
	MTU  int              // bytes; 0 means the kernel's 1500
}

// AddVeth makes a veth pair with each end born, down, in its own namespace:
// no end is ever seen anywhere else, under any name.
func AddVeth(a, b Port) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = a.Name, a.MAC, a.MTU
	if a.NS != nil {
		attrs.Namespace = netlink.NsFd(a.NS.FD())
	}
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerHardwareAddr, pair.PeerMTU = b.Name, b.MAC, uint32(b.MTU)
	// Left out, the peer would be born beside a, not in the caller's namespace.
	here := b.NS
	if here == nil {
		self, err := Self()
		if err != nil {
			return err
		}
		defer self.Close()
		here = self
	}
	pair.PeerNamespace = netlink.NsFd(here.FD())
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("cannot make devices %s and %s: %w", a.Name, b.Name, err)
	}
	return nil
}

// AddBridge makes an Ethernet bridge, down. A fixed MAC keeps it from taking
// the lowest of its ports' addresses each time a port comes or goes. It floods
// multicast: a bridge that snoops joins groups itself, and says so on the wire.
func AddBridge(name string, mac net.HardwareAddr) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, mac
	snoop := false
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snoop}); err != nil {
		return fmt.Errorf("cannot make bridge %s: %w", name, err)
	}
	return nil
}

// Remove deletes device name. A veth takes its other end with it.
func Remove(name string) error {
	return change(name, "remove", netlink.LinkDel)
}

// SetUp brings device name up.
func SetUp(name string) error {
	return change(name, "bring up", netlink.LinkSetUp)
}

// SetDown takes device name down; its routes go, its IPv6 addresses too.
func SetDown(name string) error {
	return change(name, "take down", netlink.LinkSetDown)
}

// MoveTo moves device name into namespace ns, keeping its name. The kernel
// takes it down and strips its addresses on the way, and its qdiscs with the
// classifiers on clsact; TCX programs stay.
func MoveTo(name string, ns *NS) error {
	return change(name, "move", func(l netlink.Link) error { return netlink.LinkSetNsFd(l, ns.FD()) })
}

// Rename gives device name a new name; it must be down.
func Rename(name, to string) error {
	return change(name, "rename", func(l netlink.Link) error { return netlink.LinkSetName(l, to) })
}

// SetMTU sets the largest packet, in bytes, that device name sends.
func SetMTU(name string, mtu int) error {
	return change(name, "set the MTU of", func(l netlink.Link) error { return netlink.LinkSetMTU(l, mtu) })
}

// SetMaster makes device name a port of bridge.
func SetMaster(name, bridge string) error {
	return change(name, "attach", func(l netlink.Link) error {
		master, err := netlink.LinkByName(bridge)
		if err != nil {
			return fmt.Errorf("bridge %s: %w", bridge, err)
		}
		return netlink.LinkSetMasterByIndex(l, master.Attrs().Index)
	})
}

// SetGSOMaxSegs bounds how many wire segments one frame handed to device name
// may stand for; 1 means that every frame has the size it has on a wire.
func SetGSOMaxSegs(name string, segments int) error {
	return change(name, "bound the segments of", func(l netlink.Link) error {
		return netlink.LinkSetGSOMaxSegs(l, segments)
	})
}

// SetQuiet keeps device name from speaking up by itself: no ARP, no multicast
// group joined. Set it before the device is up and before forwarding is on.
func SetQuiet(name string) error {
	return change(name, "quieten", func(l netlink.Link) error {
		return errors.Join(netlink.LinkSetARPOff(l), netlink.LinkSetMulticastOff(l))
	})
}

// SetSpeaking undoes [SetQuiet].
func SetSpeaking(name string) error {
	return change(name, "let speak", func(l netlink.Link) error {
		return errors.Join(netlink.LinkSetARPOn(l), netlink.LinkSetMulticastOn(l))
	})
}

// Received returns how many frames device name has received since it was made.
func Received(name string) (uint64, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("cannot read the counters of device %s: %w", name, err)
	}
	return l.Attrs().Statistics.RxPackets, nil
}

// Transmitted returns how many packets device name has ever sent. A TUN device sends to the holder of its descriptor.
func Transmitted(name string) (uint64, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("cannot find device %s: %w", name, err)
	}
	return l.Attrs().Statistics.TxPackets, nil
}

// Index returns the interface index of device name.
func Index(name string) (int, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("cannot find device %s: %w", name, err)
	}
	return l.Attrs().Index, nil
}

// Device is what List tells about one device.
type Device struct {
	Name  string
	Index int
	MAC   net.HardwareAddr
	Kind  string // "veth", "tun", "bridge", "device" for hardware and loopback …
	Up    bool   // administratively up
}

// List returns the devices of the calling thread's namespace, loopback
// included, in index order.
func List() ([]Device, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("cannot list devices: %w", err)
	}
	devices := make([]Device, 0, len(links))
	for _, l := range links {
		a := l.Attrs()
		devices = append(devices, Device{
			Name: a.Name, Index: a.Index, MAC: a.HardwareAddr, Kind: l.Type(),
			Up: a.RawFlags&unix.IFF_UP != 0,
		})
	}
	return devices, nil
}

// AddAddr gives device name an address with its prefix length. IPv6
// addresses skip duplicate address detection (nodad): they are usable at
// once, and nothing is sent to find out.
func AddAddr(name string, prefix netip.Prefix) error {
	return change(name, "give an address to", func(l netlink.Link) error {
		addr := &netlink.Addr{IPNet: ipNet(prefix)}
		if prefix.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("%s: %w", prefix, err)
		}
		return nil
	})
}

// AddNeighbour pins the link-layer address of ip on device name for ever, so
// that no ARP or neighbour discovery is ever sent for it. An older entry for
// ip is replaced.
func AddNeighbour(name string, ip netip.Addr, mac net.HardwareAddr) error {
	return change(name, "pin a neighbour on", func(l netlink.Link) error {
		family := unix.AF_INET
		if ip.Is6() {
			family = unix.AF_INET6
		}
		err := netlink.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT,
			IP: ip.AsSlice(), HardwareAddr: mac,
		})
		if err != nil {
			return fmt.Errorf("%s at %s: %w", ip, mac, err)
		}
		return nil
	})
}

// Route is one entry of the main routing table.
type Route struct {
	To     netip.Prefix // required; 0.0.0.0/0 or ::/0 is the default route
	Device string       // required
	Via    netip.Addr   // next hop; zero means that To is on the link itself
	Source netip.Addr   // preferred source address; zero lets the kernel choose
	MTU    int          // bytes; 0 means the device's
	Metric int          // of several, the lowest is taken; 0 means the kernel's: 0 in IPv4, 1024 in IPv6
}

// AddRoute adds a route, replacing one to the same destination with the same metric.
func AddRoute(r Route) error {
	return change(r.Device, "route through", func(l netlink.Link) error {
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(r.To), MTU: r.MTU, Priority: r.Metric}
		if r.Via.IsValid() {
			route.Gw = r.Via.AsSlice()
		} else if r.To.Addr().Is4() {
			route.Scope = netlink.SCOPE_LINK
		}
		if r.Source.IsValid() {
			route.Src = r.Source.AsSlice()
		}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("%s: %w", r.To, err)
		}
		return nil
	})
}

// Sysctl writes value to a kernel setting named with slashes or dots
// ("net.ipv4.ip_forward"). Settings below net are those of the calling
// thread's namespace; a device name with a dot in it needs the slash form.
func Sysctl(key, value string) error {
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	path := filepath.Join("/proc/sys", filepath.Clean("/"+key))
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("cannot set %s: %w", key, err)
	}
	_, err = f.WriteString(value)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("cannot set %s to %q: %w", key, value, err)
	}
	return nil
}

// change finds a device by name and does one thing to it; the error names
// both.
func change(name, what string, do func(netlink.Link) error) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("cannot %s device %s: %w", what, name, err)
	}
	if err := do(l); err != nil {
		return fmt.Errorf("cannot %s device %s: %w", what, name, err)
	}
	return nil
}

// ipNet converts a prefix and keeps its host bits: an address on a device is
// written with both.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
