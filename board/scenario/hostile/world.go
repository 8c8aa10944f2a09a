package hostile

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/scenario/attack"
	"rempart/internal/link"
	"rempart/vpn/egress"
	"rempart/vpn/enforce"
	"rempart/vpn/enforce/nft"
	"rempart/vpn/enforce/xfrm"
)

// The world's addresses (RFC 5737, RFC 3849).
var (
	radioV4   = netip.MustParsePrefix("203.0.113.11/24")
	radioV6   = netip.MustParsePrefix("2001:db8:113::11/64")
	gatewayV4 = netip.MustParseAddr("203.0.113.1")
	gatewayV6 = netip.MustParseAddr("2001:db8:113::1")
	radioMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 11}
	farMAC    = net.HardwareAddr{2, 0, 0, 0, 0, 1}
)

const (
	radio      = "wwan0"
	far        = "far0"
	tunnelPort = 51820
	tunnelUID  = 903
)

// world is black with a radio, the far end with its capture, and the tunnel's daemon.
type world struct {
	black, outside *link.NS
	gate           *enforce.Gate
	tables         *nft.Owner
	pins           string
	groups         groups
	capture        *capture
	tunnel         *exec.Cmd
}

// newWorld is made whole or not at all.
func (r *runner) newWorld(ctx context.Context, layers Layers, f attack.Family) (w *world, err error) {
	w = &world{groups: r.bare}
	if layers == All {
		w.groups = r.guarded
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("cannot make the world: %w", err), w.close())
		}
	}()
	if w.black, err = link.Create(""); err != nil {
		return nil, err
	}
	if w.outside, err = link.Create(""); err != nil {
		return nil, err
	}
	if err := w.black.Do(func() error {
		return link.AddVeth(link.Port{Name: radio, MAC: radioMAC}, link.Port{Name: far, MAC: farMAC, NS: w.outside})
	}); err != nil {
		return nil, err
	}
	if err := w.outside.Do(func() error { return errors.Join(link.SetQuiet(far), link.SetUp(far)) }); err != nil {
		return nil, err
	}
	if w.capture, err = listen(w.outside, far); err != nil {
		return nil, err
	}
	if w.pins, err = os.MkdirTemp(r.pins, "black-"); err != nil {
		return nil, err
	}
	return w, w.black.Do(func() error { return w.furnish(ctx, r, layers, f) })
}

// furnish puts the layers on the radio before it is up, as init does, and starts the tunnel.
func (w *world) furnish(ctx context.Context, r *runner, layers Layers, f attack.Family) error {
	index, err := link.Index(radio)
	if err != nil {
		return err
	}
	if layers != None {
		if err := enforce.AttachFloor(index); err != nil {
			return err
		}
		if w.gate, err = enforce.Attach(index, w.pins); err != nil {
			return err
		}
		if err := w.gate.Swap(w.policy()); err != nil {
			return err
		}
	}
	if layers == Packet || layers == All {
		if w.tables, err = nft.Open(); err != nil {
			return err
		}
		if err := errors.Join(w.tables.Put(nft.Released(radio, w.policy(), tunnelUID, radioV4.Addr(), radioV6.Addr())), xfrm.Put(xfrm.Classes(w.policy()))); err != nil {
			return err
		}
	}
	for _, step := range []error{link.SetQuiet(radio), link.AddAddr(radio, radioV4), link.AddAddr(radio, radioV6), link.SetUp("lo"), link.SetUp(radio),
		link.AddNeighbour(radio, gatewayV4, farMAC), link.AddNeighbour(radio, gatewayV6, farMAC)} {
		if step != nil {
			return step
		}
	}
	// The tunnel's daemon: an ordinary process whose socket was born in its control group.
	job := r.job(attack.Connected, f)
	job.Port, job.For = tunnelPort, time.Minute
	if w.tunnel, err = r.start(w.groups.tunnel, "", job, nil); err != nil {
		return err
	}
	// What is admitted must come out: else that something else does not come out shows nothing.
	return w.capture.await(ctx, job)
}

func (w *world) policy() egress.Policy {
	var p egress.Policy
	for _, a := range []netip.Addr{gatewayV4, gatewayV6} {
		p.Classes = append(p.Classes, egress.Class{Gateway: "gateway", Addr: a, Proto: egress.UDP, Port: tunnelPort, Purpose: egress.Tunnel, Cgroup: w.groups.tunnelID})
	}
	return p
}

func (w *world) close() error {
	var errs []error
	if w.tunnel != nil {
		_ = w.tunnel.Process.Kill() // it may have been ended by the attempt
		_ = w.tunnel.Wait()         // it was killed
	}
	if w.capture != nil {
		errs = append(errs, w.capture.close())
	}
	if w.gate != nil {
		errs = append(errs, w.gate.Release())
	}
	if w.tables != nil {
		errs = append(errs, w.tables.Close())
	}
	if w.pins != "" {
		errs = append(errs, os.RemoveAll(w.pins))
	}
	for _, ns := range []*link.NS{w.black, w.outside} {
		if ns != nil {
			errs = append(errs, ns.Close())
		}
	}
	return errors.Join(errs...)
}

// groups are the control groups of a tunnel daemon and of a hostile process.
type groups struct {
	root, tunnel, attacker string
	tunnelID               uint64
}

func makeGroups(root string) (g groups, err error) {
	g = groups{root: root, tunnel: filepath.Join(root, "tunneld"), attacker: filepath.Join(root, "attacker")}
	for _, dir := range []string{g.root, g.tunnel, g.attacker} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return g, err
		}
	}
	var st unix.Stat_t
	err = unix.Stat(g.tunnel, &st)
	g.tunnelID = st.Ino
	return g, err
}

// remove waits for the last processes to be gone.
func (g groups) remove() (err error) {
	for _, dir := range []string{g.attacker, g.tunnel, g.root} {
		for range 100 {
			if err = os.Remove(dir); err == nil || errors.Is(err, os.ErrNotExist) {
				err = nil
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// start starts a sender in the calling thread's network namespace and a control group.
func (r *runner) start(group string, p Privilege, j attack.Job, out *os.File) (*exec.Cmd, error) {
	dir, err := os.Open(group)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	cmd := exec.Command(r.sender, append(append([]string(nil), r.words...), j.Args()...)...)
	if out != nil {
		cmd.Stdout = out
	}
	cmd.Env = append(os.Environ(), r.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	user := &syscall.Credential{Uid: 1000, Gid: 1000, NoSetGroups: true}
	switch p {
	case Admin:
		cmd.SysProcAttr.Credential, cmd.SysProcAttr.AmbientCaps = user, []uintptr{unix.CAP_NET_ADMIN}
	case Raw:
		cmd.SysProcAttr.Credential, cmd.SysProcAttr.AmbientCaps = user, []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW}
	case "": // the tunnel's daemon
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: tunnelUID, Gid: tunnelUID, NoSetGroups: true}
	}
	return cmd, cmd.Start()
}

// job is an attempt in this world.
func (r *runner) job(k attack.Kind, f attack.Family) attack.Job {
	j := attack.Job{Kind: k, Family: f, Marker: newMarker(), Target: gatewayV4, Source: radioV4.Addr(), Device: radio, NextHop: farMAC}
	if f == attack.IPv6 {
		j.Target, j.Source = gatewayV6, radioV6.Addr()
	}
	return j
}
