package guard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"rempart/internal/link"
	"rempart/internal/proof"
)

// newCalls puts the form Calls over a handset's cgroup. w.ns is init's own namespace,
// the dead end; other is another of the handset's.
func newCalls(t *testing.T) (w *guarded, other *link.NS) {
	t.Helper()
	w = unguarded(t)
	w.installCalls()
	t.Cleanup(func() {
		if err := w.guard.Remove(); err != nil {
			t.Error(err)
		}
	})
	return w, w.far
}

func (w *guarded) installCalls() {
	w.t.Helper()
	// Only a kernel that takes no tracepoint program at all is a reason to skip.
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.RawTracepoint, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	if err != nil {
		w.t.Skipf("this form of the guard cannot be shown on this kernel: %v", err)
	}
	p.Close()
	err = w.ns.Do(func() (err error) {
		w.guard, err = installForm(loadCalls, w.cgroup, w.pins)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// rows are those of callRows that this machine can carry out. Some have no x32 numbers;
// some (seen on a para-virtual 6.18) answer int 0x80 with a fault.
func (w *guarded) rows() []callRow {
	w.t.Helper()
	var out []callRow
	no80 := w.fate(w.desk, w.far, "int80-socket") == "fault"
	for _, row := range callRows {
		if row.what == "x32" && runtime.GOARCH != "amd64" || strings.HasPrefix(row.what, "int80") && (runtime.GOARCH != "amd64" || no80) {
			w.t.Logf("%s: not on this machine", row.what)
			continue
		}
		out = append(out, row)
	}
	return out
}

// callRow is an attempt and how it ends under the guard: in init's own namespace, and
// in another one of the handset.
type callRow struct{ what, here, elsewhere string }

var callRows = []callRow{
	{"packet", "killed", "killed"},
	{"packet-by-its-old-name", "killed", "killed"},
	{"xdp", "killed", "killed"},
	{"key", "killed", "killed"},
	{"vsock", "killed", "killed"},
	{"family-with-high-bits", "killed", "killed"},
	{"int80-socket", "killed", "killed"},
	{"int80-socketcall", "killed", "killed"},
	{"x32", "killed", "killed"},
	{"io_uring", "killed", "killed"},
	{"bpf", "killed", "killed"},
	{"pidfd_getfd", "killed", "killed"},
	{"share", "killed", "killed"},
	{"setns-dead-end", "killed", "killed"},
	{"netlink", "killed", "done"},
	{"udp4", "EPERM", "done"},
	{"udp", "EPERM", "done"},
	{"tcp6", "EPERM", "done"},
	{"raw-inet", "EPERM", "done"},
	{"qdisc-bypass", "EPERM", "EPERM"},
	{"xdp-umem", "EPERM", "EPERM"},
	{"setns-black", "done", "done"},
	{"unix", "done", "done"},
	{"thread", "done", "done"},
	{"spawn", "done", "done"},
	{"file-write", "done", "done"},
}

func TestCallsKillAndRefuse(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "TestWithoutCallsEachAttemptLives")
	w, other := newCalls(t)
	for _, row := range w.rows() {
		if got := w.fate(w.cgroup, w.ns, row.what); got != row.here {
			t.Errorf("%s in init's namespace: %s, want %s", row.what, got, row.here)
		}
		if got := w.fate(w.sub, other, row.what); got != row.elsewhere {
			t.Errorf("%s in another namespace: %s, want %s", row.what, got, row.elsewhere)
		}
	}
	got, err := w.guard.Refusals()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range callCounters() {
		if name != "unknown device" && got[name] == 0 && !(name == "32-bit system call" && runtime.GOARCH != "amd64") {
			t.Errorf("no refusal counted: %s (%v)", name, got)
		}
	}
	if err := w.guard.ReadBack(); err != nil {
		t.Error(err)
	}
}

// The twin: without the guard nobody is killed, and nobody refused by a permission.
func TestWithoutCallsEachAttemptLives(t *testing.T) {
	w := unguarded(t)
	for _, row := range w.rows() {
		got := w.fate(w.cgroup, w.ns, row.what)
		if got == "killed" || got == "EPERM" || works()[row.what] && got != "done" {
			t.Errorf("%s: %s without any guard: the attempt proves nothing", row.what, got)
		}
	}
}

func TestCallsLeaveTheDeskAlone(t *testing.T) {
	w, _ := newCalls(t)
	for _, row := range w.rows() {
		if got := w.fate(w.desk, w.ns, row.what); got == "killed" || got == "EPERM" || works()[row.what] && got != "done" {
			t.Errorf("%s outside the handset: %s", row.what, got)
		}
	}
}

// works are the attempts that this kernel carries out where no guard is.
func works() map[string]bool {
	return map[string]bool{"packet": true, "int80-socket": true, "int80-socketcall": true, "io_uring": true, "bpf": true, "pidfd_getfd": true,
		"share": true, "setns-dead-end": true, "netlink": true, "udp4": true, "raw-inet": true, "unix": true, "tcp6": true, "setns-black": true, "thread": true, "spawn": true, "file-write": true}
}

// TestCallsTrustSupervisors: a supervisor in the handset's cgroup does what others die
// for; its child does not.
func TestCallsTrustSupervisors(t *testing.T) {
	w, other := newCalls(t)
	for name, trusted := range map[string]bool{"trusted": true, "not trusted": false} {
		r, pipe, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cg, err := os.Open(w.sub)
		if err != nil {
			t.Fatal(err)
		}
		pidfd := -1
		var out strings.Builder
		cmd := exec.Command(os.Args[0], "-test.run=^TestSupervisorChild$", "-test.v")
		cmd.Env = append(os.Environ(), "SUPERVISOR_CHILD=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = r, &out, &out
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd()), PidFD: &pidfd}
		if err := other.Do(cmd.Start); err != nil {
			t.Fatal(err)
		}
		if trusted {
			if err := w.guard.Trust(pidfd); err != nil {
				t.Error(err)
			}
		}
		pipe.WriteString("go\n")
		err = cmd.Wait()
		if trusted && (err != nil || !strings.Contains(out.String(), "self: <nil>") || !strings.Contains(out.String(), "child: signal: killed")) {
			t.Errorf("%s: %v: %s; want itself to live and its child to be killed", name, err, &out)
		}
		if !trusted && (err == nil || strings.Contains(out.String(), "self:")) {
			t.Errorf("%s: %v: %s; want it killed", name, err, &out)
		}
		if err := errors.Join(unix.Close(pidfd), r.Close(), pipe.Close(), cg.Close()); err != nil {
			t.Error(err)
		}
	}
}

// TestSupervisorChild opens a packet socket on another thread than the first, and has
// a child do the same.
func TestSupervisorChild(t *testing.T) {
	if os.Getenv("SUPERVISOR_CHILD") == "" {
		t.Skip("not a child")
	}
	if _, err := os.Stdin.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- errors.Join(attempt("packet"), attempt("bpf"))
	}()
	fmt.Println("self:", <-done)
	cmd := exec.Command(os.Args[0], "-test.run=^TestCallChild$")
	cmd.Env = append(os.Environ(), "CALL_ATTEMPT=packet")
	fmt.Println("child:", cmd.Run())
}

func TestCallsPinsHoldAndReadBack(t *testing.T) {
	w, other := newCalls(t)
	if w.guard.Form() != Calls {
		t.Errorf("form %q", w.guard.Form())
	}
	if err := w.guard.ReadBack(); err != nil {
		t.Fatal(err)
	}
	// Who put the guard there is gone; the pins hold it.
	if err := w.guard.Close(); err != nil {
		t.Fatal(err)
	}
	if got := w.fate(w.sub, other, "packet"); got != "killed" {
		t.Errorf("packet after Close: %s, want killed: the pins hold the guard", got)
	}
	if got := w.fate(w.sub, w.ns, "udp4"); got != "EPERM" {
		t.Errorf("udp4 after Close: %s, want EPERM", got)
	}
	if g, err := installForm(loadCalls, w.cgroup, w.pins); err == nil {
		t.Error("a second guard took over the pins")
		_ = g.Close()
	}
	pins, err := os.ReadDir(w.pins)
	if err != nil || len(pins) != 6 {
		t.Fatalf("%d pins, %v", len(pins), err)
	}
	for _, p := range pins {
		if err := os.Remove(filepath.Join(w.pins, p.Name())); err != nil {
			t.Error(err)
		}
	}
	var got string
	for range 20 {
		if got = w.fate(w.sub, other, "packet"); got == "done" {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("packet after the pins went too: %s", got)
}

func TestCallsReadBackNotices(t *testing.T) {
	for name, change := range map[string]struct {
		do   func(w *guarded) error
		want string
	}{
		"a missing pin":             {func(w *guarded) error { return os.Remove(filepath.Join(w.pins, "calls_enter")) }, "calls_enter"},
		"a detached tracepoint":     {func(w *guarded) error { return w.detach("calls_fork") }, "calls_fork"},
		"a detached cgroup program": {func(w *guarded) error { return w.detach("calls_inet") }, "calls_inet"},
		"a foreign device": {func(w *guarded) error {
			return w.guard.programs.Maps["devices"].Put(device{1, 7}.key(), uint32(1))
		}, "device 7"},
		"a device taken away": {func(w *guarded) error {
			if err := w.far.Do(func() error { return w.guard.Admit(1) }); err != nil {
				return err
			}
			return w.guard.programs.Maps["devices"].Delete(w.guard.admitted[0].key())
		}, "1 admitted devices"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			w, _ := newCalls(t)
			if err := change.do(w); err != nil {
				t.Fatal(err)
			}
			if err := w.guard.ReadBack(); err == nil || !strings.Contains(err.Error(), change.want) {
				t.Errorf("read back: %v, want a word on %s", err, change.want)
			}
			// Another process, which has the ids alone, notices too; the pins are root's.
			standing, err := w.guard.Standing()
			if err != nil {
				t.Fatal(err)
			}
			if ids, perr := w.guard.Programs(); perr != nil {
				t.Error(perr)
			} else if got, perr := standing.Programs(); !strings.HasPrefix(name, "a detached") && (perr != nil || len(got) != len(ids)) {
				t.Errorf("programs %v, want %v: %v", got, ids, perr)
			} else if all, perr := standing.AllPrograms(); perr == nil && (len(all) != len(standing.hooks) || slices.ContainsFunc(got, func(id uint32) bool { return !slices.Contains(all, id) })) {
				t.Errorf("all programs are %v of %d hooks, at the cgroup %v", all, len(standing.hooks), got)
			}
			err = handedOver(t, standing).ReadBack()
			if sound := name == "a missing pin" || name == "a device taken away"; sound && err != nil || !sound && (err == nil || !strings.Contains(err.Error(), change.want)) {
				t.Errorf("read back by ids: %v", err)
			}
		})
	}
}

func (w *guarded) detach(name string) error {
	for _, h := range w.guard.hooks {
		if h.name == name {
			return errors.Join(h.link.Unpin(), h.link.Close())
		}
	}
	return errors.New("no such hook")
}

// TestCallsDropAtUnknownDevices: what the handset's sockets send leaves through an
// admitted device and through no other, one packet and a GSO train alike, in a
// namespace where a number is admitted elsewhere too.
func TestCallsDropAtUnknownDevices(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the admitted device of the same test")
	w, _ := newCalls(t)
	black, err := link.Create("")
	if err != nil {
		t.Fatal(err)
	}
	defer black.Close()
	lan := map[string]string{"wwan0": "192.0.2", "usb1": "198.51.100"}
	for name, net4 := range lan {
		far := name + "far"
		mac, _ := net.ParseMAC("02:00:00:00:00:99")
		err := black.Do(func() error {
			if err := link.AddVeth(link.Port{Name: name}, link.Port{Name: far, NS: w.far, MAC: mac}); err != nil {
				return err
			}
			v6 := netip.MustParsePrefix("2001:db8:" + strings.Split(net4, ".")[2] + "::1/64")
			return errors.Join(link.SetQuiet(name), link.AddAddr(name, netip.MustParsePrefix(net4+".1/24")), link.AddAddr(name, v6), link.SetUp(name),
				link.AddNeighbour(name, netip.MustParseAddr(net4+".9"), mac), link.AddNeighbour(name, v6.Addr().Next(), mac))
		})
		if err == nil {
			err = w.far.Do(func() error { return errors.Join(link.SetQuiet(far), link.SetUp(far)) })
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	send := func(cgroup, what, target string, dev string) (string, uint64) {
		t.Helper()
		heard := w.listen(dev + "far")
		answer := w.fate(cgroup, black, what, "TARGET="+target)
		return answer, heard()
	}
	refused := func(why string) {
		t.Helper()
		for dev, net4 := range lan {
			for _, target := range []string{net4 + ".9:9", "[2001:db8:" + strings.Split(net4, ".")[2] + "::2]:9", net4 + ".255:9"} {
				for _, what := range []string{"send", "send-gso"} {
					if answer, n := send(w.sub, what, target, dev); answer == "done" || n != 0 {
						t.Errorf("%s: %s to %s: %s, %d frames", why, what, target, answer, n)
					}
				}
			}
		}
	}
	refused("nothing admitted")
	var wwan int
	if err := black.Do(func() (err error) { wwan, err = link.Index("wwan0"); return err }); err != nil {
		t.Fatal(err)
	}
	// The same number in another namespace is another device.
	if err := w.far.Do(func() error { return w.guard.Admit(wwan) }); err != nil {
		t.Fatal(err)
	}
	refused("admitted elsewhere")
	if err := black.Do(func() error { return w.guard.Admit(wwan) }); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"192.0.2.9:9", "[2001:db8:2::2]:9"} {
		for what, least := range map[string]uint64{"send": 1, "send-gso": 1} {
			if answer, n := send(w.sub, what, target, "wwan0"); answer != "done" || n < least {
				t.Errorf("%s to %s through the admitted device: %s, %d frames", what, target, answer, n)
			}
		}
	}
	delete(lan, "wwan0")
	refused("another one admitted")
	if answer, n := send(w.desk, "send", "198.51.100.9:9", "usb1"); answer != "done" || n == 0 {
		t.Errorf("the desk through usb1: %s, %d frames", answer, n)
	}
	if c, err := w.guard.Counts(CallDevice); err != nil || c.Refused == 0 {
		t.Errorf("%+v, %v", c, err)
	}
	if err := w.guard.ReadBack(); err != nil {
		t.Error(err)
	}
	if err := w.guard.Admit(0); err == nil {
		t.Error("device 0 was admitted")
	}
}

// listen begins to count the UDP frames that a device of the far namespace receives; the
// answer ends it. The kernel's own chatter (MLD) has no socket of the handset's.
func (w *guarded) listen(name string) (heard func() uint64) {
	w.t.Helper()
	fd := -1
	if err := w.far.Do(func() error {
		i, err := link.Index(name)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all & 0xffff, Ifindex: i})
	}); err != nil {
		w.t.Fatal(err)
	}
	return func() (n uint64) {
		defer unix.Close(fd)
		var frame [2048]byte
		for { // a veth delivers before the send returns, or in the softirq right after it
			size, _, err := unix.Recvfrom(fd, frame[:], 0)
			if err != nil {
				return n
			}
			if size > 20 && (frame[0]>>4 == 4 && frame[9] == unix.IPPROTO_UDP || frame[0]>>4 == 6 && frame[6] == unix.IPPROTO_UDP) {
				n++
			}
		}
	}
}

// TestInstallTakesTheFormThatTheKernelRuns: on every kernel of the two one is in force.
func TestInstallTakesTheFormThatTheKernelRuns(t *testing.T) {
	w := unguarded(t)
	err := w.ns.Do(func() (err error) {
		w.guard, err = Install(w.cgroup, w.pins)
		return err
	})
	if errors.Is(err, ErrNoGuard) {
		t.Skipf("no form on this kernel: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.guard.Remove(); err != nil {
			t.Error(err)
		}
	}()
	want := LSM
	if errors.Is(tryLSM(), ErrNoLSM) {
		want = Calls
	}
	if w.guard.Form() != want {
		t.Errorf("form %q, want %q", w.guard.Form(), want)
	}
	if got := w.fate(w.sub, w.far, "packet"); got != "killed" && got != "EPERM" {
		t.Errorf("packet under form %s: %s", w.guard.Form(), got)
	}
	if got, err := w.guard.Refusals(); err != nil || len(got) == 0 {
		t.Errorf("refusals %v, %v", got, err)
	}
}

// A device that appears in the dead end while an attacker waits there: every way to set
// it up and to send is tried; it may come up, and no frame leaves it.
func TestCallsHotpluggedDeviceIsSilent(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "TestHotpluggedDeviceWithoutTheGuard")
	w, _ := newCalls(t)
	if n := w.attackHotplug(); n != 0 {
		t.Errorf("%d frames left a hot-plugged device", n)
	}
}
