package matrix

import (
	"fmt"
	"slices"
	"strings"

	"rempart/board/scenario/attack"
)

// State is what the handset is doing while the senders try.
type State string

// The states. Those of each daemon are [Killed] and [Frozen].
const (
	GateOnly      State = "gate-only"     // booted as far as the gate: no radio is up
	Locked        State = "locked"        // booted, the PIN not given
	Connecting    State = "connecting"    // unlocked, the gateway silent
	Connected     State = "connected"     // the tunnel is up
	Rekeying      State = "rekeying"      // the gateway stops answering; a new handshake is forced and made
	Reconfiguring State = "reconfiguring" // from one gateway of the policy to the next, by way of deny-all
	Error         State = "error"         // every address of the gateways tried in vain
	Swapping      State = "policy-swap"   // admitted and closed, again and again
	Shutdown      State = "shutdown"      // switched off
	Restart       State = "restart"       // switched off and on again, unlocked
	KilledInit    State = "killed-init"   // SIGKILL to process 1
)

// Killed is SIGKILL to a daemon, and what follows until all is up again.
func Killed(daemon string) State { return State("killed-" + daemon) }

// Frozen is a daemon that lives and does nothing.
func Frozen(daemon string) State { return State("frozen-" + daemon) }

// Daemon returns the daemon that a state is about.
func (s State) Daemon() (name string, killed, frozen bool) {
	if s == KilledInit {
		return "", false, false
	}
	if d, ok := strings.CutPrefix(string(s), "killed-"); ok {
		return d, true, false
	}
	d, ok := strings.CutPrefix(string(s), "frozen-")
	return d, false, ok
}

// Lasts says that the handset stays in the state until it is led out of it, so
// that senders try once. In the others they go on while the state passes.
func (s State) Lasts() bool {
	_, _, frozen := s.Daemon()
	return frozen || slices.Contains([]State{GateOnly, Locked, Connecting, Connected}, s)
}

// Ends says that the state ends the handset, and the senders in it.
func (s State) Ends() bool {
	return slices.Contains([]State{Shutdown, Restart, KilledInit, Killed("keyd")}, s)
}

// States returns the states of a handset with these daemons, in the order in
// which they are run: the fewest restarts.
func States(daemons []string) []State {
	all := []State{GateOnly, Locked, Connecting, Error, Reconfiguring, Connected, Rekeying, Swapping}
	for _, d := range daemons {
		all = append(all, Frozen(d))
	}
	for _, d := range daemons {
		all = append(all, Killed(d))
	}
	return append(all, Restart, Shutdown, KilledInit)
}

// Place is where the sender is.
type Place string

// The places.
const (
	Red   Place = "red"
	Black Place = "black"
	Init  Place = "init" // init's own network namespace, where new devices are born
	New   Place = "new"  // a namespace that the sender makes behind black, with forwarding on
)

// As is what the sender may do.
type As string

// Who the sender is.
const (
	App  As = "app"  // in an app's control group, no capability
	User As = "user" // in no app's, no capability
	Root As = "root" // uid 0, every capability
)

// Device is what the sender names, or for one that names none the way to the air.
type Device string

// The devices.
const (
	Radio    Device = "radio"
	Tunnel   Device = "tunnel"   // the tunnel's device in red
	Unknown  Device = "unknown"  // plugged in while the handset runs, and nobody knows it
	Modem    Device = "modem"    // plugged in while the handset runs, as its command line foretold
	Loopback Device = "loopback" // no other end
)

// Row is one attempt.
type Row struct {
	State  State         `json:"state"`
	Sender string        `json:"sender"`
	Family attack.Family `json:"family"`
	Place  Place         `json:"place"`
	As     As            `json:"as"`
	Device Device        `json:"device"`
}

// ID names the row, for `rempart-lab leakmatrix --row` and for the list of
// accepted rows.
func (r Row) ID() string {
	return fmt.Sprintf("%s/%s/%d/%s/%s/%s", r.State, r.Sender, r.Family, r.Place, r.As, r.Device)
}

// values are the row's values, axis by axis.
func (r Row) values() [axes]string {
	return [axes]string{string(r.State), r.Sender, fmt.Sprint(int(r.Family)), string(r.Place), string(r.As), string(r.Device)}
}

const axes = 6

// Axis is one dimension of the matrix.
type Axis struct {
	Name   string   `json:"name"`
	Values []string `json:"values"`
}

// Axes returns all dimensions with all their values, those that only excluded
// rows have included.
func Axes(daemons []string) []Axis {
	var states, senders []string
	for _, s := range States(daemons) {
		states = append(states, string(s))
	}
	for _, s := range Senders() {
		senders = append(senders, s.Name)
	}
	return []Axis{{"state", states}, {"sender", senders}, {"family", []string{"4", "6"}},
		{"place", []string{string(Red), string(Black), string(Init), string(New)}},
		{"as", []string{string(App), string(User), string(Root)}},
		{"device", []string{string(Radio), string(Tunnel), string(Unknown), string(Modem), string(Loopback)}}}
}
