package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
)

// callChild makes one attempt in a process of its own, as the test binary.
func callChild(what string) error {
	socket := func(family, kind, protocol int) error {
		fd, err := unix.Socket(family, kind, protocol)
		if err == nil {
			return unix.Close(fd)
		}
		return err
	}
	raw := func(number, a, b, c uintptr) error {
		if _, _, errno := unix.Syscall(number, a, b, c); errno != 0 {
			return errno
		}
		return nil
	}
	switch what {
	case "raw-inet":
		return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	case "packet-by-its-old-name": // AF_INET and SOCK_PACKET: the kernel makes a packet socket of it
		return socket(unix.AF_INET, unix.SOCK_PACKET|unix.SOCK_CLOEXEC, 0x0300)
	case "udp4":
		return socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	case "tcp6":
		return socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
	case "netlink":
		return socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	case "family-with-high-bits": // the kernel reads an int
		return raw(unix.SYS_SOCKET, 1<<32|unix.AF_PACKET, unix.SOCK_RAW, 0)
	case "io_uring":
		var params [120]byte
		return raw(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	case "pidfd_getfd":
		fd, err := unix.PidfdOpen(os.Getpid(), 0)
		if err != nil {
			return err
		}
		return raw(unix.SYS_PIDFD_GETFD, uintptr(fd), 0, 0)
	case "share":
		// A child with our table of descriptors, which ends at once.
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_FILES|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			return errno
		}
		if pid == 0 {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
		return nil
	case "thread":
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			done <- nil
		}()
		return <-done
	case "spawn":
		return exec.Command("/bin/true").Run()
	case "setns-dead-end", "setns-black":
		runtime.LockOSThread()
		fd, err := unix.Open(os.Getenv(strings.ToUpper(what[6:11])), unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		return unix.Setns(fd, 0)
	case "x32":
		return raw(0x40000000|unix.SYS_GETPPID, 0, 0, 0)
	case "qdisc-bypass", "xdp-umem":
		// On any socket: the program looks at the level before the kernel does.
		level, option := unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS
		if what == "xdp-umem" {
			level, option = unix.SOL_XDP, unix.XDP_UMEM_REG
		}
		return withSocket(unix.AF_UNIX, 0, func(fd int) error { return unix.SetsockoptInt(fd, level, option, 1) })
	case "big-option": // more than a page passes through untouched
		return withSocket(unix.AF_INET, 0, func(fd int) error {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 65536)
		})
	case "send":
		return sendTo(os.Getenv("TARGET"), 1)
	case "send-gso":
		return sendTo(os.Getenv("TARGET"), 20)
	}
	return attempt(what)
}

// sendTo sends segments × 1000 bytes as one UDP message (UDP_SEGMENT above one).
func sendTo(target string, segments int) error {
	to, err := netip.ParseAddrPort(target)
	if err != nil {
		return err
	}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return err
	}
	defer c.Close()
	if segments > 1 {
		rc, err := c.SyscallConn()
		if err != nil {
			return err
		}
		if err := errors.Join(rc.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 1000)
		}), err); err != nil {
			return err
		}
	}
	_, err = c.Write(make([]byte, 1000*segments))
	return err
}

// TestCallChild is the attacker of this form: one attempt, since it may be the last.
func TestCallChild(t *testing.T) {
	what := os.Getenv("CALL_ATTEMPT")
	if what == "" {
		t.Skip("not a child")
	}
	err := callChild(what)
	var errno unix.Errno
	switch {
	case err == nil:
		fmt.Println("attempt: done")
	case errors.As(err, &errno):
		fmt.Printf("attempt: %s\n", unix.ErrnoName(errno))
	default:
		fmt.Printf("attempt: %v\n", err)
	}
}

// fate makes one attempt in cgroup and namespace ns, as root: "killed", "done" or the
// name of the error.
func (w *guarded) fate(cgroup string, ns *link.NS, what string, env ...string) string {
	w.t.Helper()
	if runtime.GOARCH != "amd64" && strings.HasPrefix(what, "int80") {
		return "fault"
	}
	if what == "int80-socket" || what == "int80-socketcall" {
		return w.fateOf(cgroup, ns, w.int80(what))
	}
	env = append(env, "CALL_ATTEMPT="+what, fmt.Sprintf("DEAD-=/proc/%d/fd/%d", os.Getpid(), w.ns.FD()),
		fmt.Sprintf("BLACK=/proc/%d/fd/%d", os.Getpid(), w.far.FD()), "DESK="+w.desk)
	return w.fateOf(cgroup, ns, os.Args[0], env...)
}

func (w *guarded) fateOf(cgroup string, ns *link.NS, program string, env ...string) string {
	w.t.Helper()
	var out strings.Builder
	inside := *w
	inside.ns = ns
	err := inside.start(cgroup, &out, env, program, "-test.run=^TestCallChild$").Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL {
		if strings.Contains(out.String(), "attempt: ") {
			return "killed too late: " + out.String()
		}
		return "killed"
	} else if ok && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGSEGV {
		return "fault"
	}
	for line := range strings.Lines(out.String()) {
		if answer, ok := strings.CutPrefix(strings.TrimSpace(line), "attempt: "); ok {
			return answer
		}
	}
	if err != nil {
		w.t.Fatalf("the attacker: %v: %s", err, &out)
	}
	return "done"
}

// int80 writes a program of the other system call table: it opens a packet socket by
// int 0x80 and ends with code 0 if it got one.
func (w *guarded) int80(what string) string {
	w.t.Helper()
	const base = 0x400000
	number := uint32(359) // socket
	if what == "int80-socketcall" {
		number = 102
	}
	head := make([]byte, 120)
	imm := func(op byte, v uint32) []byte { return binary.LittleEndian.AppendUint32([]byte{op}, v) }
	var code []byte
	code = append(code, imm(0xb8, number)...) // mov eax
	if what == "int80-socket" {
		code = append(code, imm(0xbb, unix.AF_PACKET)...) // mov ebx
		code = append(code, imm(0xb9, unix.SOCK_RAW)...)  // mov ecx
	} else {
		code = append(code, imm(0xbb, 1)...)        // SYS_SOCKET
		code = append(code, imm(0xb9, base+180)...) // its arguments
	}
	code = append(code, imm(0xba, 0)...) // mov edx
	code = append(code, 0xcd, 0x80)      // int 0x80
	code = append(code, 0x31, 0xff)      // xor edi, edi
	code = append(code, 0x85, 0xc0)      // test eax, eax
	code = append(code, 0x79, 0x02)      // jns +2
	code = append(code, 0xff, 0xc7)      // inc edi
	code = append(code, imm(0xb8, unix.SYS_EXIT_GROUP)...)
	code = append(code, 0x0f, 0x05) // syscall
	image := append(append(head, code...), make([]byte, 60-len(code))...)
	for _, v := range []uint32{unix.AF_PACKET, unix.SOCK_RAW, 0} {
		image = binary.LittleEndian.AppendUint32(image, v)
	}
	// The ELF header and one loadable segment.
	copy(image, "\x7fELF\x02\x01\x01")
	le := binary.LittleEndian
	le.PutUint16(image[16:], 2)  // executable
	le.PutUint16(image[18:], 62) // x86-64
	le.PutUint32(image[20:], 1)
	le.PutUint64(image[24:], base+120) // entry
	le.PutUint64(image[32:], 64)       // program headers
	le.PutUint16(image[52:], 64)
	le.PutUint16(image[54:], 56)
	le.PutUint16(image[56:], 1)
	le.PutUint32(image[64:], 1) // load
	le.PutUint32(image[68:], 5) // read, execute
	le.PutUint64(image[80:], base)
	le.PutUint64(image[88:], base)
	le.PutUint64(image[96:], uint64(len(image)))
	le.PutUint64(image[104:], uint64(len(image)))
	le.PutUint64(image[112:], 4096)
	path := filepath.Join(w.t.TempDir(), what)
	if err := os.WriteFile(path, image, 0o755); err != nil {
		w.t.Fatal(err)
	}
	return path
}
