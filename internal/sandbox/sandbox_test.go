package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rempart/internal/proof"
)

// TestMain lets the test binary be the started daemon: it enters the profile that the first argument names, tries things and
// prints one word each.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "sandbox-child" {
		child(os.Args[2])
		os.Exit(0)
	}
	if len(os.Args) == 2 && os.Args[1] == "app-child" {
		appChild()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(mode string) {
	p := Profile{Name: "child"}
	switch mode {
	case "bpf":
		p.Capabilities, p.BPF = []int{unix.CAP_BPF, unix.CAP_NET_ADMIN}, true
	case "too-few":
		p.Capabilities = []int{unix.CAP_NET_ADMIN, unix.CAP_BPF, unix.CAP_KILL}
	case "noip":
		p.NoIP = true
	case "setns":
		p.Setns = true
	}
	if err := Enter(p); err != nil {
		fmt.Println("enter:", err)
		return
	}
	try := func(name string, family, typ int) {
		fd, err := unix.Socket(family, typ, 0)
		if err == nil {
			unix.Close(fd)
		}
		word(name, err)
	}
	try("unix", unix.AF_UNIX, unix.SOCK_STREAM)
	try("inet", unix.AF_INET, unix.SOCK_DGRAM)
	try("packet", unix.AF_PACKET, unix.SOCK_RAW)
	try("xdp", unix.AF_XDP, unix.SOCK_RAW)
	try("netlink", unix.AF_NETLINK, unix.SOCK_RAW)
	word("unshare", unix.Unshare(unix.CLONE_NEWUSER))
	word("exec", unix.Exec("/bin/true", []string{"true"}, nil))
	_, err := unix.KeyctlInt(unix.KEYCTL_GET_KEYRING_ID, unix.KEY_SPEC_SESSION_KEYRING, 0, 0, 0)
	word("keyctl", err)
	_, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, 0, 0)
	word("io_uring", e)
	_, _, e = unix.Syscall(unix.SYS_BPF, 9999, 0, 0)
	word("bpf", e)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		ln.Close()
	}
	word("listen", err)
	if mode == "passed" {
		passed()
	}
	own, err := os.Open("/proc/self/ns/net")
	if err == nil {
		defer own.Close()
		word("setns-any", unix.Setns(int(own.Fd()), 0))
		word("setns", unix.Setns(int(own.Fd()), unix.CLONE_NEWNET))
	}
	names, _ := filepath.Glob("/proc/self/task/*")
	word("threads", nil)
	if len(names) == 0 {
		word("files", errors.New("none"))
	}
}

// word prints how one attempt ended.
func word(name string, err error) {
	if err == nil || err == unix.Errno(0) {
		fmt.Println(name, "allowed")
		return
	}
	fmt.Println(name, err)
}

func startChild(t *testing.T, mode string, caps []int, files ...Handed) string {
	t.Helper()
	proof.NeedRoot(t)
	netns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer netns.Close()
	cg, err := os.Open(cgroupOfTest(t))
	if err != nil {
		t.Fatal(err)
	}
	defer cg.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// The test binary may lie where uid 65534 cannot reach; a copy does not.
	exe := filepath.Join(t.TempDir(), "child")
	copyFile(t, os.Args[0], exe)
	p, err := Start(Spec{Path: exe, Args: []string{"sandbox-child", mode}, UID: 65534, Capabilities: caps, NetNS: int(netns.Fd()), Cgroup: cg, Files: files, Stderr: w})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, 0o755)
	}
	for dir := filepath.Dir(to); err == nil && strings.HasPrefix(dir, os.TempDir()) && dir != os.TempDir(); dir = filepath.Dir(dir) {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// cgroupOfTest is the test's own cgroup2 folder.
func cgroupOfTest(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if _, after, ok := strings.Cut(line, " - "); ok && strings.HasPrefix(after, "cgroup2 ") {
			for l := range strings.Lines(string(own)) {
				if rest, ok := strings.CutPrefix(strings.TrimSpace(l), "0::"); ok {
					return filepath.Join(f[4], rest)
				}
			}
		}
	}
	proof.Missing(t, "cgroup2")
	return ""
}

func TestNoCapabilityProfile(t *testing.T) {
	proof.SFR(t, "FPT_AEX_EXT.4", "TestEnterRefusesAnythingButTheExactSet")
	out := startChild(t, "plain", nil)
	for _, want := range []string{"unix allowed", "inet allowed", "listen allowed", "threads allowed"} {
		if !strings.Contains(out, want+"\n") {
			t.Errorf("missing %q in:\n%s", want, out)
		}
	}
	for _, call := range []string{"packet", "xdp", "netlink", "unshare", "exec", "keyctl", "io_uring", "bpf", "setns"} {
		if !strings.Contains(out, call+" operation not permitted\n") {
			t.Errorf("%s was not refused in:\n%s", call, out)
		}
	}
}

func TestOtherProfiles(t *testing.T) {
	if out := startChild(t, "bpf", []int{unix.CAP_BPF, unix.CAP_NET_ADMIN}); !strings.Contains(out, "bpf invalid argument\n") || !strings.Contains(out, "packet operation not permitted\n") {
		t.Errorf("bpf profile:\n%s", out)
	}
	// The filter lets the call through, the kernel asks for the capability: "any kind" is refused before.
	if out := startChild(t, "setns", nil); !strings.Contains(out, "setns-any operation not permitted\n") || !strings.Contains(out, "setns operation not permitted\n") {
		t.Errorf("setns profile without the capability:\n%s", out)
	}
	if out := startChild(t, "noip", nil); !strings.Contains(out, "inet operation not permitted\n") || !strings.Contains(out, "unix allowed\n") {
		t.Errorf("profile without IP:\n%s", out)
	}
}

func TestEnterRefusesAnythingButTheExactSet(t *testing.T) {
	if out := startChild(t, "plain", []int{unix.CAP_NET_RAW}); !strings.Contains(out, "holds capability 13, which the profile does not list") {
		t.Errorf("an extra capability passed:\n%s", out)
	}
	if out := startChild(t, "too-few", []int{unix.CAP_BPF, unix.CAP_NET_ADMIN}); !strings.Contains(out, "lacks capability 5") {
		t.Errorf("a missing capability passed:\n%s", out)
	}
	if err := Enter(Profile{Name: "test"}); os.Geteuid() == 0 && (err == nil || !strings.Contains(err.Error(), "runs as root")) {
		t.Errorf("root entered: %v", err)
	}
}

func TestExactCapabilities(t *testing.T) {
	good := "CapInh:\t0000000000001000\nCapPrm:\t0000000000001000\nCapEff:\t0000000000001000\nCapBnd:\t0000000000001000\nCapAmb:\t0000000000001000\nNoNewPrivs:\t1\n"
	if err := exactCapabilities(good, []int{unix.CAP_NET_ADMIN}); err != nil {
		t.Error(err)
	}
	for old, broken := range map[string]string{"CapBnd:\t0000000000001000": "CapBnd:\t0000000000003000", "NoNewPrivs:\t1": "NoNewPrivs:\t0", "CapAmb:\t0000000000001000\n": "", "CapEff:\t0000000000001000": "CapEff:\tzz"} {
		if err := exactCapabilities(strings.Replace(good, old, broken, 1), []int{unix.CAP_NET_ADMIN}); err == nil {
			t.Errorf("accepted %q", broken)
		}
	}
}

func TestStartRefusesAnIncompleteSpec(t *testing.T) {
	self, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	for name, s := range map[string]Spec{"root": {Path: "/bin/true", NetNS: int(self.Fd()), Cgroup: self}, "no namespace": {Path: "/bin/true", UID: 1, Cgroup: self}, "no cgroup": {Path: "/bin/true", UID: 1, NetNS: int(self.Fd())}} {
		if p, err := Start(s); err == nil || p != nil {
			t.Errorf("%s: started", name)
		} else if !bytes.Contains([]byte(err.Error()), []byte("/bin/true")) {
			t.Errorf("%s: %v does not name the program", name, err)
		}
	}
}
