package attack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// child is a shell in namespaces of its own.
func (j Job) child(ctx context.Context, t *tally, device string, flags uintptr) (*exec.Cmd, *strings.Builder, bool) {
	cmd := exec.CommandContext(ctx, "bash", "-c", j.script(device))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if flags&unix.CLONE_NEWUSER != 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	out := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.refused("new namespaces", err)
		return nil, nil, false
	}
	return cmd, out, true
}

// runMoved takes the radio to a namespace where the sender is root in his own right.
func runMoved(ctx context.Context, j Job, t *tally) {
	ctx, cancel := context.WithTimeout(ctx, scriptTime)
	defer cancel()
	cmd, out, ok := j.child(ctx, t, j.Device, unix.CLONE_NEWUSER|unix.CLONE_NEWNET)
	if !ok {
		return
	}
	if !t.each(fmt.Sprintf("ip link set %s netns %d", j.Device, cmd.Process.Pid)) {
		cancel()
		_ = cmd.Wait() // it waits for the device in vain
		return
	}
	if err := cmd.Wait(); err != nil {
		err = toolError(out.String(), err)
		t.refused("send there", err)
		return
	}
	t.did("send there", nil)
}

// runOtherNetns sends in a namespace of the sender's own, wired to black, where the kernel forwards: red to black, past the
// tunnel.
func runOtherNetns(ctx context.Context, j Job, t *tally) {
	ctx, cancel := context.WithTimeout(ctx, scriptTime)
	defer cancel()
	there := j
	there.Source, there.NextHop = j.elsewhere().Prev(), net.HardwareAddr{2, 0, 0, 0, 0, 0xaa}
	cmd, out, ok := there.child(ctx, t, ownOther, unix.CLONE_NEWNET)
	if !ok {
		return
	}
	if !t.each("ip link add "+ownDevice+" address 02:00:00:00:00:aa type veth peer name "+ownOther, "ip link set "+ownDevice+" up") ||
		!j.forwarding(t, ownDevice) ||
		!t.each(j.ip("route replace %s dev %s", j.elsewhere(), j.Device), j.ip("neigh replace %s lladdr %s dev %s nud permanent", j.elsewhere(), j.nextHop(), j.Device),
			fmt.Sprintf("ip link set %s netns %d", ownOther, cmd.Process.Pid)) {
		cancel()
		_ = cmd.Wait() // it waits for the device in vain
		return
	}
	if err := cmd.Wait(); err != nil {
		t.refused("send there", toolError(out.String(), err))
		return
	}
	t.did("send there", nil)
}

// bpf system call numbers and structures (include/uapi/linux/bpf.h).
const (
	bpfObjGet       = 7
	bpfProgDetach   = 9
	bpfLinkGetFD    = 30
	bpfLinkDetach   = 34
	bpfTCXEgress    = 47
	bpfFirstLinkIDs = 64
)

func bpf(command int, attr unsafe.Pointer, size uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// runDetached opens every pin under Job.Path and detaches its link, asks for links by number, tries to detach by device,
// deletes the nft tables and the floor, and sends: to anywhere, and as the tunnel.
func runDetached(ctx context.Context, j Job, t *tally) {
	detached := 0
	if err := filepath.WalkDir(j.Path, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := unix.BytePtrFromString(path)
		if err != nil {
			return err
		}
		get := struct{ name, fd, flags uint64 }{name: uint64(uintptr(unsafe.Pointer(name)))}
		fd, err := bpf(bpfObjGet, unsafe.Pointer(&get), 16)
		runtime.KeepAlive(name)
		if err != nil {
			return fmt.Errorf("open the pin %s: %w", path, err)
		}
		defer unix.Close(fd)
		which := uint32(fd)
		if _, err := bpf(bpfLinkDetach, unsafe.Pointer(&which), 4); err == nil {
			detached++
		}
		return nil // a map or a program is no link
	}); err != nil {
		t.refused("pins", err)
	}
	for id := range uint32(bpfFirstLinkIDs) {
		get := [2]uint32{id, 0}
		if fd, err := bpf(bpfLinkGetFD, unsafe.Pointer(&get), 8); err == nil {
			unix.Close(fd) // another's link on a desk: it is enough that it could be had
		} else if !errors.Is(err, unix.ENOENT) {
			t.refused("link by number", err)
			break
		}
	}
	if i, err := net.InterfaceByName(j.Device); err == nil {
		by := struct{ target, program, kind, flags, replace, relative, revision, more uint32 }{target: uint32(i.Index), kind: bpfTCXEgress}
		if _, err := bpf(bpfProgDetach, unsafe.Pointer(&by), unsafe.Sizeof(by)); err != nil && detached == 0 {
			t.refused("detach by device", err)
		}
	}
	t.tool("nft", "flush", "ruleset") // the tables that another owns stay
	runNoFloor(ctx, j, t)
	j.sendAsTunnel(t)
	settle(ctx, queued)
}

// sendAsTunnel sends to the gateway's tunnel port from a socket of the uid that the tunnel's daemon has, which root may take
// on.
func (j Job) sendAsTunnel(t *tally) {
	var daemon unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d", j.PID), &daemon); err != nil {
		t.refused("look at the tunnel's daemon", err)
		return
	}
	if os.Geteuid() == 0 {
		// Sockets are of the effective uid of the thread that opens them.
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(daemon.Uid), ^uintptr(0)); errno != 0 {
			t.refused("take on the tunnel's uid", errno)
			return
		}
	}
	j.sendTo(t, j.Target, tunnelPort)
}

// runJoined moves the sender into the control group Job.Path and speaks to the gateway as the tunnel, its uid too.
func runJoined(_ context.Context, j Job, t *tally) {
	if err := os.WriteFile(filepath.Join(j.Path, "cgroup.procs"), []byte("0"), 0); err != nil {
		t.refused("join", err)
		return
	}
	j.sendAsTunnel(t)
}

// runStolen takes a copy of each UDP socket of process Job.PID and sends by it.
func runStolen(_ context.Context, j Job, t *tally) {
	victim, err := unix.PidfdOpen(j.PID, 0)
	if err != nil {
		t.refused("pidfd_open", err)
		return
	}
	defer unix.Close(victim)
	for number := range 32 {
		fd, err := unix.PidfdGetfd(victim, number, 0)
		if err != nil {
			if !errors.Is(err, unix.EBADF) {
				t.refused("pidfd_getfd", err)
			}
			continue
		}
		if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && domain == j.Family.domain() {
			datagrams(t, fd, sockaddr(j.Target, tunnelPort, 0), j.Marker[:], j.count(), "send by the stolen socket")
		}
		unix.Close(fd)
	}
}

// runIoctlSet takes the radio down, gives it another address, MTU and name, and sends when it is up again.
func runIoctlSet(ctx context.Context, j Job, t *tally) {
	fd, ok := open(t, unix.AF_INET, unix.SOCK_DGRAM, 0, "udp")
	if !ok {
		return
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(j.Device)
	if err != nil {
		t.refused("ioctl", err)
		return
	}
	for _, set := range []struct {
		what  string
		code  uint
		value uint32
	}{{"down", unix.SIOCSIFFLAGS, 0}, {"mtu", unix.SIOCSIFMTU, 1400}, {"up", unix.SIOCSIFFLAGS, unix.IFF_UP}} {
		if set.code == unix.SIOCSIFFLAGS {
			ifr.SetUint16(uint16(set.value))
		} else {
			ifr.SetUint32(set.value)
		}
		if err := unix.IoctlIfreq(fd, set.code, ifr); err != nil {
			t.refused("ioctl "+set.what, err)
			return
		}
	}
	// What went with the flags comes back: routes and neighbours.
	if t.each(j.through(j.Device)...) {
		j.sendTo(t, j.elsewhere(), 9)
		settle(ctx, queued)
	}
}

// runPFKey asks the older door to IPsec for its states, keys and all.
func runPFKey(_ context.Context, j Job, t *tally) {
	fd, ok := open(t, unix.AF_KEY, unix.SOCK_RAW, 2, "PF_KEY")
	if !ok {
		return
	}
	defer unix.Close(fd)
	dump := [16]byte{0: 2, 1: 10 /* SADB_DUMP */, 4: 2}
	_, err := unix.Write(fd, dump[:])
	t.did("dump the states", err)
}
