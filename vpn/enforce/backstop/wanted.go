package backstop

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"rempart/vpn/egress"
	"rempart/vpn/enforce/nft"
	"rempart/vpn/enforce/xfrm"
)

// Place is a kind of network namespace.
type Place string

// The places.
const (
	Black Place = "black"
	Red   Place = "red"
	Other Place = "other" // void, and init's own: no one speaks there
)

// Layer is one of the two.
type Layer string

// The layers.
const (
	NFT  Layer = "nft"
	XFRM Layer = "xfrm"
)

// Wanted is what both layers should be. The zero value lets nothing through anywhere but
// on loopback.
type Wanted struct {
	// Devices are black's, each with a table of its own.
	Devices []string
	// Admitted are the classes of the signed policy; none while the phone is closed.
	Admitted egress.Policy
	// UID is who opens the sockets that may send in them.
	UID uint32
	// Own are the addresses of the devices with fixed ones, Links those of the devices that
	// lease them. Neither: nothing passes the device.
	Own   map[string][]netip.Addr
	Links map[string]nft.Link
	// Tunnel is red's device, Networks what lies behind it.
	Tunnel   string
	Networks []netip.Prefix
	// Input are the services of this machine in red, Forward those that it passes on
	// from the tunnel into the tunnel; none on a handset.
	Input, Forward []nft.Port
}

// tables are what nf_tables should hold in a place, and nothing else.
func (w Wanted) tables(p Place) []nft.Table {
	switch p {
	case Black:
		var all []nft.Table
		for _, d := range w.Devices {
			all = append(all, nft.Released(d, w.Admitted, w.UID, w.own(d)...).WithLink(w.Links[d]))
		}
		return all
	case Red:
		return []nft.Table{nft.Red(w.Tunnel, w.Input, w.Forward)}
	}
	return nil
}

// own are the addresses of a device from and to which the classes may be.
func (w Wanted) own(device string) []netip.Addr {
	all := slices.Clone(w.Own[device])
	for _, a := range []netip.Addr{w.Links[device].Facts.Addr4, w.Links[device].Facts.Addr6} {
		if a.IsValid() {
			all = append(all, a)
		}
	}
	return all
}

// policies are what the IPsec policies should be in a place.
func (w Wanted) policies(p Place) []xfrm.Policy {
	switch p {
	case Black:
		all := xfrm.Classes(w.Admitted)
		for _, d := range w.Devices {
			for _, p := range xfrm.Link(w.Links[d].Facts) {
				if !slices.Contains(all, p) { // two devices have some in common
					all = append(all, p)
				}
			}
		}
		return all
	case Red:
		return xfrm.Networks(w.Networks, len(w.Forward) > 0)
	}
	return nil
}

// ReadBack compares the layers of the calling thread's network namespace, which is a p,
// with w. owner is the netlink port that must own the tables there; 0 means any.
func ReadBack(p Place, w Wanted, owner uint32, layers ...Layer) error {
	var all error
	for _, l := range layers {
		var err error
		switch l {
		case NFT:
			err = nft.ReadBack(owner, w.tables(p)...)
		case XFRM:
			err = xfrm.ReadBack(w.policies(p))
		default:
			err = fmt.Errorf("unknown layer %q", l)
		}
		if err != nil {
			all = errors.Join(all, fmt.Errorf("%s: %w", p, err))
		}
	}
	return all
}
