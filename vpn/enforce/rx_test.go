package enforce

import (
	"github.com/vishvananda/netlink"
)

func rxPackets(dev string) (uint64, error) {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return 0, err
	}
	return l.Attrs().Statistics.RxPackets, nil
}
