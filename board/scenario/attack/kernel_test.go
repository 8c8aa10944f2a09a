package attack_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"rempart/board/scenario/attack"
	"rempart/board/scenario/watch"
	"rempart/internal/proof"
)

// The test binary is its own sender: `ip netns exec NAME test-binary` with
// ATTACK_CHILD set attacks instead of testing.
func TestMain(m *testing.M) {
	if os.Getenv("ATTACK_CHILD") == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	j, err := attack.Parse(os.Args[1:])
	if err == nil {
		_, err = attack.Run(ctx, j, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// wire is two namespaces, a handset's and a stranger's, and one cable.
type wire struct{ handset, stranger string }

func newWire(t *testing.T) wire {
	t.Helper()
	proof.NeedRoot(t)
	proof.Need(t, "ip", "tcpdump")
	id := fmt.Sprintf("rwa%d", os.Getpid())
	w := wire{id + "h", id + "s"}
	for _, n := range []string{w.handset, w.stranger} {
		ip(t, "netns", "add", n)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", n).Run() })
		ip(t, "netns", "exec", n, "sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
	}
	ip(t, "-n", w.handset, "link", "add", "wwan0", "address", "02:00:00:00:00:11", "type", "veth", "peer", "name", "air", "address", "02:00:00:00:00:fe", "netns", w.stranger)
	ip(t, "-n", w.handset, "addr", "add", "203.0.113.11/24", "dev", "wwan0")
	ip(t, "-n", w.handset, "addr", "add", "2001:db8:113::11/64", "dev", "wwan0", "nodad")
	ip(t, "-n", w.stranger, "link", "set", "air", "up")
	ip(t, "-n", w.handset, "link", "set", "wwan0", "up")
	ip(t, "-n", w.handset, "link", "set", "lo", "up")
	for _, hop := range []string{"203.0.113.254", "2001:db8:113::fe"} {
		ip(t, "-n", w.handset, "neigh", "replace", hop, "lladdr", "02:00:00:00:00:fe", "dev", "wwan0", "nud", "permanent")
	}
	ip(t, "-n", w.handset, "route", "add", "default", "via", "203.0.113.254")
	ip(t, "-n", w.handset, "-6", "route", "add", "default", "via", "2001:db8:113::fe")
	return w
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// listen starts tcpdump at the stranger's end and returns once it is listening.
// tcpdump writes the old format, which the package under test does not read: a
// second implementation writes it again as pcapng.
func (w wire) listen(t *testing.T, device string, watcher *watch.Watcher) (stop func()) {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", w.stranger, "tcpdump", "-n", "-i", device, "-U", "--immediate-mode", "-s", "0", "-w", "-")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(said).ReadString('\n'); err != nil || !strings.Contains(line, "listening on") {
		t.Fatalf("tcpdump said %q, %v", line, err)
	}
	r, p := io.Pipe()
	go func() { p.CloseWithError(toNg(out, p)) }()
	done := make(chan error, 1)
	go func() { done <- watcher.Read(context.Background(), r) }()
	return func() {
		t.Helper()
		cmd.Process.Signal(syscall.SIGINT)
		if err := <-done; err != nil {
			t.Error(err)
		}
		cmd.Wait()
	}
}

func toNg(in io.Reader, out io.Writer) error {
	r, err := pcapgo.NewReader(in)
	if err != nil {
		return err
	}
	w, err := pcapgo.NewNgWriter(out, layers.LinkTypeEthernet)
	if err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for {
		data, ci, err := r.ReadPacketData()
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		} else if err != nil {
			return err
		}
		ci.InterfaceIndex = 0
		if err := w.WritePacket(ci, data); err != nil {
			return err
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
}

// attack runs the job on a thread of its own in the handset's namespace.
func (w wire) attack(t *testing.T, ctx context.Context, j attack.Job) attack.Result {
	t.Helper()
	ns, err := os.Open("/run/netns/" + w.handset)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var out bytes.Buffer
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			_, err = attack.Run(ctx, j, &out)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("%s IPv%d: %v", j.Kind, j.Family, err)
	}
	return resultOf(t, out.Bytes())
}

// packetSocket opens a packet socket in the handset's namespace, for somebody else to use.
func (w wire) packetSocket(t *testing.T) int {
	t.Helper()
	ns, err := os.Open("/run/netns/" + w.handset)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	type opened struct {
		fd  int
		err error
	}
	done := make(chan opened)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- opened{-1, err}
			return
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		done <- opened{fd, err}
	}()
	o := <-done
	if o.err != nil {
		t.Fatal(o.err)
	}
	t.Cleanup(func() { unix.Close(o.fd) })
	return o.fd
}

func (w wire) sender(ctx context.Context, j attack.Job) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", w.handset, os.Args[0]}, j.Args()...)...)
	cmd.Env = append(os.Environ(), "ATTACK_CHILD=1")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	return cmd
}

func job(k attack.Kind, f attack.Family) attack.Job {
	j := attack.Job{Kind: k, Family: f, Device: "wwan0", NextHop: []byte{2, 0, 0, 0, 0, 0xfe}, For: 300 * time.Millisecond,
		Target: netip.MustParseAddr("198.51.100.7"), Source: netip.MustParseAddr("203.0.113.11")}
	if f == attack.IPv6 {
		j.Target, j.Source = netip.MustParseAddr("2001:db8:51::7"), netip.MustParseAddr("2001:db8:113::11")
	}
	rand.Read(j.Marker[:])
	return j
}

func resultOf(t *testing.T, out []byte) attack.Result {
	t.Helper()
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	r, err := attack.ParseResult(lines[len(lines)-1])
	if err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	return r
}

// TestEveryKindReachesAStrangerWhereNothingStopsIt is the positive control of
// the whole leak test: a sender that does not work would read as "no leak".
func TestEveryKindReachesAStrangerWhereNothingStopsIt(t *testing.T) {
	w := newWire(t)
	watcher, err := watch.New(watch.Rules{})
	if err != nil {
		t.Fatal(err)
	}
	stop := w.listen(t, "air", watcher)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	kinds := []attack.Kind{attack.UDP, attack.TCP, attack.ICMP, attack.DNS, attack.BindToDevice, attack.Packet, attack.PacketBypass,
		attack.XDP, attack.Multicast, attack.Raw, attack.Mark, attack.Impostor, attack.Hotplug, attack.Constant,
		attack.DoT, attack.NTP, attack.LLMNR, attack.Broadcast, attack.Membership, attack.BindToIndex, attack.PktInfo, attack.Connected,
		attack.ReusePort, attack.Large, attack.GSO, attack.URing, attack.UDPLite, attack.MPTCP, attack.RawProtocol, attack.PacketDgram,
		attack.SockPacket, attack.PacketRing, attack.Passed, attack.VLAN, attack.EtherType, attack.ARP, attack.Options, attack.Fragment}
	sent := map[string]attack.Job{}
	for _, k := range kinds {
		for _, f := range []attack.Family{attack.IPv4, attack.IPv6} {
			j := job(k, f)
			if k != attack.Hotplug && k != attack.Constant {
				j.For = 0
			}
			if k == attack.Passed {
				j.FD = w.packetSocket(t)
			}
			if err := watcher.Mark(watch.Marker(j.Marker), attack.Traces(k, f, j.Marker)...); err != nil {
				t.Fatal(err)
			}
			r := w.attack(t, ctx, j)
			if r.Sent == 0 {
				t.Errorf("%s IPv%d: sent nothing: %+v", k, f, r)
			}
			soon, enough := context.WithTimeout(ctx, 5*time.Second)
			err := seen(soon, watcher, watch.Marker(j.Marker))
			enough()
			if err != nil {
				t.Errorf("%s IPv%d: %+v: never seen outside: %v", k, f, r, err)
			}
			sent[fmt.Sprintf("%s IPv%d", k, f)] = j
		}
	}
	stop()
	for name, j := range sent {
		n, seen := watcher.Seen(watch.Marker(j.Marker))
		if n == 0 {
			t.Errorf("%s: no frame", name)
			continue
		}
		if (j.Kind == attack.Constant || j.Kind == attack.Hotplug) && n < 20 {
			t.Errorf("%s: only %d frames in 300 ms", name, n)
		}
		t.Logf("%s: %d frames, first %s, %d bytes", name, n, seen[0].What, seen[0].Size)
	}
	if s := watcher.Summary(); s.Check() == nil || s.Outside != s.Frames {
		t.Errorf("with no class admitted, %d of %d frames count as outside", s.Outside, s.Frames)
	}
}

func TestRefusalsNameTheirErrno(t *testing.T) {
	w := newWire(t)
	ip(t, "-n", w.handset, "route", "del", "default")
	ip(t, "-n", w.handset, "-6", "route", "del", "default")
	gone := job(attack.Packet, attack.IPv4)
	gone.Device = "usb0"
	for want, j := range map[string]attack.Job{
		"ENETUNREACH": job(attack.UDP, attack.IPv4),
		"ENODEV":      gone,
	} {
		out, err := w.sender(context.Background(), j).Output()
		if err != nil {
			t.Fatal(err)
		}
		if r := resultOf(t, out); r.Errno != want || r.Sent != 0 {
			t.Errorf("%s: %+v, want %s", j.Kind, r, want)
		}
	}
}

func TestHotplugTakesADeviceTheMomentItAppears(t *testing.T) {
	w := newWire(t)
	watcher, err := watch.New(watch.Rules{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	j := job(attack.Hotplug, attack.IPv4)
	j.Device, j.For = "usb0", 5*time.Second
	watcher.Mark(watch.Marker(j.Marker))
	cmd := w.sender(ctx, j)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	first, err := lines.ReadBytes('\n')
	if r, perr := attack.ParseResult(first); err != nil || perr != nil || !r.Started {
		t.Fatalf("first line %q: %v, %v", first, err, perr)
	}
	// The stranger's end first, so that the capture is ready before the birth at the other.
	ip(t, "-n", w.stranger, "link", "add", "late", "type", "veth", "peer", "name", "usb9")
	ip(t, "-n", w.stranger, "link", "set", "late", "up")
	stop := w.listen(t, "late", watcher)
	ip(t, "-n", w.stranger, "link", "set", "usb9", "netns", w.handset, "name", "usb0")
	if err := seen(ctx, watcher, watch.Marker(j.Marker)); err != nil {
		t.Error(err)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	rest, _ := io.ReadAll(lines)
	cmd.Wait()
	if r := resultOf(t, rest); r.Sent == 0 || r.Started {
		t.Errorf("last line %+v", r)
	}
	stop()
}

// seen waits until the marker was in a captured frame.
func seen(ctx context.Context, w *watch.Watcher, m watch.Marker) error {
	for n := 1; ; n++ {
		if found, _ := w.Seen(m); found > 0 {
			return nil
		}
		if err := w.Await(ctx, n); err != nil {
			return err
		}
	}
}
