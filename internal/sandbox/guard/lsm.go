package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"rempart/internal/bpf"
)

// ErrNoLSM says that this kernel does not run BPF LSM programs: CONFIG_BPF_LSM is
// missing, or "bpf" is not in the active list (lsm=).
var ErrNoLSM = errors.New("the kernel runs no BPF LSM programs")

// Hooks of the LSM form as its counters know them (enum hook in guard.c).
const (
	HookSocket = iota
	HookNetlink
	HookIoctl
	HookBPF
	HookInode
	HookPtrace
	HookSetsockopt
	HookSendmsg
	HookMount
	HookKill
	HookModule
	HookPerf
	HookUserns
	HookLockdown
)

// lsmCounters are the names of the hooks in Refusals.
func lsmCounters() []string {
	return []string{HookSocket: "socket", HookNetlink: "netlink", HookIoctl: "ioctl", HookBPF: "bpf", HookInode: "inode", HookPtrace: "ptrace",
		HookSetsockopt: "socket option", HookSendmsg: "packet send", HookMount: "mount", HookKill: "kill", HookModule: "kernel module",
		HookPerf: "perf event", HookUserns: "user namespace", HookLockdown: "lockdown"}
}

// loadLSM loads the programs that this kernel has hooks for.
func loadLSM() (*Guard, error) {
	spec, err := bpf.LoadGuard()
	if err != nil {
		return nil, err
	}
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("%w: no type information: %w", ErrNoLSM, err)
	}
	has := func(hook string) bool {
		var f *btf.Func
		return kernel.TypeByName("bpf_lsm_"+hook, &f) == nil
	}
	if !has("socket_create") {
		return nil, fmt.Errorf("%w: no hook functions", ErrNoLSM)
	}
	if err := tryLSM(); err != nil {
		return nil, err
	}
	// Some hooks are newer than the others. file_ioctl_compat (6.8 and some stable kernels): where it is
	// missing the plain hook sees compat ioctls too. userns_create (6.1): before it there is none.
	for name, p := range spec.Programs {
		newer := p.AttachTo == "file_ioctl_compat" || p.AttachTo == "userns_create"
		if newer && !has(p.AttachTo) {
			delete(spec.Programs, name)
		}
	}
	programs, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, err
	}
	g := &Guard{form: LSM, programs: programs, alive: aliveLSM, counters: lsmCounters}
	for _, name := range slices.Sorted(maps.Keys(programs.Programs)) {
		g.hooks = append(g.hooks, hook{name: name, program: programs.Programs[name], judges: true, attach: attachLSM})
	}
	return g, nil
}

// tryLSM loads the least LSM program. Some kernels (seen on a 6.18 micro-VM) list
// bpf among their LSMs and refuse every program that is bound to a kernel function.
func tryLSM() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.LSM, AttachType: ebpf.AttachLSMMac, AttachTo: "socket_create", License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return fmt.Errorf("%w: it does not load one: %w", ErrNoLSM, err)
	}
	return p.Close()
}

func attachLSM(p *ebpf.Program) (link.Link, error) {
	l, err := link.AttachLSM(link.LSMOptions{Program: p})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return nil, fmt.Errorf("%w: %w", ErrNoLSM, err)
	}
	return l, err
}

// aliveLSM does, as a supervisor, one harmless thing per hook and looks whether the
// guard saw it. A kernel may have all the hook functions, accept every link, and
// never call them: "bpf" must be in the active LSM list. Who may not reach the pins
// gives "" for their folder and leaves that hook out.
func aliveLSM(seen *ebpf.Map, pinDir string) error {
	for _, probe := range []struct {
		name string
		hook int
		do   func() error
	}{
		{"bpf", HookBPF, func() error { _, err := countsIn(seen, HookBPF); return err }},
		{"socket", HookSocket, func() error { return withSocket(unix.AF_UNIX, 0, func(int) error { return nil }) }},
		{"ioctl", HookIoctl, func() error {
			return withSocket(unix.AF_UNIX, 0, func(fd int) error {
				_, err := unix.IoctlGetInt(fd, unix.SIOCGIFCOUNT)
				if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTTY) {
					err = nil // no one implements it: it was judged all the same
				}
				return err
			})
		}},
		{"netlink", HookNetlink, func() error { return withSocket(unix.AF_NETLINK, unix.NETLINK_ROUTE, getLoopback) }},
		{"inode", HookInode, func() error { return unix.Access(pinDir, unix.W_OK) }},
	} {
		if probe.hook == HookInode && pinDir == "" {
			continue
		}
		before, err := countsIn(seen, probe.hook)
		if err != nil {
			return err
		}
		if err := probe.do(); err != nil {
			return fmt.Errorf("cannot try hook %s: %w", probe.name, err)
		}
		after, err := countsIn(seen, probe.hook)
		if err != nil {
			return err
		}
		if after.Trusted <= before.Trusted {
			return fmt.Errorf("%w: hook %s is attached and was not called, or the caller is no supervisor", ErrNoLSM, probe.name)
		}
	}
	return nil
}

func withSocket(family, protocol int, do func(fd int) error) error {
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return err
	}
	return errors.Join(do(fd), unix.Close(fd))
}

// getLoopback asks for device 1 with RTM_GETLINK and leaves the answer unread.
func getLoopback(fd int) error {
	request := make([]byte, unix.NLMSG_HDRLEN+unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(request, uint32(len(request)))
	binary.NativeEndian.PutUint16(request[4:], unix.RTM_GETLINK)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(request[unix.NLMSG_HDRLEN+4:], 1)
	return unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}
