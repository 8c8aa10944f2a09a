package bringup

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"rempart/boot/stage"
	"rempart/internal/run"
)

// The names and numbers of a lab.
const (
	GatewayName   = "gateway"
	SpareName     = "spare"
	Domain        = "handsets.example"
	Level         = "restricted"
	DefaultPIN    = "271828"
	MaxHandsets   = 26
	gatewayNumber = 1
	firstHandset  = 11
	uidGatewayd   = 905
)

// Options say what to bring up. The zero value of each is its default.
type Options struct {
	State    string // the world's state folder, absolute; required
	Handsets int    // 0 means 2; at most 26
	Bin      string // folder of the daemons and of rempart-policy; "" means that of this program
	Image    string // an image folder to boot handsets from as it is; "" means that one is made
	PIN      string // of every machine; "" means DefaultPIN
	Spare    bool   // the policy names a second gateway, which is not there: the next to try when the first is silent
	Offload  bool   // leave segmentation offload of the radios on (board/netns.Spec)
	DHCP     bool   // handsets lease their addresses (board/netns.Spec)
	Timeout  time.Duration
}

// Complete fills in defaults and refuses what cannot work. [Up] does it too;
// a caller who does it first has started nothing in vain.
func (o Options) Complete() (Options, error) {
	if o.Handsets == 0 {
		o.Handsets = 2
	}
	if o.Handsets < 1 || o.Handsets > MaxHandsets {
		return o, run.Hint(fmt.Errorf("cannot bring up %d handsets", o.Handsets), "1 to %d: they are named a to z", MaxHandsets)
	}
	if o.PIN == "" {
		o.PIN = DefaultPIN
	}
	if o.Timeout == 0 {
		o.Timeout = 60 * time.Second
	}
	if !filepath.IsAbs(o.State) {
		return o, errors.New("cannot bring a world up: its state folder is not an absolute path")
	}
	if o.Bin == "" {
		self, err := os.Executable()
		if err != nil {
			return o, fmt.Errorf("cannot find the folder of the daemons: %w", err)
		}
		o.Bin = filepath.Dir(self)
	}
	bin, err := filepath.Abs(o.Bin)
	if err != nil {
		return o, fmt.Errorf("cannot find the folder of the daemons: %w", err)
	}
	o.Bin = bin
	need, err := programs(stage.Handset)
	if err != nil {
		return o, err
	}
	var missing []string
	for _, name := range append(need, "gatewayd", "rempart-policy") {
		if _, err := os.Stat(filepath.Join(o.Bin, name)); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return o, run.Hint(fmt.Errorf("cannot bring a world up: %s has no %s", o.Bin, strings.Join(missing, ", ")),
			"`make build` builds them into bin; --bin names another folder")
	}
	if o.Image != "" {
		if o.Image, err = filepath.Abs(o.Image); err != nil {
			return o, fmt.Errorf("cannot use the image: %w", err)
		}
	}
	return o, nil
}

// Handset is one handset of a lab.
type Handset struct {
	Name   string
	Number int // the last part of its addresses
}

// Handsets returns the first n handsets of a lab: a, b, c …
func Handsets(n int) []Handset {
	all := make([]Handset, n)
	for i := range all {
		all[i] = Handset{Name: string(rune('a' + i)), Number: firstHandset + i}
	}
	return all
}

// Inner returns the addresses inside the tunnel of the machine with a number.
func Inner(number int) []netip.Addr {
	n := strconv.Itoa(number)
	return []netip.Addr{netip.MustParseAddr("10.77.0." + n), netip.MustParseAddr("fd77::" + n)}
}

// SpareNumber is the last part of the addresses of the second gateway of [Options.Spare].
const SpareNumber = 2

// programs returns the files of /bin of a role.
func programs(role string) ([]string, error) {
	stages, err := stage.For(role)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, s := range append(stage.Firmware(), stages...) {
		if dir, name := filepath.Split(s.Path); dir == "bin/" {
			names = append(names, name)
		}
	}
	return names, nil
}
