package scenario_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"rempart/board/scenario"
	"rempart/board/scenario/attack"
	"rempart/board/scenario/watch"
	"rempart/internal/proof"
)

// tcBoard is the weakest handset there is, on the real kernel: red holds
// nothing, black's radio has a queueing discipline that drops all, and that is that.
// DESIGN.md §1 says exactly what this stops and what not.
type tcBoard struct {
	t          *testing.T
	name       string
	red, black string // namespaces
	dump       *exec.Cmd
	shown      atomic.Int64 // frames that tcpdump has shown
}

func newTCBoard(t *testing.T, name string, stripped []scenario.Layer) *tcBoard {
	id := fmt.Sprintf("rws%d%s", os.Getpid(), name)
	b := &tcBoard{t: t, name: id, red: id + "r", black: id + "b"}
	t.Cleanup(func() { b.Close() })
	for _, n := range []string{b.red, b.black, id + "s"} {
		b.run("ip", "netns", "add", n)
		// The kernel's own neighbour and group messages would be strange frames.
		b.run("ip", "netns", "exec", n, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
		b.run("ip", "-n", n, "link", "set", "lo", "up")
	}
	// The stranger's ends are ports of a bridge; red's exists in the twin only.
	b.run("ip", "-n", id+"s", "link", "add", "internet", "type", "bridge", "mcast_snooping", "0")
	b.run("ip", "-n", id+"s", "link", "set", "internet", "up")
	b.radio(b.black, "air")
	if slices.Contains(stripped, scenario.Jail) {
		b.radio(b.red, "hole")
	}
	if !slices.Contains(stripped, scenario.Gate) {
		b.run("tc", "-n", b.black, "qdisc", "add", "dev", "wwan0", "root", "blackhole")
	}
	return b
}

func (b *tcBoard) radio(ns, port string) {
	b.run("ip", "-n", ns, "link", "add", "wwan0", "type", "veth", "peer", "name", port, "netns", b.name+"s")
	b.run("ip", "-n", b.name+"s", "link", "set", port, "master", "internet", "up")
	b.run("ip", "-n", ns, "addr", "add", "203.0.113.11/24", "dev", "wwan0")
	b.run("ip", "-n", ns, "link", "set", "wwan0", "up")
	for _, hop := range []string{"203.0.113.254", "203.0.113.1"} {
		b.run("ip", "-n", ns, "neigh", "replace", hop, "lladdr", "02:00:00:00:00:fe", "dev", "wwan0", "nud", "permanent")
	}
	b.run("ip", "-n", ns, "route", "add", "default", "via", "203.0.113.254")
}

func (b *tcBoard) run(args ...string) {
	b.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		b.t.Fatalf("%q: %v: %s", args, err, out)
	}
}

func (b *tcBoard) Site() scenario.Site {
	a := netip.MustParseAddr
	return scenario.Site{Radio: "wwan0", NextHop: net.HardwareAddr{2, 0, 0, 0, 0, 0xfe}, Source4: a("203.0.113.11"), Source6: a("2001:db8:113::11"),
		Host4: a("198.51.100.7"), Host6: a("2001:db8:51::7"), Resolver4: a("198.51.100.53"), Resolver6: a("2001:db8:51::53"),
		Gateway4: a("203.0.113.1"), Gateway6: a("2001:db8:113::1"), TunnelPort: 51820, Inner4: a("10.77.0.1"), Inner6: a("fd77::1"),
		Rules: watch.Rules{Handsets: []netip.Addr{a("203.0.113.11")}, Classes: []watch.Class{{Name: "tunnel", Gateway: a("203.0.113.1"), Protocol: 17, Port: 51820, WireGuard: true}}}}
}

// within runs f on a thread of its own in a namespace.
func within(ns string, f func() error) error {
	file, err := os.Open("/run/netns/" + ns)
	if err != nil {
		return err
	}
	defer file.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

type job struct {
	lines *bufio.Reader
	stop  context.CancelFunc
}

func (b *tcBoard) Start(_ context.Context, c scenario.Command) (scenario.Process, error) {
	j, err := attack.Parse(c.Argv[1:])
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	r, w := io.Pipe()
	go func() {
		w.CloseWithError(within(map[scenario.Where]string{scenario.Red: b.red, scenario.Black: b.black}[c.Where], func() error {
			_, err := attack.Run(ctx, j, w)
			return err
		}))
	}()
	return &job{bufio.NewReader(r), stop}, nil
}

func (j *job) Line(context.Context) ([]byte, error) {
	line, err := j.lines.ReadBytes('\n')
	return bytes.TrimSuffix(line, []byte("\n")), err
}
func (j *job) Stop() error  { j.stop(); return nil }
func (j *job) Close() error { j.stop(); return nil }

// Capture watches all the stranger's ports at once, at the bridge's side.
func (b *tcBoard) Capture(context.Context) (io.ReadCloser, error) {
	b.dump = exec.Command("ip", "netns", "exec", b.name+"s", "tcpdump", "-n", "-i", "internet", "-U", "--immediate-mode", "-s", "0", "-w", "-")
	out, err := b.dump.StdoutPipe()
	if err != nil {
		return nil, err
	}
	said, err := b.dump.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := b.dump.Start(); err != nil {
		return nil, err
	}
	if line, err := bufio.NewReader(said).ReadString('\n'); err != nil || !strings.Contains(line, "listening on") {
		return nil, fmt.Errorf("tcpdump said %q, %w", line, err)
	}
	r, w := io.Pipe()
	dump := b.dump
	go func() {
		defer dump.Wait()
		in, err := pcapgo.NewReader(out)
		if err != nil {
			w.CloseWithError(err)
			return
		}
		ng, err := pcapgo.NewNgWriter(w, layers.LinkTypeEthernet)
		for err == nil {
			data, ci, rerr := in.ReadPacketData()
			if rerr != nil {
				w.Close()
				return
			}
			ci.InterfaceIndex = 0
			err = errors.Join(ng.WritePacket(ci, data), ng.Flush())
			b.shown.Add(1)
		}
		w.CloseWithError(err)
	}()
	return &dumping{r, b.dump}, nil
}

type dumping struct {
	io.Reader
	cmd *exec.Cmd
}

func (d *dumping) Close() error { return d.cmd.Process.Signal(syscall.SIGINT) }

// Settle waits until tcpdump has shown nothing new for a while: this test's link has no counter per sender.
func (b *tcBoard) Settle(ctx context.Context) (int, error) {
	for last, quiet := -1, time.Now(); ; {
		n := int(b.shown.Load())
		if n != last {
			last, quiet = n, time.Now()
		}
		if time.Since(quiet) > 150*time.Millisecond {
			return n, nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (b *tcBoard) Counters(context.Context) (scenario.Counters, error) {
	out, err := exec.Command("tc", "-n", b.black, "-s", "qdisc", "show", "dev", "wwan0").CombinedOutput()
	n := uint64(0)
	if _, after, ok := strings.Cut(string(out), "(dropped "); ok {
		fmt.Sscan(after, &n)
	}
	return scenario.Counters{Drops: map[string]uint64{"tc": n}}, err
}

func (b *tcBoard) Twin(_ context.Context, stripped []scenario.Layer) (scenario.Twin, error) {
	return newTCBoard(b.t, fmt.Sprintf("t%d", len(stripped)), stripped), nil
}

func (b *tcBoard) Close() error {
	for _, n := range []string{b.red, b.black, b.name + "s"} {
		exec.Command("ip", "netns", "del", n).Run()
	}
	return nil
}

func (b *tcBoard) WaitUp(context.Context) error             { return nil }
func (b *tcBoard) KillDaemon(context.Context, string) error { return errors.ErrUnsupported }
func (b *tcBoard) KillInit(context.Context) error           { return errors.ErrUnsupported }
func (b *tcBoard) Restart(context.Context) error            { return errors.ErrUnsupported }
func (b *tcBoard) HotPlug(context.Context, string) error    { return errors.ErrUnsupported }
func (b *tcBoard) Unplug(context.Context, string) error     { return errors.ErrUnsupported }

// TestTheRunnerFindsWhatTrafficControlDoesNotStop runs the leak test on the real
// kernel against a handset with one layer, of which it is known what it holds:
// the runner must find both leaks and no other.
func TestTheRunnerFindsWhatTrafficControlDoesNotStop(t *testing.T) {
	proof.NeedRoot(t)
	proof.Need(t, "ip", "tc", "tcpdump")
	b := newTCBoard(t, "", nil)
	rows := slices.DeleteFunc(scenario.Rows(b.Site()), func(r scenario.Row) bool {
		return r.Event != scenario.None || r.To == scenario.Inner || !slices.Equal(r.Family, []attack.Family{attack.IPv4})
	})
	l, err := (&scenario.Runner{Board: b, Sender: []string{"attack"}, Rows: rows}).LeakTest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range l.Rows {
		leaks := r.From == scenario.Black && (r.Kind == string(attack.PacketBypass) || r.Kind == string(attack.XDP))
		if leaks != (r.State == scenario.Failed) || leaks != (r.Verdict == scenario.Leaked) || r.Twin.Verdict != scenario.Leaked {
			t.Errorf("%s: %s (%s), %s; twin %+v", r.Name, r.Verdict, r.Detail, r.State, r.Twin)
		}
		t.Logf("%-50s %s (%s), %d sent, %d seen; twin %s", r.Name, r.Verdict, r.Detail, r.Sent, r.Seen, r.Twin.Verdict)
	}
	for _, s := range l.Outside.Strange {
		t.Logf("strange: %+v", s)
	}
	if l.Passed {
		t.Error("passed with two leaks")
	}
}
