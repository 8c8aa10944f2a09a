package guard

import (
	"bufio"
	"errors"
	"fmt"
	"net"
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
)

// guarded is a handset's cgroup with the guard over it, a namespace with a veth,
// and what the desk has: the host's file systems.
type guarded struct {
	t      *testing.T
	guard  *Guard
	pins   string
	cgroup string // the handset's
	sub    string // a daemon's, below it
	desk   string // another one, beside it
	ns     *link.NS
	far    *link.NS
}

// unguarded is the same without the guard, for the failing twins.
func unguarded(t *testing.T) *guarded {
	t.Helper()
	proof.NeedRoot(t)
	w := &guarded{t: t}
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	w.pins = filepath.Join(dir, "guard")
	if err := os.Mkdir(w.pins, 0o700); err != nil {
		t.Fatal(err)
	}
	root := cgroup2(t)
	w.cgroup = makeCgroup(t, filepath.Join(root, fmt.Sprintf("rempart-guard-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))))
	w.sub = makeCgroup(t, filepath.Join(w.cgroup, "daemon"))
	w.desk = makeCgroup(t, filepath.Join(root, fmt.Sprintf("rempart-desk-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))))
	var err error
	if w.ns, err = link.Create(""); err != nil {
		t.Fatal(err)
	}
	if w.far, err = link.Create(""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(w.ns.Close(), w.far.Close()); err != nil {
			t.Error(err)
		}
	})
	w.hotplug("usb0")
	for _, protocol := range []int{unix.NETLINK_XFRM, unix.NETLINK_NETFILTER} {
		// The kernel may have to load these first, which it does not do for an attacker.
		if err := withSocket(unix.AF_NETLINK, protocol, func(int) error { return nil }); err != nil && !errors.Is(err, unix.EPROTONOSUPPORT) {
			t.Fatal(err)
		}
	}
	return w
}

func newGuarded(t *testing.T) *guarded {
	t.Helper()
	w := unguarded(t)
	var err error
	if w.guard, err = installForm(loadLSM, w.cgroup, w.pins); errors.Is(err, ErrNoLSM) {
		// The kernel is not a tool that setup could install: no failure in CI either.
		t.Skipf("the guard cannot be shown on this kernel: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.guard.Remove(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// hotplug makes a device in the namespace, its other end up and listening.
func (w *guarded) hotplug(name string) {
	w.t.Helper()
	err := w.ns.Do(func() error {
		return link.AddVeth(link.Port{Name: name}, link.Port{Name: name + "far", NS: w.far})
	})
	if err == nil {
		err = w.far.Do(func() error { return link.SetUp(name + "far") })
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// isUp asks, from outside, for the device's flags.
func (w *guarded) isUp(name string) (up bool) {
	w.t.Helper()
	if err := w.ns.Do(func() error {
		i, err := net.InterfaceByName(name)
		up = err == nil && i.Flags&net.FlagUp != 0
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	return up
}

func makeCgroup(t *testing.T, dir string) string {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var err error
		for range 100 { // busy for a moment after its last process
			if err = os.Remove(dir); err == nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Error(err)
	})
	return dir
}

// cgroup2 finds the cgroup2 mount, or mounts one in a temporary folder.
func cgroup2(t *testing.T) string {
	t.Helper()
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); strings.Contains(s.Text(), " - cgroup2 ") && fields[3] == "/" {
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

// start starts a command as root with every capability, the desk's file system, the
// network namespace and a cgroup: what rempart-lab exec gives an attacker.
//
// It also hands in a packet socket, as descriptor 3.
func (w *guarded) start(cgroup string, out *strings.Builder, env []string, name string, args ...string) *exec.Cmd {
	w.t.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		w.t.Fatal(err)
	}
	defer dir.Close()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	cmd.Stdout, cmd.Stderr = out, out
	if err := w.ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		packet := os.NewFile(uintptr(fd), "packet socket")
		defer packet.Close()
		cmd.ExtraFiles = []*os.File{packet}
		return cmd.Start()
	}); err != nil {
		w.t.Fatal(err)
	}
	return cmd
}

func (w *guarded) command(cgroup, name string, args ...string) (string, error) {
	w.t.Helper()
	var out strings.Builder
	err := w.start(cgroup, &out, nil, name, args...).Wait()
	return out.String(), err
}

// TestGuardChild is the attacker: the test binary, started with a list of attempts.
func TestGuardChild(t *testing.T) {
	list := os.Getenv("GUARD_ATTEMPTS")
	if list == "" {
		t.Skip("not a child")
	}
	for _, what := range strings.Split(list, ",") {
		err := attempt(what)
		var errno unix.Errno
		switch {
		case err == nil:
			fmt.Printf("attempt %s: done\n", what)
		case errors.As(err, &errno):
			fmt.Printf("attempt %s: %s\n", what, unix.ErrnoName(errno))
		default:
			fmt.Printf("attempt %s: %v\n", what, err)
		}
	}
}

// try runs attempts in cgroup and returns the answers.
func (w *guarded) try(cgroup string, what ...string) map[string]string {
	w.t.Helper()
	pin := filepath.Join(filepath.Dir(w.pins), "some-pin")
	if err := os.Mkdir(pin, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		w.t.Fatal(err)
	}
	var out strings.Builder
	cmd := w.start(cgroup, &out, []string{"GUARD_ATTEMPTS=" + strings.Join(what, ","), "DESK=" + w.desk,
		"PIN=" + pin, "SUPERVISOR=" + strconv.Itoa(os.Getpid()), "OTHER=" + strconv.Itoa(os.Getppid())}, os.Args[0], "-test.run=^TestGuardChild$")
	if err := cmd.Wait(); err != nil {
		w.t.Fatalf("attacker: %v: %s", err, &out)
	}
	answers := map[string]string{}
	for line := range strings.Lines(out.String()) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "attempt "); ok {
			name, answer, _ := strings.Cut(rest, ": ")
			answers[name] = answer
		}
	}
	if len(answers) != len(what) {
		w.t.Fatalf("%d answers to %d attempts: %s", len(answers), len(what), &out)
	}
	return answers
}

func TestRootInTheHandsetIsRefused(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "TestWithoutTheGuardEachAttemptWorks")
	w := newGuarded(t)
	for _, cg := range []string{w.cgroup, w.sub} {
		answers := w.try(cg, attemptOrder...)
		for _, what := range attemptOrder {
			// /proc/PID/mem turns every refusal into EACCES.
			if answers[what] != "EPERM" && !(strings.HasPrefix(what, "ptrace-") && answers[what] == "EACCES") {
				t.Errorf("%s in %s: %s, want EPERM", what, filepath.Base(cg), answers[what])
			}
		}
		for what, answer := range w.try(cg, harmlessOrder...) {
			if answer != "done" {
				t.Errorf("harmless %s in %s: %s", what, filepath.Base(cg), answer)
			}
		}
	}
	if w.isUp("usb0") {
		t.Error("usb0 is up")
	}
	if c, err := w.guard.Counts(HookSocket); err != nil || c.Refused < 8 || c.Allowed == 0 {
		t.Errorf("socket counts %+v, %v", c, err)
	}
}

// TestTheHandsetLoadsNoModule: what the kernel would load for anyone who asks (here with the desk as the twin) it does not
// load for the handset.
func TestTheHandsetLoadsNoModule(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the desk in the same test")
	w := newGuarded(t)
	if answer := w.try(w.sub, "autoload")["autoload"]; answer != "EPROTONOSUPPORT" {
		t.Errorf("a module was loaded, or was there before: %s", answer)
	}
	if c, err := w.guard.Counts(HookModule); err != nil || c.Refused == 0 {
		t.Errorf("module counts %+v, %v", c, err)
	}
	if answer := w.try(w.desk, "autoload")["autoload"]; answer != "done" {
		t.Errorf("the desk: %s", answer)
	}
}

// The twin: without the guard no attempt is refused by a permission.
func TestWithoutTheGuardEachAttemptWorks(t *testing.T) {
	w := unguarded(t)
	answers := w.try(w.cgroup, attemptOrder...)
	for _, what := range attemptOrder {
		if answers[what] == "EPERM" || answers[what] == "EACCES" {
			t.Errorf("%s: %s without any guard: the attempt proves nothing", what, answers[what])
		}
	}
	for _, what := range []string{"packet", "netlink-up", "ioctl-up", "sysfs-up", "bpf", "leave-cgroup", "clone-into-cgroup", "unlink-pin", "ptrace-supervisor",
		"ptrace-other", "mark", "passed-packet", "umount-bpffs", "move-bpffs", "new-move-bpffs", "kill-supervisor", "perf", "sysctl"} {
		if answers[what] != "done" {
			t.Errorf("%s: %s without any guard, want done", what, answers[what])
		}
	}
	if !w.isUp("usb0") {
		t.Error("usb0 is not up")
	}
}

func TestTheDeskIsNotAffected(t *testing.T) {
	w := newGuarded(t)
	answers := w.try(w.desk, append(append([]string{}, harmlessOrder...), "packet", "netlink-up", "ioctl-up", "bpf", "clone-into-cgroup", "mark", "passed-packet",
		"ptrace-other", "umount-bpffs", "kill-supervisor", "perf", "userns", "sysctl", "sysrq", "leave-cgroup")...)
	for what, answer := range answers {
		if answer != "done" {
			t.Errorf("%s outside the handset: %s", what, answer)
		}
	}
}

func TestTrustIsThePidfdsAlone(t *testing.T) {
	w := newGuarded(t)
	// A trusted shell: what it does itself is allowed; what its children do is not.
	script := `read go; echo 0x1003 > "$1"/class/net/usb0/flags && echo self-done || echo self-refused; ip link set usb0 mtu 1400 && echo child-done || echo child-refused`
	dir := t.TempDir()
	if err := w.ns.Do(func() error { return unix.Mount("sysfs", dir, "sysfs", 0, "") }); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	proof.Need(t, "ip", "sh")
	cg, err := os.Open(w.sub)
	if err != nil {
		t.Fatal(err)
	}
	defer cg.Close()
	cmd := exec.Command("sh", "-c", script, "sh", dir)
	pidfd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd()), PidFD: &pidfd}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := w.ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if err := w.guard.Trust(pidfd); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	if !strings.Contains(out.String(), "self-done") || !strings.Contains(out.String(), "child-refused") {
		t.Errorf("output %s; want self-done and child-refused", &out)
	}
}

// The person at the desk may look: the usual tools read, and change nothing.
func TestOrdinaryToolsStillRead(t *testing.T) {
	proof.Need(t, "ip")
	w := newGuarded(t)
	for _, args := range [][]string{{"link", "show"}, {"-br", "addr"}, {"route"}, {"-6", "route"}, {"neigh"}, {"rule"}, {"-s", "link", "show", "usb0"}} {
		if out, err := w.command(w.sub, "ip", args...); err != nil {
			t.Errorf("ip %v: %v: %s", args, err, out)
		}
	}
	for _, args := range [][]string{{"link", "set", "usb0", "up"}, {"addr", "add", "192.0.2.1/24", "dev", "usb0"}, {"route", "add", "default", "dev", "usb0"},
		{"link", "add", "d0", "type", "veth"}, {"link", "del", "usb0"}, {"neigh", "add", "192.0.2.9", "lladdr", "02:00:00:00:00:09", "dev", "usb0"}} {
		if out, err := w.command(w.sub, "ip", args...); err == nil {
			t.Errorf("ip %v worked: %s", args, out)
		}
	}
}

// A device that appears while an attacker waits for it: every way to set it up is
// tried at once and all the time, and the far end never sees a frame.
func TestHotpluggedDeviceStaysDown(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "TestHotpluggedDeviceWithoutTheGuard")
	w := newGuarded(t)
	if n := w.attackHotplug(); n != 0 {
		t.Errorf("%d frames left a hot-plugged device", n)
	}
	if w.isUp("wwan7") {
		t.Error("wwan7 is up")
	}
}

func TestHotpluggedDeviceWithoutTheGuard(t *testing.T) {
	w := unguarded(t)
	if n := w.attackHotplug(); n == 0 {
		t.Error("no frame left the device without the guard: the attack proves nothing")
	}
}

func (w *guarded) attackHotplug() uint64 {
	w.t.Helper()
	proof.Need(w.t, "sh", "ip")
	var out strings.Builder
	script := `for i in $(seq 8); do ip link set wwan7 up; ip addr add 192.0.2.1/24 dev wwan7; echo x > /dev/udp/192.0.2.255/9; sleep 0.01; done 2>/dev/null; true`
	cmd := w.start(w.sub, &out, nil, "bash", "-c", script)
	w.hotplug("wwan7")
	if err := cmd.Wait(); err != nil {
		w.t.Fatalf("%v: %s", err, &out)
	}
	var n uint64
	if err := w.far.Do(func() error {
		data, err := os.ReadFile("/proc/thread-self/net/dev")
		for line := range strings.Lines(string(data)) {
			if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "wwan7far:"); ok {
				n, err = strconv.ParseUint(strings.Fields(rest)[1], 10, 64)
			}
		}
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	return n
}

func TestGuardReadBackNoticesAndPinsHold(t *testing.T) {
	w := newGuarded(t)
	if err := w.guard.ReadBack(); err != nil {
		t.Fatal(err)
	}
	// A second guard must not take the pins over, nor take them away.
	if g, err := installForm(loadLSM, w.cgroup, w.pins); err == nil {
		t.Error("a second guard took over the pins")
		_ = g.Close()
	}
	if err := w.guard.ReadBack(); err != nil {
		t.Errorf("after a refused second guard: %v", err)
	}
	// Descriptors gone, pins there: in force.
	if err := w.guard.Close(); err != nil {
		t.Fatal(err)
	}
	if answer := w.try(w.cgroup, "packet")["packet"]; answer != "EPERM" {
		t.Errorf("packet after Close: %s, want EPERM: the pins hold the guard", answer)
	}
	pins, err := os.ReadDir(w.pins)
	if err != nil || len(pins) < 6 {
		t.Fatalf("%d pins, %v", len(pins), err)
	}
	for _, p := range pins {
		if err := os.Remove(filepath.Join(w.pins, p.Name())); err != nil {
			t.Error(err)
		}
	}
	var answer string
	for range 20 { // the kernel frees links a moment later
		if answer = w.try(w.cgroup, "packet")["packet"]; answer == "done" {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("packet after the pins went too: %s", answer)
}

func TestGuardReadBackNoticesAMissingPinAndADetachedLink(t *testing.T) {
	w := newGuarded(t)
	if err := os.Remove(filepath.Join(w.pins, "guard_socket")); err != nil {
		t.Fatal(err)
	}
	if err := w.guard.ReadBack(); err == nil || !strings.Contains(err.Error(), "guard_socket") {
		t.Errorf("read back without a pin: %v", err)
	}
	for _, h := range w.guard.hooks {
		if h.name == "guard_netlink" {
			if err := errors.Join(h.link.Unpin(), h.link.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.guard.ReadBack(); err == nil || !strings.Contains(err.Error(), "guard_netlink") {
		t.Errorf("read back without a link: %v", err)
	}
}
