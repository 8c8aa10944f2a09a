package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"rempart/board/scenario/attack"
	"rempart/board/scenario/watch"
)

// Where is the place in a handset that an attempt starts from.
type Where string

// The places.
const (
	Red   Where = "red"
	Black Where = "black"
	Init  Where = "init" // init's own network namespace
)

// Layer is one thing that can stop an attempt. A twin is a handset that a board
// has stripped of some, from outside: no program of the handset has a switch
// for it.
type Layer string

// The layers of DESIGN.md §1.
const (
	Jail    Layer = "jail"    // red holds the tunnel only; stripped: red has a radio of its own, and its routes lead there
	Gate    Layer = "gate"    // the eBPF gate on the radio
	Floor   Layer = "floor"   // the drop-all classifier under the gate
	NFT     Layer = "nft"     // the nft tables on the radio and in red
	XFRM    Layer = "xfrm"    // the IPsec policies' default, block, in every namespace
	Routes  Layer = "routes"  // black has routes to the gateways alone
	Hooks   Layer = "hooks"   // the level hooks at the handset's cgroup: no app, no network
	Guard   Layer = "guard"   // no AF_PACKET, AF_XDP and raw sockets in the handset's cgroup
	Newborn Layer = "newborn" // a device born in init's namespace is floored and kept down
)

// AllLayers are the layers above: without them nothing of a handset stops a sender.
func AllLayers() []Layer { return []Layer{Jail, Gate, Floor, NFT, XFRM, Routes, Hooks, Guard, Newborn} }

// Site is where the handset stands: the addresses of the lab's world.
type Site struct {
	// Radio is the radio's device name in black; a twin's red radio has the
	// same name. Required.
	Radio string
	// Source are the radio's addresses, NextHop its next hop's Ethernet address.
	Source4, Source6 netip.Addr
	NextHop          net.HardwareAddr
	// Host and Resolver are on the internet and no gateway.
	Host4, Host6, Resolver4, Resolver6 netip.Addr
	// Gateway is the gateway's outer address and the tunnel's port.
	Gateway4, Gateway6 netip.Addr
	TunnelPort         uint16
	// Inner is the gateway's address inside the tunnel.
	Inner4, Inner6 netip.Addr
	// Daemons are the handset's daemons that a row may kill, in boot order.
	Daemons []string
	// Rules are the policy's classes, for the watcher outside.
	Rules watch.Rules
}

// Command is a program to run in the handset's network and cgroup, with the desk
// machine's file system.
type Command struct {
	Where Where
	// App is the app whose cgroup it runs in; "" is the desk's.
	App string
	// Argv[0] is an absolute path on the desk machine.
	Argv []string
}

// Process is a running Command. It is outside the handset's PID namespace, so
// that it may survive init.
type Process interface {
	// Line returns the next line of its standard output without the newline,
	// and io.EOF when it has ended.
	Line(ctx context.Context) ([]byte, error)
	// Stop sends SIGTERM and does not wait: read Line to io.EOF. Stopping a
	// process that has ended is no error.
	Stop() error
	// Close kills it and waits. It is always called once.
	Close() error
}

// Counters are what the handset itself counts.
type Counters struct {
	// Drops by reason, of gate and floor, all devices, both directions.
	Drops map[string]uint64
	// Tunnelled counts packets that red handed to the tunnel device.
	Tunnelled uint64
}

// Board is one handset in one world. Every method is bounded by its context.
type Board interface {
	// Site never changes while the board lives.
	Site() Site
	// Start runs a command.
	Start(ctx context.Context, c Command) (Process, error)
	// Capture returns the unfiltered pcapng of every port of the internet
	// link, ports that appear later included, with segmentation offload off
	// (a watch.Tail where it is a growing file). Close ends the capture; the
	// reader then gives what was captured until then, and a clean end.
	Capture(ctx context.Context) (io.ReadCloser, error)
	// Settle waits until the capture holds every frame that the radios' own
	// counters say has left, and returns how many that are. It fails when the
	// capture lost one: then nothing can be concluded from it.
	Settle(ctx context.Context) (frames int, err error)
	// Counters reads the handset's counters. A handset that is down has none.
	Counters(ctx context.Context) (Counters, error)
	// WaitUp waits until the handset is up and its tunnel too, unlocking it if
	// need be.
	WaitUp(ctx context.Context) error
	// KillDaemon sends SIGKILL to a daemon.
	KillDaemon(ctx context.Context, name string) error
	// KillInit sends SIGKILL to the handset's init and returns once it is gone.
	KillInit(ctx context.Context) error
	// Restart powers the handset off, if it is on, and on again.
	Restart(ctx context.Context) error
	// HotPlug makes a device of that name appear, down, in init's own network
	// namespace, with its other end on the internet link.
	HotPlug(ctx context.Context, name string) error
	// Unplug removes the device again.
	Unplug(ctx context.Context, name string) error
	// Twin makes a throwaway world with a handset like this one, up, without
	// the layers.
	Twin(ctx context.Context, stripped []Layer) (Twin, error)
}

// Twin is a throwaway board.
type Twin interface {
	Board
	// Close removes the world.
	Close() error
}

func (s Site) check() error {
	if s.Radio == "" || s.TunnelPort == 0 || len(s.NextHop) != 6 {
		return errors.New("cannot run the leak test: the site has no radio, tunnel port or next hop")
	}
	for name, a := range map[string][2]netip.Addr{"source": {s.Source4, s.Source6}, "host": {s.Host4, s.Host6},
		"resolver": {s.Resolver4, s.Resolver6}, "gateway": {s.Gateway4, s.Gateway6}, "inner": {s.Inner4, s.Inner6}} {
		if !a[0].Is4() || !a[1].Is6() || a[1].Is4In6() {
			return fmt.Errorf("cannot run the leak test: the site's %s addresses are incomplete", name)
		}
	}
	if len(s.Rules.Classes) == 0 || len(s.Rules.Handsets) == 0 {
		return errors.New("cannot run the leak test: the site has no admitted classes")
	}
	return nil
}

// Target is the address that a row means, in one family.
func (s Site) Target(to Destination, f attack.Family) netip.Addr {
	pair := map[Destination][2]netip.Addr{
		Host: {s.Host4, s.Host6}, Resolver: {s.Resolver4, s.Resolver6}, Gateway: {s.Gateway4, s.Gateway6}, Inner: {s.Inner4, s.Inner6},
	}[to]
	if f == attack.IPv6 {
		return pair[1]
	}
	return pair[0]
}
