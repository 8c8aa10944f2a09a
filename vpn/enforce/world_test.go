package enforce

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/vpn/egress"
)

// TestMain turns the test binary into the processes that the tests need: a sender
// in a cgroup of its own, an attacher that kills itself.
func TestMain(m *testing.M) {
	switch os.Getenv("ENFORCE_CHILD") {
	case "send":
		childSend()
	case "attach":
		childAttach()
	case "fuzz":
		childFuzz()
	case "readback":
		childReadBack()
	case "talk":
		childTalk()
	default:
		os.Exit(m.Run())
	}
}

// world is a black namespace with device bl0 and the internet behind it, a bpffs
// and two cgroups.
type world struct {
	t        *testing.T
	black    *link.NS
	internet *link.NS
	ifindex  int
	pins     string
	tunneld  string // cgroup folder
	other    string
}

var (
	handsetV4 = netip.MustParsePrefix("203.0.113.11/24")
	handsetV6 = netip.MustParsePrefix("2001:db8:113::11/64")
	gatewayV4 = netip.MustParseAddr("203.0.113.1")
	gatewayV6 = netip.MustParseAddr("2001:db8:113::1")
	macBlack  = net.HardwareAddr{2, 0, 0, 0, 0, 11}
	macNet    = net.HardwareAddr{2, 0, 0, 0, 0, 1}
)

func newWorld(t *testing.T) *world {
	t.Helper()
	proof.NeedRoot(t)
	w := &world{t: t}
	w.black, w.internet = namespace(t), namespace(t)
	w.in(w.black, func() error {
		return link.AddVeth(link.Port{Name: "bl0", MAC: macBlack}, link.Port{Name: "in0", MAC: macNet, NS: w.internet})
	})
	w.in(w.black, func() (err error) { w.ifindex, err = link.Index("bl0"); return err })
	w.pins = bpffs(t)
	w.tunneld, w.other = cgroup(t, "tunneld"), cgroup(t, "other")
	return w
}

// up gives both ends addresses and static neighbours. The floor must be there first.
func (w *world) up() {
	w.t.Helper()
	w.in(w.black, func() error { return FloorInForce(w.ifindex) })
	end := func(ns *link.NS, dev string, v4, v6 netip.Prefix, peer4, peer6 netip.Addr, mac net.HardwareAddr) {
		w.in(ns, func() error {
			for _, step := range []func() error{
				func() error { return link.SetUp(dev) },
				func() error { return link.AddAddr(dev, v4) },
				func() error { return link.AddAddr(dev, v6) },
				func() error { return link.AddNeighbour(dev, peer4, mac) },
				func() error { return link.AddNeighbour(dev, peer6, mac) },
			} {
				if err := step(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	end(w.black, "bl0", handsetV4, handsetV6, gatewayV4, gatewayV6, macNet)
	end(w.internet, "in0", netip.PrefixFrom(gatewayV4, 24), netip.PrefixFrom(gatewayV6, 64), handsetV4.Addr(), handsetV6.Addr(), macBlack)
}

func (w *world) in(ns *link.NS, fn func() error) {
	w.t.Helper()
	if err := ns.Do(fn); err != nil {
		w.t.Fatal(err)
	}
}

func namespace(t *testing.T) *link.NS {
	t.Helper()
	ns, err := link.Create("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns
}

// bpffs mounts a BPF file system of the test's own.
func bpffs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// cgroupRoot finds the cgroup2 mount, or mounts one in a temporary folder.
func cgroupRoot(t *testing.T) string {
	t.Helper()
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if i := strings.Index(s.Text(), " - cgroup2 "); i >= 0 && fields[3] == "/" {
			return fields[4]
		}
	}
	dir := t.TempDir()
	if err := unix.Mount("cgroup2", dir, "cgroup2", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func cgroup(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(cgroupRoot(t), fmt.Sprintf("rempart-test-%d-%s-%s", os.Getpid(), name, strings.ReplaceAll(t.Name(), "/", "-")))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var err error
		for range 50 { // a cgroup stays busy for a moment after its last process
			if err = os.Remove(dir); err == nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Error(err)
	})
	return dir
}

func cgroupID(t *testing.T, dir string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// child starts the test binary as what, in namespace ns and cgroup cg ("" = ours).
func (w *world) child(ns *link.NS, cg, what string, env ...string) *exec.Cmd {
	w.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(env, "ENFORCE_CHILD="+what)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if cg != "" {
		dir, err := os.Open(cg)
		if err != nil {
			w.t.Fatal(err)
		}
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	w.in(ns, cmd.Start)
	return cmd
}

// send sends one datagram from cgroup cg and waits for the sender's end.
func (w *world) send(ns *link.NS, cg, from, to string, mark int) {
	w.t.Helper()
	cmd := w.child(ns, cg, "send", "FROM="+from, "TO="+to, "MARK="+strconv.Itoa(mark))
	if err := cmd.Wait(); err != nil {
		w.t.Fatalf("sender: %v: %v", err, cmd.Stdout)
	}
}

func childSend() {
	mark, err := strconv.Atoi(os.Getenv("MARK"))
	fail(err)
	from, err := net.ResolveUDPAddr("udp", os.Getenv("FROM"))
	fail(err)
	to, err := net.ResolveUDPAddr("udp", os.Getenv("TO"))
	fail(err)
	c, err := net.ListenUDP("udp", from)
	fail(err)
	raw, err := c.SyscallConn()
	fail(err)
	if mark != 0 {
		fail(raw.Control(func(fd uintptr) { fail(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark)) }))
	}
	payload := []byte("rempart test")
	if size, _ := strconv.Atoi(os.Getenv("SIZE")); size > 0 { // larger than a frame: the kernel cuts it
		payload = make([]byte, size)
	}
	if segment, _ := strconv.Atoi(os.Getenv("SEGMENT")); segment > 0 {
		fail(raw.Control(func(fd uintptr) { fail(unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, segment)) }))
	}
	_, err = c.WriteToUDP(payload, to)
	fail(err)
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// frames is the number of frames that device dev of ns has received.
func (w *world) frames(ns *link.NS, dev string) (n int) {
	w.t.Helper()
	w.in(ns, func() error {
		c, err := rxPackets(dev)
		n = int(c)
		return err
	})
	return n
}

// tunnel is the policy of a handset with one gateway over both stacks.
func (w *world) tunnel() egress.Policy {
	id := cgroupID(w.t, w.tunneld)
	return egress.Policy{Classes: []egress.Class{
		{Gateway: "gateway", Addr: gatewayV4, Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: id},
		{Gateway: "gateway", Addr: gatewayV6, Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: id},
	}}
}
