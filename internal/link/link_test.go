package link

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/proof"
)

var (
	macA = net.HardwareAddr{2, 0, 0, 0, 0, 0xa}
	macB = net.HardwareAddr{2, 0, 0, 0, 0, 0xb}
)

// world makes an anonymous namespace that the test closes.
func world(t *testing.T) *NS {
	t.Helper()
	proof.NeedRoot(t)
	ns, err := Create("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// in runs fn in ns and fails the test on its error.
func in(t *testing.T, ns *NS, fn func() error) {
	t.Helper()
	if err := ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

func id(t *testing.T, ns *NS) uint64 {
	t.Helper()
	n, err := ns.ID()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNamespaceIsNewAndHomeUntouched(t *testing.T) {
	ns := world(t)
	home, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	if id(t, home) == id(t, ns) {
		t.Fatal("the new namespace is the old one")
	}
	in(t, ns, func() error {
		inside, err := Self()
		if err != nil {
			return err
		}
		defer inside.Close()
		if id(t, inside) != id(t, ns) {
			t.Error("Do ran somewhere else")
		}
		devices, err := List()
		if err == nil && (len(devices) != 1 || devices[0].Name != "lo" || devices[0].Up) {
			t.Errorf("a new namespace has %+v, want lo alone and down", devices)
		}
		return err
	})
	// No goroutine, on whatever thread, may find itself in ns afterwards.
	for range 200 {
		done := make(chan uint64)
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			self, err := Self()
			if err != nil {
				done <- 0
				return
			}
			defer self.Close()
			n, _ := self.ID()
			done <- n
		}()
		if got := <-done; got != id(t, home) {
			t.Fatalf("a goroutine runs in namespace %d, want %d", got, id(t, home))
		}
	}
}

func threads(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestDoLeavesNoThreadInsideAndNoDescriptor(t *testing.T) {
	ns := world(t)
	want := "net:[" + uitoa(id(t, ns)) + "]"
	inside := func() (n int) {
		tasks, _ := filepath.Glob("/proc/self/task/*/ns/net")
		for _, task := range tasks {
			if got, err := os.Readlink(task); err == nil && got == want {
				n++
			}
		}
		return n
	}
	before := fds(t)
	for range 50 {
		in(t, ns, func() error { return nil })
	}
	for start := time.Now(); inside() > 0; time.Sleep(time.Millisecond) {
		if time.Since(start) > 5*time.Second {
			t.Fatalf("%d threads of %d stayed in the namespace", inside(), threads(t))
		}
	}
	if after := fds(t); after > before {
		t.Fatalf("%d descriptors before, %d after", before, after)
	}
}

func fds(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func uitoa(n uint64) string {
	var digits []byte
	for ; n > 0 || digits == nil; n /= 10 {
		digits = append([]byte{byte('0' + n%10)}, digits...)
	}
	return string(digits)
}

func TestDoReturnsTheErrorAndSurvivesGoexit(t *testing.T) {
	ns := world(t)
	boom := errors.New("boom")
	if err := ns.Do(func() error { return boom }); !errors.Is(err, boom) {
		t.Errorf("Do returned %v, want boom", err)
	}
	if err := ns.Do(func() error { runtime.Goexit(); return nil }); !errors.Is(err, errExited) {
		t.Errorf("Do returned %v after Goexit, want %v", err, errExited)
	}
}

func TestNamedNamespace(t *testing.T) {
	proof.NeedRoot(t)
	path := filepath.Join(t.TempDir(), "netns", "red")
	ns, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Create(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second namespace of the same name: %v, want %v", err, fs.ErrExist)
	}
	want := id(t, ns)
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(path) // the name alone kept it
	if err != nil {
		t.Fatal(err)
	}
	if id(t, again) != want {
		t.Error("the name leads to another namespace")
	}
	again.Close()
	if err := Delete(path); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Delete: %v, want %v", err, fs.ErrNotExist)
	}
}

func TestOpenRefusesWhatIsNoNetwork(t *testing.T) {
	for _, path := range []string{"/proc/self/ns/mnt", "/proc/self/status", "/nowhere"} {
		if ns, err := Open(path); err == nil {
			ns.Close()
			t.Errorf("%s was opened as a network namespace", path)
		} else if !strings.Contains(err.Error(), path) {
			t.Errorf("the error %q does not name %s", err, path)
		}
	}
}

func TestOpenPID(t *testing.T) {
	ns, err := OpenPID(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	self, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	if id(t, ns) != id(t, self) {
		t.Error("OpenPID of this process is not Self")
	}
}

func TestPairBetweenTwoNamespacesCarriesPackets(t *testing.T) {
	a, b, home := world(t), world(t), homeDevices(t)
	if err := AddVeth(Port{Name: "wwan0", NS: a, MAC: macA, MTU: 1400}, Port{Name: "radio-a", NS: b, MAC: macB, MTU: 1400}); err != nil {
		t.Fatal(err)
	}
	if now := homeDevices(t); now != home {
		t.Errorf("the desk's own devices changed from %q to %q", home, now)
	}
	setup := func(name, v4, v6 string, peer4, peer6 string, mac net.HardwareAddr) func() error {
		return func() error {
			devices, err := List()
			if err != nil {
				return err
			}
			for _, d := range devices {
				if d.Name == name && (d.Up || d.Kind != "veth") {
					t.Errorf("%+v was not born a veth that is down", d)
				}
			}
			return errors.Join(
				Sysctl("net/ipv6/conf/"+name+"/router_solicitations", "0"),
				AddAddr(name, netip.MustParsePrefix(v4)), AddAddr(name, netip.MustParsePrefix(v6)),
				SetGSOMaxSegs(name, 1), SetTXChecksum(name, false), SetUp(name),
				AddNeighbour(name, netip.MustParseAddr(peer4), mac),
				AddNeighbour(name, netip.MustParseAddr(peer6), mac),
				AddRoute(Route{To: netip.MustParsePrefix("0.0.0.0/0"), Device: name, Via: netip.MustParseAddr(peer4), MTU: 1300}),
				AddRoute(Route{To: netip.MustParsePrefix("::/0"), Device: name, Via: netip.MustParseAddr(peer6)}),
				AddRoute(Route{To: netip.MustParsePrefix("10.9.0.0/16"), Device: name, Source: netip.MustParsePrefix(v4).Addr()}),
			)
		}
	}
	in(t, a, setup("wwan0", "203.0.113.11/24", "2001:db8:113::11/64", "203.0.113.1", "2001:db8:113::1", macB))
	in(t, b, setup("radio-a", "203.0.113.1/24", "2001:db8:113::1/64", "203.0.113.11", "2001:db8:113::11", macA))
	for _, to := range []string{"203.0.113.1", "2001:db8:113::1"} {
		var server net.PacketConn
		in(t, b, func() (err error) {
			server, err = net.ListenPacket("udp", net.JoinHostPort(to, "5000"))
			return err
		})
		defer server.Close()
		in(t, a, func() error {
			conn, err := net.Dial("udp", net.JoinHostPort(to, "5000"))
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write([]byte("hello"))
			return err
		})
		buf := make([]byte, 16)
		if err := server.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, _, err := server.ReadFrom(buf)
		if err != nil || string(buf[:n]) != "hello" {
			t.Errorf("to %s: got %q, %v", to, buf[:n], err)
		}
	}
	in(t, a, func() error { return Remove("wwan0") })
	in(t, b, func() error {
		if _, err := Index("radio-a"); err == nil {
			t.Error("the other end outlived the pair")
		}
		return nil
	})
}

func homeDevices(t *testing.T) string {
	t.Helper()
	devices, err := List()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range devices {
		names = append(names, d.Name)
	}
	return strings.Join(names, " ")
}

func TestPeerBornAtTheCallersByDefault(t *testing.T) {
	a, b := world(t), world(t)
	in(t, b, func() error {
		if err := AddVeth(Port{Name: "far", NS: a}, Port{Name: "near"}); err != nil {
			return err
		}
		_, err := Index("near")
		return err
	})
}

func TestBridgeRenameMoveDown(t *testing.T) {
	a, b := world(t), world(t)
	in(t, a, func() error {
		return errors.Join(AddBridge("br0", macA), AddVeth(Port{Name: "d0"}, Port{Name: "d1"}), SetMaster("d0", "br0"),
			SetMTU("d0", 1400), SetUp("br0"), SetDown("br0"), Rename("d1", "usb0"), MoveTo("usb0", b))
	})
	in(t, b, func() error { _, err := Index("usb0"); return err })
	in(t, a, func() error {
		devices, err := List()
		for _, d := range devices {
			if d.Name == "br0" && (d.MAC.String() != macA.String() || d.Up) {
				t.Errorf("bridge is %+v, want down with its fixed address", d)
			}
			if d.Name == "usb0" {
				t.Error("the moved device is still here")
			}
		}
		return err
	})
}

func TestQuietAndReceived(t *testing.T) {
	a, b := world(t), world(t)
	for _, ns := range []*NS{a, b} { // its own talk would be counted
		in(t, ns, func() error { return Sysctl("net/ipv6/conf/default/disable_ipv6", "1") })
	}
	if err := AddVeth(Port{Name: "quiet", NS: a}, Port{Name: "far", NS: b}); err != nil {
		t.Fatal(err)
	}
	in(t, a, func() error { return errors.Join(SetQuiet("quiet"), SetUp("quiet")) })
	in(t, b, func() error {
		if err := errors.Join(SetQuiet("far"), SetUp("far"), AddAddr("far", netip.MustParsePrefix("10.0.0.1/24")),
			AddNeighbour("far", netip.MustParseAddr("10.0.0.2"), macA)); err != nil {
			return err
		}
		conn, err := net.Dial("udp", "10.0.0.2:9")
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte("one"))
		return err
	})
	in(t, a, func() error {
		n, err := Received("quiet")
		if err == nil && n != 1 {
			t.Errorf("received %d frames, want the one that was sent", n)
		}
		if _, gone := Received("none"); gone == nil {
			t.Error("a device that is not there has counters")
		}
		return err
	})
}

func TestTUN(t *testing.T) {
	ns := world(t)
	in(t, ns, func() error {
		f, err := OpenTUN("wg0")
		if err != nil {
			return err
		}
		if _, err := OpenTUN("wg0"); err == nil {
			t.Error("one name gave two devices")
		}
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("the descriptor survives exec (flags %d, %v)", flags, err)
		}
		if err := errors.Join(SetMTU("wg0", 1420), SetUp("wg0"), f.Close()); err != nil {
			return err
		}
		if _, err := Index("wg0"); err == nil {
			t.Error("the device outlived its descriptor")
		}
		_, err = OpenTUN("a name that is too long")
		if err == nil {
			t.Error("a name of 23 bytes was taken")
		}
		return nil
	})
}

func TestErrorsNameTheObject(t *testing.T) {
	ns := world(t)
	in(t, ns, func() error {
		for what, err := range map[string]error{
			"no0":          SetUp("no0"),
			"no1":          AddAddr("no1", netip.MustParsePrefix("10.0.0.1/8")),
			"no2":          AddRoute(Route{To: netip.MustParsePrefix("::/0"), Device: "no2"}),
			"no3":          SetMaster("lo", "no3"),
			"no4":          SetTXChecksum("no4", false),
			"too-long-for": SetTXChecksum("too-long-for-a-device", false),
			"net/ipv4/no5": Sysctl("net.ipv4.no5", "1"),
			"10.1.2.3/8":   errors.Join(AddAddr("lo", netip.MustParsePrefix("10.1.2.3/8")), AddAddr("lo", netip.MustParsePrefix("10.1.2.3/8"))),
		} {
			if err == nil || !strings.Contains(err.Error(), what) {
				t.Errorf("error %v does not name %s", err, what)
			}
		}
		return nil
	})
}

func TestSysctlIsTheNamespaces(t *testing.T) {
	a, b := world(t), world(t)
	const key = "/proc/sys/net/ipv4/ip_forward"
	in(t, a, func() error { return Sysctl("net.ipv4.ip_forward", "1") })
	for ns, want := range map[*NS]string{a: "1\n", b: "0\n"} {
		in(t, ns, func() error {
			got, err := os.ReadFile(key)
			if err == nil && string(got) != want {
				t.Errorf("ip_forward is %q, want %q", got, want)
			}
			return err
		})
	}
}
