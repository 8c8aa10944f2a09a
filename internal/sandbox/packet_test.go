package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"rempart/internal/proof"
	"rempart/internal/sock"
)

// options tries what makes of a packet socket a way past the gate, on a socket that somebody else opened.
func options(fd int) {
	set := func(level, name uintptr) error {
		one := int32(1)
		_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), level, name, uintptr(unsafe.Pointer(&one)), 4, 0)
		return errno
	}
	word("qdisc-bypass", set(unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS))
	word("tx-ring", set(unix.SOL_PACKET, unix.PACKET_TX_RING))
	word("umem", set(unix.SOL_XDP, unix.XDP_UMEM_REG))
	word("high-bits", set(1<<32|unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS))
	word("receive-buffer", set(unix.SOL_SOCKET, unix.SO_RCVBUF))
	if runtime.GOARCH == "amd64" {
		_, _, errno := unix.Syscall6(0x40000000|541, uintptr(fd), unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 0, 0, 0)
		word("x32", errno)
	}
}

// passed takes a packet socket from the one who started this process and tries it.
func passed() {
	f, err := sock.Inherited("door")
	if err != nil {
		word("door", err)
		return
	}
	defer f.Close()
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(f.Fd()), make([]byte, 1), oob, 0)
	if err != nil {
		word("recvmsg", err)
		return
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		word("message", errors.Join(err, fmt.Errorf("%d messages", len(messages))))
		return
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		word("rights", err)
		return
	}
	kind, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_DOMAIN)
	fmt.Println("domain", kind, err)
	options(fds[0])
}

// packetSocket opens one as root, as an attacker who passes it on would.
func packetSocket(t *testing.T) int {
	t.Helper()
	proof.NeedRoot(t)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	// The twin: whoever is in no sandbox may set the option.
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		t.Fatalf("the twin: %v", err)
	}
	return fd
}

// refusedOptions are the answers that both sandboxes owe.
func refusedOptions(t *testing.T, out string) {
	t.Helper()
	want := []string{"qdisc-bypass operation not permitted", "tx-ring operation not permitted", "umem operation not permitted",
		"high-bits operation not permitted", "receive-buffer allowed"}
	if runtime.GOARCH == "amd64" {
		want = append(want, "x32 function not implemented")
	}
	for _, w := range want {
		if !strings.Contains(out, w+"\n") {
			t.Errorf("missing %q in:\n%s", w, out)
		}
	}
}

// TestPassedPacketSocketIsOfNoUse: setting the bypass takes no capability, only the descriptor.
func TestPassedPacketSocketIsOfNoUse(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "packetSocket")
	fd := packetSocket(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "door")
	defer theirs.Close()
	defer unix.Close(pair[0])
	if err := unix.Sendmsg(pair[0], []byte{1}, unix.UnixRights(fd), nil, 0); err != nil {
		t.Fatal(err)
	}
	out := startChild(t, "passed", nil, Handed{"door", theirs})
	if !strings.Contains(out, fmt.Sprintf("domain %d <nil>\n", unix.AF_PACKET)) {
		t.Fatalf("the socket was not passed:\n%s", out)
	}
	refusedOptions(t, out)
}

// appChild becomes an app and tries things.
func appChild() {
	if err := BecomeApp(2000); err != nil {
		fmt.Println("become:", err)
		return
	}
	try := func(name string, family, typ, protocol int) {
		fd, err := unix.Socket(family, typ, protocol)
		if err == nil {
			unix.Close(fd)
		}
		word(name, err)
	}
	try("unix", unix.AF_UNIX, unix.SOCK_STREAM, 0)
	try("inet", unix.AF_INET, unix.SOCK_DGRAM, 0)
	try("inet6", unix.AF_INET6, unix.SOCK_STREAM, 0)
	try("routes", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	try("nft", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)
	try("packet", unix.AF_PACKET, unix.SOCK_RAW, 0)
	try("old-packet", unix.AF_INET, unix.SOCK_PACKET, 0x300)
	try("raw", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	try("xdp", unix.AF_XDP, unix.SOCK_RAW, 0)
	try("alg", unix.AF_ALG, unix.SOCK_SEQPACKET, 0)
	try("vsock", unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	raw := func(name string, number, a, b, c uintptr) {
		_, _, errno := unix.Syscall(number, a, b, c)
		word(name, errno)
	}
	raw("high-family", unix.SYS_SOCKET, 1<<32|unix.AF_PACKET, unix.SOCK_RAW, 0)
	raw("userns", unix.SYS_UNSHARE, unix.CLONE_NEWUSER, 0, 0)
	raw("userns-by-clone", unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0, 0)
	raw("userns-by-clone3", unix.SYS_CLONE3, 0, 88, 0)
	raw("io_uring", unix.SYS_IO_URING_SETUP, 1, 0, 0)
	raw("bpf", unix.SYS_BPF, 9999, 0, 0)
	raw("ptrace", unix.SYS_PTRACE, 0, 0, 0)
	raw("getfd", unix.SYS_PIDFD_GETFD, 0, 0, 0)
	raw("root-again", unix.SYS_SETUID, 0, 0, 0)
	options(3)
	status, err := os.ReadFile("/proc/self/status")
	fmt.Println(string(status), err)
	// What an app executes is an app: programs of any language start, and with the C library's threads.
	out, err := exec.Command("/bin/sh", "-c", "id -u; unshare -U true 2>/dev/null && echo a user namespace; exit 0").CombinedOutput()
	fmt.Printf("shell %q %v\n", out, err)
}

// TestAppHasNoWayToAPacketSocket: an app is any program, so each way is tried in a real one.
func TestAppHasNoWayToAPacketSocket(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "packetSocket")
	fd := packetSocket(t)
	exe := filepath.Join(t.TempDir(), "child")
	copyFile(t, os.Args[0], exe)
	cmd := exec.Command(exe, "app-child")
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(dup), "packet")
	defer f.Close()
	cmd.ExtraFiles = []*os.File{f}
	b, err := cmd.CombinedOutput()
	out := string(b)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"unix allowed", "inet allowed", "inet6 allowed", "routes allowed", "userns-by-clone3 function not implemented",
		"shell \"2000\\n\" <nil>", "NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000",
		"CapInh:\t0000000000000000", "CapAmb:\t0000000000000000", "Uid:\t2000\t2000\t2000\t2000", "Gid:\t2000\t2000\t2000\t2000"} {
		if !strings.Contains(out, want) {
			t.Errorf("missing %q in:\n%s", want, out)
		}
	}
	for _, what := range []string{"nft", "packet", "old-packet", "raw", "xdp", "alg", "vsock", "high-family", "userns", "userns-by-clone", "io_uring", "bpf",
		"ptrace", "getfd", "root-again"} {
		if !strings.Contains(out, "\n"+what+" operation not permitted\n") {
			t.Errorf("%s was not refused in:\n%s", what, out)
		}
	}
	refusedOptions(t, out)
	if err := BecomeApp(0); err == nil {
		t.Error("root became an app")
	}
}

// TestFiltersRefuseOtherTables runs the filters themselves on calls that this machine may not be able to make: through the
// i386 table the numbers mean other calls, so none may pass.
func TestFiltersRefuseOtherTables(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the numbers here are those of x86")
	}
	app, err := appFilter()
	if err != nil {
		t.Fatal(err)
	}
	daemon, err := filter(Profile{})
	if err != nil {
		t.Fatal(err)
	}
	const amd64, i386 = 0xc000003e, 0x40000003 // AUDIT_ARCH_X86_64, AUDIT_ARCH_I386
	for name, policy := range map[string]*seccomp.Policy{"app": &app, "daemon": &daemon} {
		program, err := policy.Assemble()
		if err != nil {
			t.Fatal(err)
		}
		vm, err := bpf.NewVM(program)
		if err != nil {
			t.Fatal(err)
		}
		verdict := func(arch, call uint32, args ...uint32) uint32 {
			// struct seccomp_data as the kernel's filter reads it: each word by itself, in its own byte order.
			data := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, call), arch)
			data = append(data, make([]byte, 8+6*8)...)
			for i, a := range args {
				binary.BigEndian.PutUint32(data[16+8*i:], a)
			}
			got, err := vm.Run(data)
			if err != nil {
				t.Fatal(err)
			}
			return uint32(got)
		}
		allow, refuse := uint32(seccomp.ActionAllow), uint32(seccomp.ActionErrno)|uint32(unix.EPERM)
		if got := verdict(amd64, unix.SYS_READ); got != allow {
			t.Errorf("%s: read: %#x", name, got)
		}
		for what, call := range map[string]uint32{"setsockopt": 366, "socketcall": 102, "socket": 359, "read": 3} {
			if got := verdict(i386, call, 3, unix.SOL_PACKET); got != refuse {
				t.Errorf("%s: %s by the i386 table: %#x", name, what, got)
			}
		}
		if got := verdict(amd64, 0x40000000|541, 3, unix.SOL_SOCKET); got == allow {
			t.Errorf("%s: setsockopt by the x32 table: %#x", name, got)
		}
	}
}
