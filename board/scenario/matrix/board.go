package matrix

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"rempart/board/scenario"
	"rempart/board/scenario/attack"
)

// Crowd is many attempts in one place, made at the same time.
type Crowd struct {
	Place Place
	As    As
	Jobs  []attack.Job
}

// Board is one handset in a world of its own, which nobody else uses. Every
// method is bounded by its context.
type Board interface {
	// Name says what this board runs on, such as "netns, Linux 6.12".
	Name() string
	// Site never changes while the board lives.
	Site() scenario.Site
	// Capture and Settle are those of [scenario.Board]. File is where the
	// capture goes.
	Capture(ctx context.Context) (io.ReadCloser, error)
	Settle(ctx context.Context) (frames int, err error)
	File() string
	// Enter brings the handset to where the state begins, whatever it did
	// before: for one that lasts, into it.
	Enter(ctx context.Context, s State) error
	// Happen lets a state that does not last pass, to its end.
	Happen(ctx context.Context, s State) error
	// Leave undoes what Enter did to others than the handset: a gateway speaks
	// again, a daemon lives again.
	Leave(ctx context.Context, s State) error
	// Plug makes a device appear, down, in init's own namespace, with its other
	// end on the internet link; Unplug removes it if it is there.
	Plug(ctx context.Context, device string) error
	Unplug(ctx context.Context, device string) error
	// Start runs a crowd. Its lines are [attack.Line]s.
	Start(ctx context.Context, c Crowd) (scenario.Process, error)
	// Tunnelled counts the packets that red handed to the tunnel's device.
	Tunnelled(ctx context.Context) (uint64, error)
}

// Twin is a throwaway board whose handset can be stripped.
type Twin interface {
	Board
	// Strip takes every layer away but those kept. It comes after Enter, which
	// makes the handset whole again.
	Strip(ctx context.Context, kept []scenario.Layer) error
	// Layers are those that a handset of this board has.
	Layers() []scenario.Layer
}

// ErrLost is the answer of Happen when the handset has seen what must not be and
// took its radios down until a restart. Where a sender has brought up a device
// that nobody knows, that is what a handset does.
var ErrLost = errors.New("the handset took its radios down until a restart")

// TunnelDevice is the tunnel's device in red.
const TunnelDevice = "wg0"

// The names of devices that are plugged in, which no handset is told of: one
// before the senders are at work, one before their eyes.
const (
	pluggedDevice = "usb0"
	newbornDevice = "eth7"
)

// Times of what goes on, at most.
const (
	senderSpan  = 60 * time.Second
	newbornSpan = 1500 * time.Millisecond
)

// job is the sender's order for the row.
func (r Row) job(site scenario.Site, m attack.Marker) (attack.Job, error) {
	s, ok := senderOf(r.Sender)
	if !ok {
		return attack.Job{}, fmt.Errorf("no sender %q", r.Sender)
	}
	j := attack.Job{Kind: s.Kind, Family: r.Family, Marker: m, NextHop: site.NextHop, Source: site.Source4, User: r.As != Root}
	if r.Family == attack.IPv6 {
		j.Source = site.Source6
	}
	if s.To != "" {
		j.Target = site.Target(s.To, r.Family)
	}
	switch s.port {
	case tunnel:
		j.Port = site.TunnelPort
	case beside:
		j.Port = site.TunnelPort + 1
	case imposing:
		j.Port, j.SourcePort = site.TunnelPort, site.TunnelPort
	}
	if s.names {
		switch r.Device {
		case Radio:
			j.Device = site.Radio
		case Tunnel:
			j.Device = TunnelDevice
		case Unknown:
			// Broadcast: its end is not where the radio's next hop is.
			j.Device, j.NextHop, j.SetUp = pluggedDevice, nil, true
		}
	}
	if r.Place == New {
		j.NextHop, j.Source = attack.BehindHop, attack.Behind4
		if r.Family == attack.IPv6 {
			j.Source = attack.Behind6
		}
	}
	if s.Kind == attack.Passed {
		j.FD = 3
	}
	switch {
	case s.Kind == attack.Hotplug:
		j.Device, j.SetUp, j.For = newbornDevice, false, newbornSpan
		if !r.State.Lasts() {
			j.For = senderSpan
		}
	case !r.State.Lasts():
		j.For = senderSpan
	}
	return j, nil
}
