package leak

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"rempart/board/netns"
	"rempart/board/scenario"
	"rempart/board/scenario/matrix"
	"rempart/internal/link"
	"rempart/tools/lab/bringup"
	"rempart/vpn/enforce"
)

// supervisors are the control groups of whoever would repair what is taken away, or lower a radio for it; the watcher first.
var supervisors = []string{"watchd", "init", "egressd"}

// Strip freezes a running handset's supervisors, so that they repair nothing, then takes layers away from outside, as only the
// desk's root can. The guard is not taken away: senders are started where it does not reach.
func Strip(ctx context.Context, w *netns.World, m netns.Machine, layers []scenario.Layer) error {
	for _, group := range supervisors {
		if err := os.WriteFile(filepath.Join(m.Paths.Cgroup, group, "cgroup.freeze"), []byte("1"), 0); err != nil {
			return fmt.Errorf("cannot freeze %s of the twin: %w", group, err)
		}
	}
	black, err := link.Open(m.Paths.Black)
	if err != nil {
		return err
	}
	defer black.Close()
	index := 0
	if err := black.Do(func() (err error) { index, err = link.Index(m.Radio.Device); return err }); err != nil {
		return err
	}
	if slices.Contains(layers, scenario.Gate) {
		if err := black.Do(func() error { return enforce.Sever(index) }); err != nil {
			return err
		}
	}
	if slices.Contains(layers, scenario.Floor) {
		if err := in(ctx, m.Paths.Black, "tc", "qdisc", "del", "dev", m.Radio.Device, "clsact"); err != nil {
			return fmt.Errorf("cannot take the floor off the twin: %w", err)
		}
	}
	if slices.Contains(layers, scenario.Routes) {
		// A handset that admits nobody has not even a way to its router.
		if err := black.Do(func() error {
			var errs []error
			for _, via := range []netip.Addr{m.Radio.Router4, m.Radio.Router6} {
				errs = append(errs, link.AddRoute(link.Route{To: netip.PrefixFrom(via, via.BitLen()), Device: m.Radio.Device}))
			}
			return errors.Join(errs...)
		}); err != nil {
			return err
		}
	}
	if err := stripBackstop(ctx, m, black, layers); err != nil {
		return err
	}
	if slices.Contains(layers, scenario.Hooks) {
		if err := enforce.RemoveLevels(m.Paths.Cgroup); err != nil {
			return err
		}
	}
	if slices.Contains(layers, scenario.Jail) {
		return giveRedRadios(ctx, w, m)
	}
	return nil
}

// in runs a command of the desk in a network.
func in(ctx context.Context, ns string, argv ...string) error {
	out, err := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + ns}, argv...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", argv[0], err, out)
	}
	return nil
}

// later is the metric of a way out that is not the first.
const later = 2000

// giveRedRadios puts a device of the radio's name in red, with the radio's address and way out, and another in the place of the
// tunnel's device.
func giveRedRadios(ctx context.Context, w *netns.World, m netns.Machine) error {
	red, err := link.Open(m.Paths.Red)
	if err != nil {
		return err
	}
	defer red.Close()
	own, err := link.Open(m.Paths.Own)
	if err != nil {
		return err
	}
	defer own.Close()
	// The tunnel's device stays, by another name: the tunnel's descriptor is of no concern here. A handset that has not come
	// that far has none.
	tunnelled := false
	if err := red.Do(func() error {
		if _, err := link.Index(matrix.TunnelDevice); err != nil {
			return nil
		}
		tunnelled = true
		return errors.Join(link.SetDown(matrix.TunnelDevice), link.Rename(matrix.TunnelDevice, "old0"))
	}); err != nil {
		return err
	}
	devices := []struct{ plug, name string }{{"red0", m.Radio.Device}}
	if tunnelled {
		devices = append(devices, struct{ plug, name string }{"red1", matrix.TunnelDevice})
	}
	for i, d := range devices {
		if err := w.HotPlug(ctx, m.Name, d.plug); err != nil {
			return err
		}
		if err := own.Do(func() error { return link.MoveTo(d.plug, red) }); err != nil {
			return err
		}
		if err := red.Do(func() error {
			if err := link.Rename(d.plug, d.name); err != nil {
				return err
			}
			return configure(d.name, m, i*later)
		}); err != nil {
			return err
		}
	}
	// What red would have sent into the tunnel goes to the air as well.
	return red.Do(func() error {
		var errs []error
		for _, inner := range bringup.Inner(m.Number) {
			bits, via := 16, m.Radio.Router4
			if inner.Is6() {
				bits, via = 64, m.Radio.Router6
			}
			p, err := inner.Prefix(bits)
			errs = append(errs, err, link.AddRoute(link.Route{To: p, Device: m.Radio.Device, Via: via}))
		}
		return errors.Join(errs...)
	})
}

// configure sets a device up in the calling thread's namespace as the radio is in black, with the machine's addresses and the way
// to the router. Of several, the one of the lowest metric is the way out.
func configure(device string, m netns.Machine, metric int) error {
	next, err := net.ParseMAC(m.Radio.RouterMAC)
	if err != nil {
		return err
	}
	err = errors.Join(link.AddAddr(device, netip.PrefixFrom(m.Radio.V4.Addr(), 32)), link.AddAddr(device, netip.PrefixFrom(m.Radio.V6.Addr(), 128)),
		link.SetUp(device))
	for _, via := range []netip.Addr{m.Radio.Router4, m.Radio.Router6} {
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if via.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		err = errors.Join(err, link.AddNeighbour(device, via, next),
			link.AddRoute(link.Route{To: netip.PrefixFrom(via, via.BitLen()), Device: device, Metric: metric}),
			link.AddRoute(link.Route{To: all, Device: device, Via: via, Metric: metric}))
	}
	return err
}
