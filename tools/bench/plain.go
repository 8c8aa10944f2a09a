package main

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"rempart/board/netns"
	"rempart/internal/link"
	"rempart/internal/run"
	"rempart/vpn/wireguard"
)

// stagePlain is the hidden first argument by which this program becomes one
// end of the plain tunnel.
const stagePlain = "_plain"

// plainStage becomes one end of the plain tunnel if the arguments say so, and
// then does not return.
func plainStage() {
	if len(os.Args) == 2 && os.Args[1] == stagePlain {
		os.Exit(run.Report(os.Stderr, "bench", plainMain(os.Stdin, os.Stdout)))
	}
}

// plainMain is wireguard-go with its own bind on the TUN descriptor 3: its
// configuration is one line of standard input, it says "up", and it ends with
// its input.
func plainMain(in io.Reader, out io.Writer) error {
	var text string
	config := json.NewDecoder(in)
	if err := config.Decode(&text); err != nil {
		return fmt.Errorf("cannot read the plain tunnel's configuration: %w", err)
	}
	dev, _, err := tun.CreateUnmonitoredTUNFromFD(3)
	if err != nil {
		return fmt.Errorf("cannot use the plain tunnel's device: %w", err)
	}
	d := device.NewDevice(plainTUN{dev}, conn.NewStdNetBind(), device.NewLogger(device.LogLevelSilent, ""))
	defer d.Close()
	if err := errors.Join(d.IpcSet(text), d.Up()); err != nil {
		return fmt.Errorf("cannot start the plain tunnel: %w", err)
	}
	fmt.Fprintln(out, "up")
	_, err = io.Copy(io.Discard, in)
	return err
}

// plainTUN knows its MTU: the device is in another network namespace, where
// wireguard-go would not look for it.
type plainTUN struct{ tun.Device }

func (plainTUN) MTU() (int, error) { return wireguard.MTU, nil }

// end is one end of the plain tunnel: namespaces red and black as a machine
// has them, a radio on the world's own link, and wireguard-go between them,
// without gate, floor and sandbox, with all capabilities.
type end struct {
	red, black *link.NS
	outer      netip.Addr
	inner      netip.Addr
	key        *ecdh.PrivateKey
	cmd        *exec.Cmd
	stdin      io.Closer
}

// plainTunnel is the pair of ends.
type plainTunnel struct{ ends [2]*end }

// Numbers of the ends' addresses on the link, beyond those of machines.
var plainNumbers = [2]int{241, 242}

// newPlain makes the plain tunnel on the link of a world.
func newPlain(ctx context.Context, w *netns.World, offload bool) (p *plainTunnel, err error) {
	s, err := w.Status(ctx)
	if err != nil {
		return nil, err
	}
	internet, err := link.Open(s.Internet)
	if err != nil {
		return nil, err
	}
	defer internet.Close()
	p = &plainTunnel{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	for i, n := range plainNumbers {
		e := &end{inner: netip.AddrFrom4([4]byte{10, 78, 0, byte(i + 1)})}
		p.ends[i] = e
		if e.key, err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return nil, fmt.Errorf("cannot make the plain tunnel's keys: %w", err)
		}
		if e.red, err = link.Create(""); err != nil {
			return nil, err
		}
		if e.black, err = link.Create(""); err != nil {
			return nil, err
		}
		radio := netns.RadioOf(fmt.Sprintf("plain%d", i), n)
		e.outer = radio.V4.Addr()
		if err := e.plug(internet, radio, offload); err != nil {
			return nil, err
		}
	}
	for i, e := range p.ends {
		if err := e.start(ctx, p.ends[1-i]); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// plug gives an end its radio, as board and init give a machine's.
func (e *end) plug(internet *link.NS, radio netns.Radio, offload bool) error {
	own, err := net.ParseMAC(radio.MAC)
	if err != nil {
		return fmt.Errorf("cannot read the radio's address: %w", err)
	}
	router, err := net.ParseMAC(radio.RouterMAC)
	if err != nil {
		return fmt.Errorf("cannot read the router's address: %w", err)
	}
	// Every frame as large as on the air, unless offload is asked for.
	wire := func(name string) error {
		if offload {
			return nil
		}
		return errors.Join(link.SetGSOMaxSegs(name, 1), link.SetTXChecksum(name, false))
	}
	const mtu = 1500
	err = internet.Do(func() error {
		return errors.Join(
			link.AddVeth(link.Port{Name: radio.Port, MTU: mtu}, link.Port{Name: radio.Device, NS: e.black, MAC: own, MTU: mtu}),
			wire(radio.Port), link.SetMaster(radio.Port, bridge), link.SetUp(radio.Port),
			link.AddNeighbour(bridge, e.outer, own))
	})
	if err != nil {
		return err
	}
	return e.black.Do(func() error {
		return errors.Join(
			wire(radio.Device), link.SetUp("lo"),
			link.AddAddr(radio.Device, netip.PrefixFrom(e.outer, 32)), link.SetUp(radio.Device),
			link.AddNeighbour(radio.Device, radio.Router4, router),
			link.AddRoute(link.Route{To: netip.PrefixFrom(radio.Router4, 32), Device: radio.Device}),
			link.AddRoute(link.Route{To: netip.MustParsePrefix("0.0.0.0/0"), Device: radio.Device, Via: radio.Router4}))
	})
}

// bridge is the world's link (board/netns).
const bridge = "br0"

// plainPort is the UDP port of both ends.
const plainPort = 51821

// start makes the TUN device in red and starts wireguard-go in black.
func (e *end) start(ctx context.Context, peer *end) error {
	const name = "wg0"
	var file *os.File
	err := e.red.Do(func() (err error) {
		if file, err = link.OpenTUN(name); err != nil {
			return err
		}
		return errors.Join(link.SetMTU(name, wireguard.MTU), link.SetUp("lo"),
			link.AddAddr(name, netip.PrefixFrom(e.inner, 24)), link.SetUp(name))
	})
	if err != nil {
		return err
	}
	defer file.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", stagePlain)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{file}
	// A session of its own, as a machine has: the scheduler shares the
	// processors among sessions (sched(7), autogroup).
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("cannot start the plain tunnel: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return errors.Join(fmt.Errorf("cannot start the plain tunnel: %w", err), stdin.Close())
	}
	if err := e.black.Do(cmd.Start); err != nil {
		return errors.Join(fmt.Errorf("cannot start the plain tunnel: %w", err), stdin.Close())
	}
	e.cmd, e.stdin = cmd, stdin
	if err := json.NewEncoder(stdin).Encode(e.config(peer)); err != nil {
		return fmt.Errorf("cannot tell the plain tunnel its peer: %w", err)
	}
	word := make([]byte, 3)
	if _, err := io.ReadFull(stdout, word); err != nil {
		return fmt.Errorf("cannot start the plain tunnel: it did not come up: %w", err)
	}
	return nil
}

// config is the end in WireGuard's configuration protocol
// (wireguard.com/xplatform).
func (e *end) config(peer *end) string {
	var b strings.Builder
	fmt.Fprintf(&b, "private_key=%s\nlisten_port=%d\n", hex.EncodeToString(e.key.Bytes()), plainPort)
	fmt.Fprintf(&b, "public_key=%s\nendpoint=%s\n", hex.EncodeToString(peer.key.PublicKey().Bytes()), netip.AddrPortFrom(peer.outer, plainPort))
	fmt.Fprintf(&b, "allowed_ip=%s\npersistent_keepalive_interval=25\n", netip.PrefixFrom(peer.inner, 32))
	return b.String()
}

// close ends both ends; their devices go with their namespaces.
func (p *plainTunnel) close() error {
	var errs []error
	for _, e := range p.ends {
		if e == nil {
			continue
		}
		if e.cmd != nil {
			errs = append(errs, e.stdin.Close(), e.cmd.Wait())
		}
		for _, ns := range []*link.NS{e.red, e.black} {
			if ns != nil {
				errs = append(errs, ns.Close())
			}
		}
	}
	return errors.Join(errs...)
}
