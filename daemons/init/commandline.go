package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// radio is one black device as the board describes it. Nothing here is trusted: it is what DHCP would say. A wrong address
// costs reachability, never the gate.
type radio struct {
	name       string
	v4, v6     netip.Prefix
	via4, via6 netip.Addr
	viaMAC     net.HardwareAddr // permanent neighbour: there is no ARP and no ND on a device with fixed addresses

	dhcp bool             // addresses and router come from the network, and the others stay empty
	mac  net.HardwareAddr // the link address to use then; nil: a random one

	later bool // it need not be there at the boot
}

// maxRadios bounds the devices of one handset.
const maxRadios = 8

// parseCommandLine reads the radios from the kernel command line, words of the form
// radio=DEVICE,V4/LEN,V6/LEN,VIA4,VIA6,VIAMAC, or radio=DEVICE,dhcp[,MAC] for one that leases its addresses. A
// word modem=… has the fields of a fixed radio and names one that may come and go. Other words belong to others and are passed
// over.
func parseCommandLine(args []string) ([]radio, error) {
	var radios []radio
	seen := map[string]bool{}
	for _, a := range args {
		text, ok := strings.CutPrefix(a, "radio=")
		later := false
		if !ok {
			if text, later = strings.CutPrefix(a, "modem="); !later {
				continue
			}
		}
		r, err := parseRadio(text)
		if r.later = later; err == nil && r.later && r.dhcp {
			err = errors.New("a modem that comes and goes cannot lease its address: linkd is given its radios once")
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the radio %q: %w", text, err)
		}
		if seen[r.name] || len(radios) == maxRadios {
			return nil, fmt.Errorf("cannot read the radio %q: it is named twice or there are more than %d", text, maxRadios)
		}
		seen[r.name] = true
		radios = append(radios, r)
	}
	return radios, nil
}

func parseRadio(text string) (radio, error) {
	f := strings.Split(text, ",")
	r := radio{name: f[0], dhcp: len(f) > 1 && f[1] == "dhcp"}
	if len(f) != 6 && !r.dhcp || len(f) > 3 && r.dhcp {
		return radio{}, fmt.Errorf("it has %d fields, want 6, or 2 to 3 with dhcp", len(f))
	}
	if len(r.name) < 1 || len(r.name) > 15 || strings.ContainsAny(r.name, "/ \t\n:%") || r.name == "." || r.name == ".." {
		return radio{}, fmt.Errorf("%q is not a device name", r.name)
	}
	if r.dhcp {
		if len(f) == 2 {
			return r, nil
		}
		var err error
		if r.mac, err = net.ParseMAC(f[2]); err != nil || len(r.mac) != 6 || r.mac[0]&1 != 0 || r.mac.String() == "00:00:00:00:00:00" {
			return radio{}, fmt.Errorf("%q is not the Ethernet address of a device", f[2])
		}
		return r, nil
	}
	var err error
	if r.v4, err = prefix(f[1], true); err != nil {
		return radio{}, err
	}
	if r.v6, err = prefix(f[2], false); err != nil {
		return radio{}, err
	}
	if r.via4, err = addr(f[3], true); err != nil {
		return radio{}, err
	}
	if r.via6, err = addr(f[4], false); err != nil {
		return radio{}, err
	}
	if r.viaMAC, err = net.ParseMAC(f[5]); err != nil || len(r.viaMAC) != 6 {
		return radio{}, fmt.Errorf("%q is not an Ethernet address", f[5])
	}
	return r, nil
}

func prefix(s string, v4 bool) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, err
	}
	_, err = addr(p.Addr().String(), v4)
	return p, err
}

func addr(s string, v4 bool) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, err
	}
	if a.Is4() != v4 || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Is4In6() {
		return a, fmt.Errorf("%s is not a unicast address of its family", a)
	}
	return a, nil
}
