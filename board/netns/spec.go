package netns

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"rempart/boot/stage"
	"rempart/keystore/client/identity"
)

// Spec describes a machine.
type Spec struct {
	Name   string `json:"name"`   // lower-case letters, digits, hyphen; at most 9 bytes, since its port is named after it
	Role   string `json:"role"`   // "handset" or "gateway"
	Number int    `json:"number"` // 1 to 250, the last part of its addresses; no two machines share one
	Image  string `json:"image"`  // absolute path of the image folder
	// Offload leaves segmentation and checksum offload of the radio on: many
	// times the throughput, but frames in a capture stand for several on the
	// air.
	Offload bool `json:"offload,omitempty"`
	// DHCP makes the machine lease its addresses, from the board's dnsmasq and radvd, which then run. Its IPv4 address is the
	// one of its number all the same; its IPv6 address is a random one of the link's prefix.
	DHCP bool `json:"dhcp,omitempty"`
}

// check refuses a description that could not work.
func (s Spec) check() error {
	switch {
	case !identity.ValidName(s.Name) || len(s.Name) > 9:
		return fmt.Errorf("cannot add machine %q: a name is at most 9 lower-case letters, digits and hyphens", s.Name)
	case s.Name == groupKeeper || s.Name == groupJanitor || s.Name == groupProvider:
		return fmt.Errorf("cannot add machine %q: the board uses that name itself", s.Name)
	case s.Role != stage.Handset && s.Role != stage.Gateway:
		return fmt.Errorf("cannot add machine %s: role %q is neither handset nor gateway", s.Name, s.Role)
	case s.Number < 1 || s.Number > 250:
		return fmt.Errorf("cannot add machine %s: number %d is not between 1 and 250", s.Name, s.Number)
	case s.DHCP && s.Role != stage.Handset:
		return fmt.Errorf("cannot add machine %s: a gateway cannot lease its addresses", s.Name)
	case !filepath.IsAbs(s.Image):
		return fmt.Errorf("cannot add machine %s: image folder %q is not an absolute path", s.Name, s.Image)
	}
	return nil
}

// State is what a machine is doing.
type State string

const (
	Off      State = "off"
	Starting State = "starting" // the board builds it; init does not run yet
	On       State = "on"       // init was started
)

// Machine is what the keeper tells about one machine.
type Machine struct {
	Name   string    `json:"name"`
	Role   string    `json:"role"`
	Number int       `json:"number"`
	State  State     `json:"state"`
	Since  time.Time `json:"since"`            // when the state began
	Reason string    `json:"reason,omitempty"` // why it is off
	PID    int       `json:"pid,omitempty"`    // of init, in the desk's PID namespace
	Radio  Radio     `json:"radio"`
	Image  string    `json:"image"`
	Paths  Paths     `json:"paths"`
}

// Paths say where a machine is on the desk. Those of namespaces and of the
// root lead through /proc/PID and are empty while the machine is off.
type Paths struct {
	Root    string `json:"root,omitempty"`
	Own     string `json:"netns,omitempty"` // init's own network namespace
	Red     string `json:"netns_red,omitempty"`
	Black   string `json:"netns_black,omitempty"`
	Cgroup  string `json:"cgroup,omitempty"` // root of the handset's cgroup namespace, on the desk's mount
	State   string `json:"state"`            // becomes /state
	Audio   string `json:"audio"`            // becomes /dev/rempart-audio
	TPM     string `json:"tpm"`
	Console string `json:"console"` // what init and the daemons printed since the last power-on; ….1 is that of the boot before
}

// Status is what the keeper tells about a world.
type Status struct {
	World    string    `json:"world"`
	State    string    `json:"state_dir"`
	Keeper   int       `json:"keeper_pid"`
	Janitor  int       `json:"janitor_pid"`
	Internet string    `json:"internet_netns"` // path of the internet's network namespace
	Started  time.Time `json:"started"`
	Machines []Machine `json:"machines"`
}

// Machine returns the named machine. Upper case is accepted.
func (s *Status) Machine(name string) (Machine, bool) {
	for _, m := range s.Machines {
		if m.Name == strings.ToLower(name) {
			return m, true
		}
	}
	return Machine{}, false
}

// Errors that a caller branches on.
var (
	ErrNoWorld   = errors.New("world is not running")
	ErrNoMachine = errors.New("no such machine")
	ErrOff       = errors.New("machine is off")
)
