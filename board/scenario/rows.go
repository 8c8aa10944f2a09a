package scenario

import (
	"fmt"
	"slices"
	"time"

	"rempart/board/scenario/attack"
)

// Destination is whom an attempt is for.
type Destination string

// The destinations.
const (
	Host     Destination = "host"     // a host on the internet
	Resolver Destination = "resolver" // a DNS resolver on the internet
	Gateway  Destination = "gateway"  // the gateway's outer address
	Inner    Destination = "inner"    // the gateway's address in the tunnel
)

// Event is what happens to the handset while a sender is at work.
type Event string

// The events.
const (
	None     Event = ""
	Kill     Event = "kill"      // SIGKILL to Row.Daemon, then wait until all is up again
	HotPlug  Event = "hotplug"   // a second device is born in init's namespace
	Restart  Event = "restart"   // the whole handset
	KillInit Event = "kill-init" // SIGKILL to init while the sender holds black
)

// Row is one attempt.
type Row struct {
	Name   string
	From   Where
	App    string // whose cgroup the sender is in; "" is the desk's, which is no app's
	Kind   attack.Kind
	Family []attack.Family // more than one: a sender each, at the same time
	To     Destination
	// Port at the destination; 0 is the kind's default.
	Port uint16
	// FromTunnelPort makes crafted frames claim the tunnel's source port.
	FromTunnelPort bool
	Event          Event
	Daemon         string
	// Stops are the layers that stop the row; the twin lacks all of them.
	Stops []Layer
	// Want are the verdicts that keep the promise. Leaked is never one.
	Want []Verdict
}

// Times of the rows with events.
const (
	senderSpan   = 30 * time.Second // at most, of constant senders
	hotplugSpan  = 400 * time.Millisecond
	orphanedSpan = 500 * time.Millisecond // sending on after init's death
)

// crafted are the kinds that need AF_PACKET, AF_XDP or a raw socket.
var crafted = []attack.Kind{attack.Packet, attack.PacketBypass, attack.XDP, attack.Raw, attack.Impostor, attack.ICMP}

// frames are the kinds that hand whole frames to a device: no route is asked for, and no policy.
var frames = []attack.Kind{attack.Packet, attack.PacketBypass, attack.XDP, attack.Impostor}

// Rows returns the leak test for the site, rows without events first and the
// one that kills init last.
func Rows(s Site) []Row {
	var rows []Row
	add := func(r Row, families ...attack.Family) {
		for _, f := range families {
			c := r
			c.Family = []attack.Family{f}
			c.Name = fmt.Sprintf("%s, IPv%d", r.Name, f)
			rows = append(rows, c)
		}
	}
	both := []attack.Family{attack.IPv4, attack.IPv6}
	for _, from := range []Where{Red, Black} {
		for _, p := range plain {
			r := Row{Name: p.name + " from " + string(from), From: from, Kind: p.kind, To: p.to, Port: p.port,
				FromTunnelPort: p.kind == attack.Impostor, Stops: stops(from, p.kind), Want: []Verdict{Refused, Dropped}}
			if from == Red {
				if p.blackOnly {
					continue
				}
				r.Want = append(r.Want, Tunnelled)
			}
			if p.kind == attack.UDP && p.to == Gateway {
				r.Port = s.TunnelPort + 1
			} else if p.to == Gateway {
				r.Port = s.TunnelPort
			}
			add(r, both...)
		}
	}
	add(Row{Name: "UDP to an inner address from red", From: Red, App: TunnelApp, Kind: attack.UDP, To: Inner, Stops: stops(Red, attack.UDP), Want: []Verdict{Tunnelled}}, both...)

	sender := Row{From: Black, Kind: attack.Constant, Family: both, To: Host, Stops: append(stops(Black, attack.Constant), Guard), Want: []Verdict{Refused, Dropped}}
	for _, d := range s.Daemons {
		r := sender
		r.Name, r.Event, r.Daemon = "kill -9 of "+d+" under a constant sender", Kill, d
		rows = append(rows, r)
	}
	rows = append(rows, Row{Name: "a new device in init's namespace, brought up at once", From: Init, Kind: attack.Hotplug, Family: both,
		Event: HotPlug, Stops: []Layer{Newborn, Floor, Guard}, Want: []Verdict{Refused, Dropped}})
	restart, orphan := sender, sender
	restart.Name, restart.Event = "restart of the whole handset under a constant sender", Restart
	orphan.Name, orphan.Event = "kill -9 of init while another process holds black and sends", KillInit
	return append(rows, restart, orphan)
}

// TunnelApp is an app of the tunnel's level: the level hooks let it send into the tunnel.
const TunnelApp = "notes"

// plain are the ways out without an event.
var plain = []struct {
	name      string
	kind      attack.Kind
	to        Destination
	port      uint16
	blackOnly bool
}{
	{name: "UDP", kind: attack.UDP, to: Host},
	{name: "TCP", kind: attack.TCP, to: Host},
	{name: "ICMP", kind: attack.ICMP, to: Host},
	{name: "DNS to an outside resolver", kind: attack.DNS, to: Resolver},
	{name: "SO_BINDTODEVICE on the radio", kind: attack.BindToDevice, to: Host},
	{name: "AF_PACKET on the radio", kind: attack.Packet, to: Host},
	{name: "AF_PACKET with qdisc bypass", kind: attack.PacketBypass, to: Host},
	{name: "AF_XDP on the radio", kind: attack.XDP, to: Host},
	{name: "multicast", kind: attack.Multicast},
	{name: "raw IP", kind: attack.Raw, to: Host},
	{name: "the gateway's address on another port", kind: attack.UDP, to: Gateway},
	{name: "clear text to the tunnel's own port", kind: attack.Mark, to: Gateway, blackOnly: true},
	{name: "a copy of the tunnel's own headers", kind: attack.Impostor, to: Gateway, blackOnly: true},
}

// stops are the layers between a sender and the internet.
func stops(from Where, k attack.Kind) []Layer {
	var l []Layer
	if from == Red {
		l = []Layer{Jail}
	} else {
		l = []Layer{Gate, Floor}
		if k != attack.XDP {
			l = append(l, NFT)
		}
	}
	if !slices.Contains(frames, k) {
		l = append(l, XFRM, Hooks)
		if from == Black {
			l = append(l, Routes)
		}
	}
	if slices.Contains(crafted, k) {
		l = append(l, Guard)
	}
	return l
}

// job is the sender's order for one family of the row.
func (r Row) job(s Site, f attack.Family, m attack.Marker) attack.Job {
	j := attack.Job{Kind: r.Kind, Family: f, Marker: m, Target: s.Target(r.To, f), Port: r.Port, Device: s.Radio, NextHop: s.NextHop, Source: s.Source4}
	if f == attack.IPv6 {
		j.Source = s.Source6
	}
	if r.FromTunnelPort {
		j.SourcePort = s.TunnelPort
	}
	if r.Kind == attack.TCP {
		j.Count = 1
	}
	switch r.Event {
	case None:
	case HotPlug:
		// Broadcast: the new device's end is not where the radio's next hop is.
		j.Device, j.For, j.NextHop, j.Target = hotplugDevice, hotplugSpan, nil, s.Target(Host, f)
	default:
		j.For = senderSpan
	}
	return j
}

// hotplugDevice is what a USB modem or gadget would be called.
const hotplugDevice = "usb0"

// FamilyName is "IPv4", "IPv6" or "both".
func (r Row) FamilyName() string {
	if len(r.Family) == 1 {
		return fmt.Sprintf("IPv%d", r.Family[0])
	}
	return "both"
}

// strip is the union of what stops the rows.
func strip(rows []Row) []Layer {
	var l []Layer
	for _, r := range rows {
		for _, s := range r.Stops {
			if !slices.Contains(l, s) {
				l = append(l, s)
			}
		}
	}
	return l
}
