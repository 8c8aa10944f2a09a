// Package leak runs the leak test of board/scenario on a handset of the netns board.
//
// The handset is left exactly as it is. Its twin is a handset of a throwaway world beside it, from which layers are taken away
// from outside, as only the desk's root can: its supervisor is frozen, then its gate and floor are taken off the radio, red is
// given a radio of its own, and senders run outside its control group, where the guard does not reach. No program of the
// handset has a switch for any of it.
package leak

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"rempart/board/netns"
	"rempart/board/scenario"
	"rempart/board/scenario/watch"
	"rempart/internal/run"
	"rempart/tools/lab/bringup"
)

// TunnelPort is the gateway's tunnel port in the lab's policy.
const TunnelPort = 51820

// Options say what to test.
type Options struct {
	World   *netns.World
	Machine string                   // handset; upper case is accepted
	Bin     string                   // folder of the daemons and of rempart-lab, which sends; "" means that of this program
	PIN     string                   // "" means bringup.DefaultPIN
	Rows    func(scenario.Row) bool  // which rows to run; nil means all
	Log     func(string)             // a line for each step that is not a row; nil is silent
	Done    func(scenario.RowResult) // each row as it ends, with its twin; nil is silent
}

// Test runs the leak test. The report is complete also when the test fails; the error is for a test that could not start.
func Test(ctx context.Context, o Options) (*scenario.LeakReport, error) {
	if o.PIN == "" {
		o.PIN = bringup.DefaultPIN
	}
	if o.Log == nil {
		o.Log = func(string) {}
	}
	self, err := os.Executable()
	if o.Bin != "" {
		self, err = filepath.Abs(filepath.Join(o.Bin, "rempart-lab"))
	}
	if err != nil {
		return nil, fmt.Errorf("cannot find the sender: %w", err)
	}
	status, err := o.World.Status(ctx)
	if err != nil {
		return nil, err
	}
	m, ok := status.Machine(o.Machine)
	if !ok || m.Role != "handset" {
		return nil, run.Hint(fmt.Errorf("cannot test %q: it is no handset of world %s", o.Machine, status.World), "rempart-lab status lists them")
	}
	// Captures and the twin's state live as long as the test.
	dir, err := os.MkdirTemp("", "rempart-leak-")
	if err != nil {
		return nil, fmt.Errorf("cannot make a folder for the test: %w", err)
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			o.Log("cannot remove " + dir + ": " + err.Error())
		}
	}()
	b := &board{options: o, w: o.World, name: m.Name, dir: dir, self: self, site: siteOf(status, m)}
	r := &scenario.Runner{Board: b, Sender: []string{self, "attack"}, Progress: o.Done}
	if o.Rows != nil {
		r.Rows = slices.DeleteFunc(scenario.Rows(b.site), func(row scenario.Row) bool { return !o.Rows(row) })
		if len(r.Rows) == 0 {
			return nil, errors.New("cannot run the leak test: no row matches")
		}
	}
	if err := b.WaitUp(ctx); err != nil {
		return nil, fmt.Errorf("cannot run the leak test: %w", err)
	}
	return r.LeakTest(ctx)
}

// Rules are what the lab's policy admits on the internet link of a world, for the watcher.
func Rules(status *netns.Status) watch.Rules {
	var rules watch.Rules
	for _, m := range status.Machines {
		if m.Role == "handset" {
			rules.Handsets = append(rules.Handsets, m.Radio.V4.Addr(), m.Radio.V6.Addr())
			if m.Radio.DHCP {
				rules.Links = append(rules.Links, linkOf(m.Radio))
			}
			continue
		}
		for _, a := range []netip.Addr{m.Radio.V4.Addr(), m.Radio.V6.Addr()} {
			rules.Classes = append(rules.Classes, watch.Class{Name: "tunnel", Gateway: a, Protocol: 17, Port: TunnelPort, WireGuard: true})
		}
	}
	return rules
}

// linkOf is the radio of a handset that leases its addresses. RadioOf is a pure table: both link addresses are well formed.
func linkOf(r netns.Radio) watch.Link {
	own, _ := net.ParseMAC(r.MAC)
	router, _ := net.ParseMAC(r.RouterMAC)
	return watch.Link{MAC: [6]byte(own), Router: [6]byte(router), V4: r.V4.Addr(), Router4: r.Router4, Prefix6: r.V6.Masked(), Router6: r.Router6}
}

// siteOf collects the addresses that the rows need.
func siteOf(status *netns.Status, m netns.Machine) scenario.Site {
	// RadioOf is a pure table: the address is well formed.
	next, _ := net.ParseMAC(m.Radio.RouterMAC)
	s := scenario.Site{
		Radio: m.Radio.Device, Source4: m.Radio.V4.Addr(), Source6: m.Radio.V6.Addr(), NextHop: next, TunnelPort: TunnelPort,
		Daemons: daemonsOf(), Rules: Rules(status),
	}
	for _, a := range netns.InternetHosts() {
		switch {
		case a.Is6():
			s.Host6, s.Resolver6 = a, a
		case !s.Host4.IsValid():
			s.Host4 = a
		default:
			s.Resolver4 = a
		}
	}
	for _, g := range status.Machines {
		if g.Role == "gateway" {
			inner := bringup.Inner(g.Number)
			s.Gateway4, s.Gateway6, s.Inner4, s.Inner6 = g.Radio.V4.Addr(), g.Radio.V6.Addr(), inner[0], inner[1]
		}
	}
	return s
}

// captureFile names a new capture of this test.
func (b *board) captureFile() (string, error) {
	f, err := os.CreateTemp(b.dir, b.w.Name+"-*.pcapng")
	if err != nil {
		return "", fmt.Errorf("cannot make a capture file: %w", err)
	}
	return filepath.Clean(f.Name()), f.Close()
}
