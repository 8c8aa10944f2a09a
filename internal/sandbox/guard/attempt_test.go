package guard

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attempts are what the attacker tries; each returns the kernel's answer.
var attemptOrder = []string{"packet", "xdp", "key", "vsock", "netlink-up", "netlink-second", "netlink-xfrm", "netlink-netfilter", "genl-family",
	"ioctl-up", "ioctl-ethtool", "ioctl-bridge", "ioctl-tunnel", "sysfs-up", "bpf", "leave-cgroup", "clone-into-cgroup", "unlink-pin", "ptrace-supervisor",
	"ptrace-other", "mark", "packet-option", "xdp-option", "passed-packet", "umount-bpffs", "move-bpffs", "new-move-bpffs", "kill-supervisor", "module-file",
	"module-data", "perf", "userns", "sysctl", "sysrq", "dev-mem"}

var harmlessOrder = []string{"udp", "unix", "netlink-get", "genl-ctrl", "ioctl-get", "sysfs-read", "file-write",
	"own-comm", "own-memory", "buffer-option", "ask-supervisor", "own-mount"}

func attempt(what string) error {
	socket := func(family, kind, protocol int) error {
		fd, err := unix.Socket(family, kind, protocol)
		if err == nil {
			return unix.Close(fd)
		}
		return err
	}
	ioctl := func(cmd uintptr) error {
		return withSocket(unix.AF_INET, 0, func(fd int) error {
			var request [40]byte
			copy(request[:], "usb0")
			if cmd == unix.SIOCSIFFLAGS {
				binary.NativeEndian.PutUint16(request[16:], unix.IFF_UP)
			}
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), cmd, uintptr(unsafe.Pointer(&request)))
			if errno != 0 {
				return errno
			}
			return nil
		})
	}
	switch what {
	case "packet":
		return socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	case "xdp":
		return socket(unix.AF_XDP, unix.SOCK_RAW, 0)
	case "key":
		return socket(unix.AF_KEY, unix.SOCK_RAW, 2)
	case "vsock":
		return socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	case "udp":
		return socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	case "unix":
		return socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	case "netlink-get":
		return withSocket(unix.AF_NETLINK, unix.NETLINK_ROUTE, getLoopback)
	case "netlink-up":
		return netlink(unix.NETLINK_ROUTE, message(unix.RTM_NEWLINK, unix.NLM_F_REQUEST, ifinfo()))
	case "netlink-second":
		return netlink(unix.NETLINK_ROUTE, append(message(unix.RTM_GETLINK, unix.NLM_F_REQUEST, ifinfo()),
			message(unix.RTM_NEWLINK, unix.NLM_F_REQUEST, ifinfo())...))
	case "netlink-xfrm":
		return netlink(unix.NETLINK_XFRM, message(18, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, nil)) // XFRM_MSG_GETSA
	case "netlink-netfilter":
		return netlink(unix.NETLINK_NETFILTER, message(10<<8, unix.NLM_F_REQUEST, make([]byte, 4)))
	case "genl-family":
		return netlink(unix.NETLINK_GENERIC, message(0x15, unix.NLM_F_REQUEST, []byte{1, 1, 0, 0}))
	case "genl-ctrl":
		return netlink(unix.NETLINK_GENERIC, message(unix.GENL_ID_CTRL, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, []byte{unix.CTRL_CMD_GETFAMILY, 1, 0, 0}))
	case "ioctl-up":
		return ioctl(unix.SIOCSIFFLAGS)
	case "ioctl-ethtool":
		return ioctl(unix.SIOCETHTOOL)
	case "ioctl-bridge":
		return ioctl(unix.SIOCBRADDBR)
	case "ioctl-tunnel":
		return ioctl(unix.SIOCDEVPRIVATE + 1) // SIOCADDTUNNEL
	case "ioctl-get":
		return ioctl(unix.SIOCGIFFLAGS)
	case "sysfs-up", "sysfs-read":
		dir, err := os.MkdirTemp("", "sysfs")
		if err != nil {
			return err
		}
		defer os.Remove(dir)
		// A sysfs of the namespace that we are in, as anyone with CAP_SYS_ADMIN can mount.
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount("sysfs", dir, "sysfs", 0, ""); err != nil {
			return err
		}
		defer unix.Unmount(dir, unix.MNT_DETACH)
		if what == "sysfs-read" {
			_, err := os.ReadFile(dir + "/class/net/usb0/flags")
			return err
		}
		return os.WriteFile(dir+"/class/net/usb0/flags", []byte("0x1003"), 0)
	case "bpf":
		_, _, errno := unix.Syscall(unix.SYS_BPF, 11 /* BPF_PROG_GET_NEXT_ID */, uintptr(unsafe.Pointer(&[64]byte{})), 64)
		if errno != 0 && errno != unix.ENOENT { // ENOENT: there is no program at all
			return errno
		}
		return nil
	case "leave-cgroup":
		return os.WriteFile(os.Getenv("DESK")+"/cgroup.procs", []byte("0"), 0)
	case "clone-into-cgroup":
		dir, err := os.Open(os.Getenv("DESK"))
		if err != nil {
			return err
		}
		defer dir.Close()
		cmd := exec.Command("/bin/true")
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		return cmd.Run()
	case "unlink-pin":
		return os.Remove(os.Getenv("PIN"))
	case "ptrace-supervisor":
		return openToWrite("/proc/" + os.Getenv("SUPERVISOR") + "/mem")
	case "ptrace-other":
		return openToWrite("/proc/" + os.Getenv("OTHER") + "/mem")
	case "own-memory":
		return openToWrite("/proc/self/mem")
	case "own-comm":
		return os.WriteFile("/proc/self/comm", []byte("attacker"), 0)
	case "sysctl":
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
	case "sysrq":
		return openToWrite("/proc/sysrq-trigger")
	case "dev-mem":
		return openToWrite("/dev/mem")
	case "mark", "packet-option", "xdp-option", "buffer-option":
		option := map[string][2]int{"mark": {unix.SOL_SOCKET, unix.SO_MARK}, "packet-option": {unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS},
			"xdp-option": {unix.SOL_XDP, unix.XDP_TX_RING}, "buffer-option": {unix.SOL_SOCKET, unix.SO_RCVBUF}}[what]
		// The rule is for any socket: it looks before the socket's own code does.
		return withSocket(unix.AF_INET, 0, func(fd int) error { return unix.SetsockoptInt(fd, option[0], option[1], 4096) })
	case "passed-packet": // the test opened it and handed it in as descriptor 3
		i, err := net.InterfaceByName("usb0")
		if err != nil {
			return err
		}
		return unix.Sendto(3, make([]byte, 60), 0, &unix.SockaddrLinklayer{Ifindex: i.Index, Halen: 6})
	case "umount-bpffs", "move-bpffs", "new-move-bpffs", "own-mount":
		done := make(chan error)
		go func() { done <- remount(what, filepath.Dir(os.Getenv("PIN"))) }()
		return <-done
	case "autoload": // no socket of this family was opened before: the kernel asks for crypto_user
		return withSocket(unix.AF_NETLINK, unix.NETLINK_CRYPTO, func(int) error { return nil })
	case "kill-supervisor", "ask-supervisor":
		pid, err := strconv.Atoi(os.Getenv("SUPERVISOR"))
		if err != nil {
			return err
		}
		sig := unix.SIGCONT // harmless, and judged like any other
		if what == "ask-supervisor" {
			sig = 0
		}
		return unix.Kill(pid, sig)
	case "module-file":
		f, err := os.Open("/bin/true") // no module: whoever may load one gets ENOEXEC
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.FinitModule(int(f.Fd()), "", 0)
	case "module-data":
		return unix.InitModule(make([]byte, 4096), "")
	case "perf":
		fd, err := unix.PerfEventOpen(&unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_DUMMY,
			Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}, 0, -1, -1, 0)
		if err == nil {
			return unix.Close(fd)
		}
		return err
	case "userns":
		cmd := exec.Command("/bin/true")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
		return cmd.Run()
	case "file-write":
		f, err := os.CreateTemp("", "guard")
		if err == nil {
			return errors.Join(f.Close(), os.Remove(f.Name()))
		}
		return err
	}
	return errors.New("unknown attempt")
}

func openToWrite(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		return f.Close()
	}
	return err
}

// remount takes the BPF file system away in a mount namespace of the attacker's own: what
// is judged is the same, and a test loses nothing.
func remount(what, bpffs string) error {
	dir, err := os.MkdirTemp("", "moved")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	runtime.LockOSThread() // for good: the thread ends with its goroutine
	if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")); err != nil {
		return err
	}
	switch what {
	case "umount-bpffs":
		return unix.Unmount(bpffs, unix.MNT_DETACH)
	case "move-bpffs":
		return unix.Mount(bpffs, dir, "", unix.MS_MOVE, "")
	case "new-move-bpffs":
		return unix.MoveMount(unix.AT_FDCWD, bpffs, unix.AT_FDCWD, dir, 0)
	}
	return errors.Join(unix.Mount("tmpfs", dir, "tmpfs", 0, ""), unix.Unmount(dir, 0))
}

func message(kind, flags int, body []byte) []byte {
	b := make([]byte, unix.NLMSG_HDRLEN, 64)
	binary.NativeEndian.PutUint32(b, uint32(unix.NLMSG_HDRLEN+len(body)))
	binary.NativeEndian.PutUint16(b[4:], uint16(kind))
	binary.NativeEndian.PutUint16(b[6:], uint16(flags))
	return append(b, body...)
}

// ifinfo asks for usb0 to be up.
func ifinfo() []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	if i, err := net.InterfaceByName("usb0"); err == nil {
		binary.NativeEndian.PutUint32(b[4:], uint32(i.Index))
	}
	binary.NativeEndian.PutUint32(b[8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(b[12:], unix.IFF_UP)
	return b
}

func netlink(protocol int, request []byte) error {
	return withSocket(unix.AF_NETLINK, protocol, func(fd int) error {
		return unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
}
