package attack

import (
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// Marker is what an attempt carries: random, never all zero. It goes raw into
// payloads and as lower case hexadecimal into DNS labels.
type Marker [16]byte

// String returns the marker in lower case hexadecimal.
func (m Marker) String() string { return hex.EncodeToString(m[:]) }

// ParseMarker reads 32 hexadecimal digits.
func ParseMarker(s string) (Marker, error) {
	var m Marker
	if len(s) != 2*len(m) {
		return m, fmt.Errorf("cannot read marker: %d digits, expected %d", len(s), 2*len(m))
	}
	if _, err := hex.Decode(m[:], []byte(s)); err != nil {
		return Marker{}, fmt.Errorf("cannot read marker: %w", err)
	}
	if m == (Marker{}) {
		return m, errors.New("cannot use an all-zero marker")
	}
	return m, nil
}

// Job is one attempt.
type Job struct {
	Kind   Kind
	Family Family
	Marker Marker
	// Target is where to: an internet host, a resolver, the gateway or an
	// inner address, of the job's family. Required by all kinds but hotplug.
	Target netip.Addr
	// Port at the target; 0 is the kind's own default.
	Port uint16
	// Device is the radio (or, for hotplug, the device to wait for). Required
	// by the kinds that name a device.
	Device string
	// Source is the address that crafted frames claim to come from. Zero is
	// the unspecified address.
	Source netip.Addr
	// NextHop is the destination of crafted Ethernet frames. nil is broadcast.
	NextHop net.HardwareAddr
	// SourcePort of crafted frames; 0 is 40000. With the tunnel's own port a
	// frame is, header for header, one of the tunnel's.
	SourcePort uint16
	// Mark is the SO_MARK of kind mark.
	Mark uint32
	// Count is how often to send; 0 is 3.
	Count int
	// For is how long hotplug waits for its device and then sends, and how
	// long constant sends at most; 0 is 10 s. Every other kind is tried again
	// and again for that long, until it is stopped; 0 is once.
	For time.Duration
	// SetUp brings the device up first.
	SetUp bool
	// User makes the attempt as a person's process: uid 1000, no capability.
	User bool
	// FD is the number of an inherited packet socket, for kind passed.
	FD int
	// Path is the control group that kind joined moves into, or the folder of
	// the pins that kind detached opens.
	Path string
	// PID is the tunnel's daemon: kind stolen takes its socket, kinds joined and
	// detached its uid.
	PID int
	// NoPacket leaves out AF_PACKET in the kinds that try several ways
	// (constant, hotplug), where trying it was the sender's end.
	NoPacket bool
}

const defaultSourcePort = 40000

// Args returns the job as the arguments that Parse reads.
func (j Job) Args() []string {
	a := []string{string(j.Kind), "-family", fmt.Sprint(int(j.Family)), "-marker", j.Marker.String()}
	add := func(name, value string, set bool) {
		if set {
			a = append(a, "-"+name, value)
		}
	}
	add("target", j.Target.String(), j.Target.IsValid())
	add("port", fmt.Sprint(j.Port), j.Port != 0)
	add("device", j.Device, j.Device != "")
	add("source", j.Source.String(), j.Source.IsValid())
	add("next-hop", j.NextHop.String(), j.NextHop != nil)
	add("source-port", fmt.Sprint(j.SourcePort), j.SourcePort != 0)
	add("mark", fmt.Sprint(j.Mark), j.Mark != 0)
	add("count", fmt.Sprint(j.Count), j.Count != 0)
	add("for", j.For.String(), j.For != 0)
	add("fd", fmt.Sprint(j.FD), j.FD != 0)
	add("path", j.Path, j.Path != "")
	add("pid", fmt.Sprint(j.PID), j.PID != 0)
	for _, f := range []struct {
		name string
		set  bool
	}{{"-no-packet", j.NoPacket}, {"-set-up", j.SetUp}, {"-user", j.User}} {
		if f.set {
			a = append(a, f.name)
		}
	}
	return a
}

// Parse reads KIND and flags.
func Parse(args []string) (Job, error) {
	if len(args) == 0 {
		return Job{}, errors.New("cannot attack: no kind given")
	}
	j := Job{Kind: Kind(args[0])}
	fs := flag.NewFlagSet("attack", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	family := fs.Int("family", 4, "")
	port, sport := fs.Uint("port", 0, ""), fs.Uint("source-port", 0, "")
	mark := fs.Uint("mark", 0, "")
	fs.Func("marker", "", func(s string) (err error) { j.Marker, err = ParseMarker(s); return err })
	fs.Func("target", "", func(s string) (err error) { j.Target, err = netip.ParseAddr(s); return err })
	fs.Func("source", "", func(s string) (err error) { j.Source, err = netip.ParseAddr(s); return err })
	fs.Func("next-hop", "", func(s string) (err error) { j.NextHop, err = net.ParseMAC(s); return err })
	fs.StringVar(&j.Device, "device", "", "")
	fs.StringVar(&j.Path, "path", "", "")
	fs.IntVar(&j.PID, "pid", 0, "")
	fs.IntVar(&j.Count, "count", 0, "")
	fs.DurationVar(&j.For, "for", 0, "")
	fs.BoolVar(&j.NoPacket, "no-packet", false, "")
	fs.BoolVar(&j.SetUp, "set-up", false, "")
	fs.BoolVar(&j.User, "user", false, "")
	fs.IntVar(&j.FD, "fd", 0, "")
	if err := fs.Parse(args[1:]); err != nil {
		return Job{}, fmt.Errorf("cannot attack: %w", err)
	}
	if fs.NArg() > 0 {
		return Job{}, fmt.Errorf("cannot attack: unexpected argument %q", fs.Arg(0))
	}
	if *port > 65535 || *sport > 65535 || *mark > 1<<32-1 {
		return Job{}, errors.New("cannot attack: port or mark out of range")
	}
	j.Family, j.Port, j.SourcePort, j.Mark = Family(*family), uint16(*port), uint16(*sport), uint32(*mark)
	return j, j.check()
}

func (j Job) check() error {
	k, ok := kinds()[j.Kind]
	switch {
	case !ok:
		return fmt.Errorf("cannot attack: unknown kind %q", j.Kind)
	case j.Family != IPv4 && j.Family != IPv6:
		return fmt.Errorf("cannot attack: family %d", j.Family)
	case j.Marker == (Marker{}):
		return errors.New("cannot attack without a marker")
	case k.target && !j.Target.IsValid():
		return fmt.Errorf("cannot attack by %s without a target", j.Kind)
	case j.Target.IsValid() && (j.Target.Is4() != (j.Family == IPv4) || j.Target.Is4In6()):
		return fmt.Errorf("cannot attack: target %s is not IPv%d", j.Target, j.Family)
	case j.Source.IsValid() && j.Source.Is4() != (j.Family == IPv4):
		return fmt.Errorf("cannot attack: source %s is not IPv%d", j.Source, j.Family)
	case k.device && (j.Device == "" || len(j.Device) > 15):
		return fmt.Errorf("cannot attack by %s without a device", j.Kind)
	case j.NextHop != nil && len(j.NextHop) != 6:
		return errors.New("cannot attack: next hop is no Ethernet address")
	case j.FD < 0 || j.FD > 1023 || (j.FD > 0) != (j.Kind == Passed):
		return fmt.Errorf("cannot attack: descriptor %d with kind %s", j.FD, j.Kind)
	case j.SetUp && j.Device == "":
		return errors.New("cannot attack: no device to set up")
	case j.Count < 0 || j.Count > 1000 || j.For < 0 || j.For > time.Hour:
		return errors.New("cannot attack: count or time out of range")
	}
	return nil
}

func (j Job) port(def uint16) uint16 {
	if j.Port != 0 {
		return j.Port
	}
	return def
}

func (j Job) count() int {
	if j.Count == 0 {
		return 3
	}
	return j.Count
}

func (j Job) span() time.Duration {
	if j.For == 0 {
		return 10 * time.Second
	}
	return j.For
}
