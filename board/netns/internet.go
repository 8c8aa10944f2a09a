package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"rempart/internal/link"
)

// The internet of a world: one link (the air) with a router on it, and hosts
// behind the router. The prefixes are those kept for documentation (RFC 5737,
// RFC 3849).
const (
	bridgeName = "br0"
	radioMTU   = 1500 // bytes
)

var (
	routerMAC = net.HardwareAddr{0x02, 0x52, 0x45, 0x4d, 0x50, 0xfe}
	router4   = netip.MustParsePrefix("203.0.113.254/24")
	// The modems' way out.
	modemRouter4 = netip.MustParsePrefix("192.0.2.254/24")
	modemRouter6 = netip.MustParsePrefix("2001:db8:2::fe/64")

	router6 = netip.MustParsePrefix("2001:db8:113::fe/64")
)

// InternetHosts returns the addresses of the hosts behind the router. They
// answer pings and refuse connections, as a host without services does.
func InternetHosts() []netip.Addr {
	return []netip.Addr{
		netip.MustParseAddr("198.51.100.7"),
		netip.MustParseAddr("198.51.100.53"),
		netip.MustParseAddr("2001:db8:51::7"),
	}
}

// Radio is where a machine is on the internet's link. It follows from the
// machine's number alone.
type Radio struct {
	Device     string       `json:"device"` // the machine's name for it
	Port       string       `json:"port"`   // the device at the other end, in the internet's namespace
	MAC        string       `json:"mac"`
	V4         netip.Prefix `json:"v4"`
	V6         netip.Prefix `json:"v6"`
	Router4    netip.Addr   `json:"router4"`
	Router6    netip.Addr   `json:"router6"`
	RouterMAC  string       `json:"router_mac"`
	DHCP       bool         `json:"dhcp,omitempty"` // addresses are leased, and V6 holds the prefix alone
	machineMAC net.HardwareAddr
}

// RadioOf returns the radio of machine name with a number from 1 to 250, the
// last part of both its addresses (in decimal digits in IPv6 too: 11 is
// 203.0.113.11 and 2001:db8:113::11).
func RadioOf(name string, number int) Radio {
	mac := net.HardwareAddr{0x02, 0x52, 0x45, 0x4d, 0x00, byte(number)}
	n := strconv.Itoa(number)
	return Radio{
		Device: "wwan0", Port: "radio-" + name, MAC: mac.String(), machineMAC: mac,
		V4: netip.MustParsePrefix("203.0.113." + n + "/24"), V6: netip.MustParsePrefix("2001:db8:113::" + n + "/64"),
		Router4: router4.Addr(), Router6: router6.Addr(), RouterMAC: routerMAC.String(),
	}
}

// modemDevice is a device that every machine knows and that may be plugged in.
const modemDevice = "usb1"

// ModemOf returns the modem of a machine: as a radio, but on networks of its own
// (RFC 5737, RFC 3849), and there only while it is plugged in.
func ModemOf(name string, number int) Radio {
	r := RadioOf(name, number)
	n := strconv.Itoa(number)
	r.Device, r.Port = modemDevice, hotPort(name, modemDevice)
	r.V4, r.V6 = netip.MustParsePrefix("192.0.2."+n+"/24"), netip.MustParsePrefix("2001:db8:2::"+n+"/64")
	r.Router4, r.Router6 = modemRouter4.Addr(), modemRouter6.Addr()
	r.machineMAC = hotMAC(r.machineMAC)
	r.MAC = r.machineMAC.String()
	return r
}

func hotPort(machine, device string) string { return "hot-" + machine + "-" + device }

func hotMAC(mac net.HardwareAddr) net.HardwareAddr {
	hot := slices.Clone(mac)
	hot[4] = 1
	return hot
}

// argument is the radio as init is told of it on its command line.
func (r Radio) argument() string {
	if r.DHCP {
		return fmt.Sprintf("radio=%s,dhcp,%s", r.Device, r.MAC)
	}
	word := "radio"
	if r.Device == modemDevice {
		word = "modem"
	}
	return fmt.Sprintf(word+"=%s,%s,%s,%s,%s,%s", r.Device, r.V4, r.V6, r.Router4, r.Router6, r.RouterMAC)
}

// buildInternet makes the bridge, the router and the hosts in the calling
// thread's network namespace, which must be new.
//
// What the internet sends of its own accord would be noise in every capture
// and every counter. So the router resolves nothing (neighbours are permanent,
// the device does no ARP), joins no multicast group, has no link-local address
// (without one it can send no IPv6 redirect), and ports have no IPv6 at all.
func buildInternet() error {
	if err := errors.Join(
		link.Sysctl("net/ipv6/conf/default/disable_ipv6", "1"),
		link.Sysctl("net/ipv4/ip_forward", "1"),
		link.Sysctl("net/ipv4/conf/all/send_redirects", "0"),
		link.Sysctl("net/ipv4/conf/default/send_redirects", "0"),
		link.Sysctl("net/ipv4/conf/all/rp_filter", "0"),
		link.Sysctl("net/ipv4/conf/default/rp_filter", "0"),
		link.Sysctl("net/ipv4/icmp_ratelimit", "0"), // an attack that is answered should always be
		link.Sysctl("net/ipv6/icmp/ratelimit", "0"),
		link.SetUp("lo"),
		link.AddBridge(bridgeName, routerMAC),
	); err != nil {
		return err
	}
	err := errors.Join(
		link.SetQuiet(bridgeName),
		// Only now: a device that may do multicast joins the routers' groups.
		link.Sysctl("net/ipv6/conf/all/forwarding", "1"),
		link.Sysctl("net/ipv6/conf/"+bridgeName+"/addr_gen_mode", "1"), // none
		link.Sysctl("net/ipv6/conf/"+bridgeName+"/disable_ipv6", "0"),
		link.SetUp(bridgeName),
		link.AddAddr(bridgeName, router4),
		link.AddAddr(bridgeName, router6),
		link.AddAddr(bridgeName, modemRouter4),
		link.AddAddr(bridgeName, modemRouter6),
	)
	for _, host := range InternetHosts() {
		err = errors.Join(err, link.AddAddr("lo", netip.PrefixFrom(host, host.BitLen())))
	}
	if err != nil {
		return fmt.Errorf("cannot make the internet: %w", err)
	}
	return nil
}

// plug makes the radio of a machine: its port here, ready, and the device in
// the machine's namespace, down. Frames have the sizes and checksums that they
// would have on the air, unless offload is asked for.
func (r Radio) plug(machine *link.NS, offload bool) error {
	err := link.AddVeth(
		link.Port{Name: r.Port, MTU: radioMTU},
		link.Port{Name: r.Device, NS: machine, MAC: r.machineMAC, MTU: radioMTU},
	)
	if err != nil {
		return err
	}
	if !offload {
		err = errors.Join(
			link.SetGSOMaxSegs(r.Port, 1), link.SetTXChecksum(r.Port, false),
			machine.Do(func() error {
				return errors.Join(link.SetGSOMaxSegs(r.Device, 1), link.SetTXChecksum(r.Device, false))
			}))
	}
	err = errors.Join(err,
		link.SetMaster(r.Port, bridgeName),
		link.SetUp(r.Port),
	)
	if !r.DHCP { // else the router asks for them
		err = errors.Join(err, link.AddNeighbour(bridgeName, r.V4.Addr(), r.machineMAC), link.AddNeighbour(bridgeName, r.V6.Addr(), r.machineMAC))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cannot plug in %s: %w", r.Port, err), r.unplug())
	}
	return nil
}

// hotPlug makes another device appear, down, in a machine's own network
// namespace, as a modem that is plugged in while it runs. Its other end is a
// port of the air like any, named after machine and device.
func (r Radio) hotPlug(machine, device string, pid int, offload bool) (Radio, error) {
	extra := r
	extra.Device, extra.Port = device, hotPort(machine, device)
	if len(device) == 0 || len(extra.Port) > 15 || strings.ContainsAny(device, "/ \t\n:%") {
		return Radio{}, fmt.Errorf("cannot plug in device %q: at most %d bytes, no space, slash, colon", device, 15-len("hot--")-len(machine))
	}
	extra.machineMAC = hotMAC(r.machineMAC)
	extra.MAC = extra.machineMAC.String()
	ns, err := link.OpenPID(pid)
	if err != nil {
		return Radio{}, err
	}
	defer ns.Close()
	if err := link.AddVeth(link.Port{Name: extra.Port, MTU: radioMTU},
		link.Port{Name: device, NS: ns, MAC: extra.machineMAC, MTU: radioMTU}); err != nil {
		return Radio{}, err
	}
	if !offload {
		err = errors.Join(link.SetGSOMaxSegs(extra.Port, 1), link.SetTXChecksum(extra.Port, false))
	}
	// The router goes on looking for the machine at its radio; a modem has addresses of its own.
	if device == modemDevice {
		err = errors.Join(err, link.AddNeighbour(bridgeName, r.V4.Addr(), extra.machineMAC), link.AddNeighbour(bridgeName, r.V6.Addr(), extra.machineMAC))
	}
	if err := errors.Join(err, link.SetMaster(extra.Port, bridgeName), link.SetUp(extra.Port)); err != nil {
		return Radio{}, errors.Join(fmt.Errorf("cannot plug in %s: %w", device, err), extra.unplug())
	}
	return extra, nil
}

// unplug removes the radio, at both ends. One that went with its machine's
// namespace is not an error.
func (r Radio) unplug() error {
	if _, err := link.Index(r.Port); err != nil {
		return nil
	}
	if err := link.Remove(r.Port); err != nil {
		if _, gone := link.Index(r.Port); gone == nil {
			return err
		}
	}
	return nil
}
