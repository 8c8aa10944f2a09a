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
	"time"

	"rempart/board/netns"
	"rempart/board/scenario"
	"rempart/internal/link"
	"rempart/tools/lab/bringup"
	"rempart/vpn/enforce"
)

// twin is a handset of a throwaway world with layers taken away.
type twin struct {
	*board
	world    string
	stripped []scenario.Layer
}

// Twin brings a world with one handset up beside this one and strips the handset. Its TPMs and keys are kept in the test's
// folder from one twin to the next: only the first pays for their making.
func (b *board) Twin(ctx context.Context, stripped []scenario.Layer) (scenario.Twin, error) {
	name := b.w.Name
	if len(name) > 26 {
		name = name[:26]
	}
	name += "-twin"
	b.options.Log(fmt.Sprintf("a twin without %v", stripped))
	w, err := netns.Start(ctx, name, filepath.Join(b.dir, "twin"))
	if err != nil {
		return nil, err
	}
	t := &twin{world: name, stripped: stripped}
	fail := func(err error) (scenario.Twin, error) { return nil, errors.Join(err, t.Close()) }
	err = bringup.Up(ctx, w, bringup.Options{State: filepath.Join(b.dir, "twin"), Handsets: 1, Bin: b.options.Bin, PIN: b.options.PIN}, nil)
	if err != nil {
		return fail(err)
	}
	status, err := w.Status(ctx)
	if err != nil {
		return fail(err)
	}
	m, ok := status.Machine("a")
	if !ok {
		return fail(errors.New("the twin's world has no handset a"))
	}
	t.board = &board{options: b.options, w: w, name: m.Name, dir: b.dir, self: b.self, site: siteOf(status, m)}
	if err := t.strip(ctx, m); err != nil {
		return fail(err)
	}
	return t, nil
}

// Close removes the twin's world.
func (t *twin) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return netns.Down(ctx, t.world)
}

// Start runs the sender in the handset's network only, not in its control group: the guard, which is of the group, is not there.
func (t *twin) Start(ctx context.Context, c scenario.Command) (scenario.Process, error) {
	if !slices.Contains(t.stripped, scenario.Guard) {
		return t.board.Start(ctx, c)
	}
	m, err := t.w.Machine(ctx, t.name)
	if err != nil {
		return nil, err
	}
	ns := map[scenario.Where]string{scenario.Red: m.Paths.Red, scenario.Black: m.Paths.Black, scenario.Init: m.Paths.Own}[c.Where]
	return startProcess(exec.Command("nsenter", append([]string{"--net=" + ns}, c.Argv...)...))
}

// Counters says that there are none: who would tell them is frozen.
func (t *twin) Counters(context.Context) (scenario.Counters, error) {
	return scenario.Counters{}, errors.New("the twin's supervisor is frozen")
}

// Restart strips the handset again, which comes up whole.
func (t *twin) Restart(ctx context.Context) error {
	if err := errors.Join(t.board.Restart(ctx), t.WaitUp(ctx)); err != nil {
		return err
	}
	m, err := t.w.Machine(ctx, t.name)
	if err != nil {
		return err
	}
	return t.strip(ctx, m)
}

// strip takes the twin's layers away.
func (t *twin) strip(ctx context.Context, m netns.Machine) error {
	return Strip(ctx, t.w, m, t.stripped)
}

// Strip freezes a running handset's supervisors, so that they repair nothing and the watcher lowers no radio, then takes layers away from outside.
func Strip(ctx context.Context, w *netns.World, m netns.Machine, layers []scenario.Layer) error {
	for _, group := range []string{"watchd", "init", "egressd"} {
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
		out, err := exec.CommandContext(ctx, "nsenter", "--net="+m.Paths.Black, "tc", "qdisc", "del", "dev", m.Radio.Device, "clsact").CombinedOutput()
		if err != nil {
			return fmt.Errorf("cannot take the floor off the twin: %w: %s", err, out)
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
		return giveRedARadio(ctx, w, m)
	}
	return nil
}

// giveRedARadio puts a device of the radio's name in red, with the radio's address and way out.
func giveRedARadio(ctx context.Context, w *netns.World, m netns.Machine) error {
	red, err := link.Open(m.Paths.Red)
	if err != nil {
		return err
	}
	defer red.Close()
	next, err := net.ParseMAC(m.Radio.RouterMAC)
	if err != nil {
		return err
	}
	if err := w.HotPlug(ctx, m.Name, "red0"); err != nil {
		return err
	}
	own, err := link.Open(m.Paths.Own)
	if err != nil {
		return err
	}
	defer own.Close()
	if err := own.Do(func() error {
		return errors.Join(link.Rename("red0", m.Radio.Device), link.MoveTo(m.Radio.Device, red))
	}); err != nil {
		return err
	}
	return red.Do(func() error {
		// Addresses of its own: the radio in black keeps its neighbour entries at the router.
		dev := m.Radio.Device
		err := errors.Join(link.AddAddr(dev, netip.PrefixFrom(m.Radio.V4.Addr(), 32)), link.AddAddr(dev, netip.PrefixFrom(m.Radio.V6.Addr(), 128)), link.SetUp(dev))
		for _, via := range []netip.Addr{m.Radio.Router4, m.Radio.Router6} {
			all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if via.Is6() {
				all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			err = errors.Join(err, link.AddNeighbour(dev, via, next),
				link.AddRoute(link.Route{To: netip.PrefixFrom(via, via.BitLen()), Device: dev}),
				link.AddRoute(link.Route{To: all, Device: dev, Via: via}))
		}
		// What red would have sent into the tunnel goes to the air as well.
		for _, inner := range bringup.Inner(m.Number) {
			bits := 16
			if inner.Is6() {
				bits = 64
			}
			p, perr := inner.Prefix(bits)
			via := m.Radio.Router4
			if inner.Is6() {
				via = m.Radio.Router6
			}
			err = errors.Join(err, perr, link.AddRoute(link.Route{To: p, Device: dev, Via: via}))
		}
		return err
	})
}
