package hostilenet

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/netns"
	"rempart/board/scenario/attack"
	"rempart/board/scenario/watch"
	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/tools/lab/bringup"
	"rempart/tools/lab/leak"
)

func TestMain(m *testing.M) {
	netns.Stage()
	os.Exit(m.Run())
}

// net is a world whose network gives addresses, with one handset in its tunnel.
type network struct {
	w   *netns.World
	bin string
	dir string
}

const worldName = "hostilenet"

// TestHostileNetwork plays the attacks in one world, one after another; the last ones change what the handset leases.
func TestHostileNetwork(t *testing.T) {
	proof.NeedRoot(t)
	proof.Need(t, "swtpm", "swtpm_setup", "tcpdump", "dnsmasq", "radvd")
	bin := os.Getenv("REMPART_BIN")
	if bin == "" {
		proof.Missing(t, "REMPART_BIN, the folder of the built programs (run make scenarios)")
	}
	n := &network{bin: bin, dir: t.TempDir()}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var err error
	if n.w, err = netns.Start(ctx, worldName, n.dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := netns.Down(ctx, worldName); err != nil {
			t.Error(err)
		}
	})
	if err := bringup.Up(ctx, n.w, bringup.Options{State: n.dir, Handsets: 1, Bin: bin, DHCP: true}, func(s string) { t.Log(s) }); err != nil {
		t.Fatalf("%v\n%s", err, n.console())
	}
	t.Run("probes", n.probes)
	t.Run("server IP", n.serverIP)
	t.Run("TunnelVision", n.tunnelVision)
	t.Run("local net", n.localNet)
	t.Run("moved", n.moved)
}

func (n *network) console() string {
	b, _ := os.ReadFile(filepath.Join(n.dir, "machines", "a", "console.log")) // what there is is better than nothing
	return string(b)
}

func (n *network) status(t *testing.T) *netns.Status {
	t.Helper()
	s, err := n.w.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (n *network) handset(t *testing.T) netns.Machine {
	t.Helper()
	m, ok := n.status(t).Machine("a")
	if !ok {
		t.Fatal("there is no handset")
	}
	return m
}

// in runs fn in a network namespace by its path.
func in(t *testing.T, path string, fn func() error) {
	t.Helper()
	ns, err := link.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// lease is what the handset has in black: its addresses and routes, without its random halves.
func (n *network) lease(t *testing.T) (addresses []netip.Prefix, routes []string) {
	t.Helper()
	m := n.handset(t)
	in(t, m.Paths.Black, func() (err error) {
		if addresses, err = link.Addresses(m.Radio.Device); err != nil {
			return err
		}
		all, err := link.Routes(m.Radio.Device)
		for _, r := range all {
			if !slices.Contains(addresses, r.To) { // its own addresses are its own
				routes = append(routes, fmt.Sprint(r.To, " via ", r.Via))
			}
		}
		return err
	})
	slices.Sort(routes)
	return addresses, routes
}

// waitUp gives the PIN when it is asked for, and waits for the tunnel and, of what is leased, an address that is wanted.
func (n *network) waitUp(t *testing.T, wanted func(netip.Addr) bool) {
	t.Helper()
	last := ""
	for deadline := time.Now().Add(25 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		s, err := bringup.StatusOf(t.Context(), n.w, "a")
		if err != nil {
			last = err.Error()
			continue
		}
		if s.Keystore.State == "sealed" {
			if _, err := n.w.Phone(t.Context(), "a", []byte(bringup.DefaultPIN+"\n"), "unlock"); err != nil {
				last = err.Error()
			}
			continue
		}
		last = fmt.Sprintf("keystore %s, tunnel %s (%s)", s.Keystore.State, s.Tunnel.State, s.Tunnel.Reason)
		if s.Tunnel.State != "up" {
			continue
		}
		addresses, _ := n.lease(t)
		last += fmt.Sprint(", addresses ", addresses)
		if slices.ContainsFunc(addresses, func(p netip.Prefix) bool { return wanted(p.Addr()) }) {
			return
		}
	}
	t.Fatalf("the handset did not come up: %s\n%s", last, n.console())
}

func (n *network) restart(t *testing.T, wanted func(netip.Addr) bool) {
	t.Helper()
	if _, err := n.w.Restart(t.Context(), "a", 2*time.Second); err != nil {
		t.Fatal(err)
	}
	n.waitUp(t, wanted)
}

// observe captures all that is on the link while fn runs, and judges every frame of it.
func (n *network) observe(t *testing.T, markers []attack.Marker, fn func(), rules func() watch.Rules) (s watch.Summary) {
	t.Helper()
	path := filepath.Join(n.dir, strings.ReplaceAll(t.Name(), "/", "-")+".pcapng")
	c, err := n.w.Capture(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	fn()
	result, err := c.Stop()
	if err != nil || !result.Complete() {
		t.Fatalf("the capture is not whole: %+v, %v", result, err)
	}
	w, err := watch.New(rules())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range markers {
		if err := w.Mark(watch.Marker(m)); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := w.Read(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	s = w.Summary()
	if err := s.Check(); err != nil {
		t.Errorf("%v: %+v", err, s.Strange)
	}
	for _, c := range s.Classes {
		t.Logf("%s %s: %d frames", c.Class, c.Direction, c.Frames)
	}
	return s
}

func (n *network) rules(t *testing.T) watch.Rules { return leak.Rules(n.status(t)) }

// attempts are datagrams and connections to one target, from red, from black and from an app, each with its marker.
type attempts struct {
	markers []attack.Marker
	run     func()
}

func (n *network) attempts(t *testing.T, jobs ...attack.Job) attempts {
	t.Helper()
	var a attempts
	var commands [][]string
	for _, place := range []string{"red", "black", "notes"} {
		for _, j := range jobs {
			if _, err := rand.Read(j.Marker[:]); err != nil {
				t.Fatal(err)
			}
			a.markers = append(a.markers, j.Marker)
			commands = append(commands, append([]string{place, filepath.Join(n.bin, "rempart-lab"), "attempt"}, j.Args()...))
		}
	}
	a.run = func() {
		for _, c := range commands {
			where := netns.Where{Machine: "a", Colour: c[0]}
			if c[0] == "notes" { // an app of the person's, which may use the tunnel
				where = netns.Where{Machine: "a", Colour: "red", App: c[0]}
			}
			cmd, err := n.w.Command(t.Context(), where, c[1:]...)
			if err != nil {
				t.Fatal(err)
			}
			// How it fares is told by its last line and by the capture; one that is refused ends with an error.
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Logf("%v: %v: %s", c[3:], err, out)
			}
		}
	}
	return a
}

// send sends one datagram from the calling thread's namespace.
func send(to netip.AddrPort, payload []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = unix.Sendto(fd, payload, 0, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	return errors.Join(err, unix.Close(fd))
}

// host is a victim on a link of its own that does as it is told: the device "air" in its namespace, and the other end, which
// sees what leaves and can send to it.
type host struct {
	*link.NS
	ear, mouth int
}

// seen is what left since it was asked last.
func (h *host) seen() [][]byte { return arrived(h.ear, 100*time.Millisecond) }

func (h *host) send(t *testing.T, frame []byte) {
	t.Helper()
	if _, err := unix.Write(h.mouth, frame); err != nil {
		t.Fatal(err)
	}
}

func victim(t *testing.T, configure func() error) *host {
	t.Helper()
	inside, err := link.Create("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inside.Close() })
	h := &host{NS: inside}
	outside, err := link.Create("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { outside.Close() })
	if err := outside.Do(func() error {
		if err := link.AddVeth(link.Port{Name: "out"}, link.Port{Name: "air", NS: inside, MAC: []byte{2, 0, 0, 0, 0, 0x77}}); err != nil {
			return err
		}
		if err := link.SetUp("out"); err != nil {
			return err
		}
		if h.ear, err = sniffer("out"); err != nil {
			return err
		}
		h.mouth, err = sender("out")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(h.ear); unix.Close(h.mouth) })
	if err := inside.Do(func() error { return errors.Join(link.SetUp("air"), configure()) }); err != nil {
		t.Fatal(err)
	}
	return h
}

// sniffer hears every frame that comes in through a device of the calling thread's namespace, and none that goes out.
func sniffer(device string) (int, error) { return hear(device, true) }

// hear hears a device, with what goes out through it or without.
func hear(device string, incoming bool) (int, error) {
	index, err := link.Index(device)
	if err != nil {
		return 0, err
	}
	const all = 0x0300 // ETH_P_ALL in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return 0, err
	}
	const ignoreOutgoing = 23 // PACKET_IGNORE_OUTGOING
	ignore := 0
	if incoming {
		ignore = 1
	}
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_PACKET, ignoreOutgoing, ignore), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<24),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}))
	if err != nil {
		return 0, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// arrived returns what has come until nothing comes for a while.
func arrived(fd int, quiet time.Duration) (frames [][]byte) {
	b := make([]byte, 2048)
	for {
		if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(quiet.Milliseconds())); n <= 0 {
			return frames
		}
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			return frames
		}
		frames = append(frames, slices.Clone(b[:n]))
	}
}
