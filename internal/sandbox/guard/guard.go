package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
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

// Hooks of the guard as its counters know them (enum hook in guard.c).
const (
	HookSocket = iota
	HookNetlink
	HookIoctl
	HookBPF
	HookInode
	HookPtrace
	hookCount
)

const outcomeSlots = 4 // enum outcome in guard.c: trusted, allowed, refused

// Guard is the set of LSM programs that keep every process of one handset, root
// included, from passing the gate by or changing the network: packet sockets,
// link, route and filter changes, bpf(), and writing to sysfs, cgroup2 and bpffs.
// Excepted are the supervisors, which [Guard.Trust] names. Processes outside the
// handset's cgroup are never touched.
//
// What it does not stop: a kernel module, /dev/mem, ptrace between processes that
// are no supervisors, writes to /proc/sys, SO_MARK, and a descriptor (a packet
// socket, a bpf link) opened outside the handset and handed in.
type Guard struct {
	programs *ebpf.Collection
	hooks    []hook
	pinDir   string
}

// hook is one attached program.
type hook struct {
	name    string // of its pin
	program *ebpf.Program
	link    link.Link // nil before it is attached
	id      link.ID
	tag     string
}

// Install puts the guard in force for all processes at and below the cgroup
// folder cgroupDir, and trusts the calling process as the first supervisor. The
// links are pinned in pinDir, a folder of a bpffs that is made if missing: the guard
// lives while that file system or g does. A pin that is there already is an error.
// Needs CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_ADMIN (or root). It returns
// [ErrNoLSM] and leaves nothing where the kernel does not run it.
func Install(cgroupDir, pinDir string) (*Guard, error) {
	g, err := loadLSM()
	if err != nil {
		return nil, fmt.Errorf("cannot install the guard: %w", err)
	}
	g.pinDir = pinDir
	if err := g.install(cgroupDir); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot install the guard: %w", err), g.Remove())
	}
	return g, nil
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
	// This hook is newer than the others (6.8 and some stable kernels). Where it is
	// missing the plain hook sees compat ioctls too.
	if !has("file_ioctl_compat") {
		delete(spec.Programs, "guard_ioctl_compat")
	}
	programs, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, err
	}
	g := &Guard{programs: programs}
	for _, name := range slices.Sorted(maps.Keys(programs.Programs)) {
		g.hooks = append(g.hooks, hook{name: name, program: programs.Programs[name]})
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

// install fills the maps first: from its first instant the guard knows whom it is
// for and whom to trust.
func (g *Guard) install(cgroupDir string) error {
	dir, err := os.Open(cgroupDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	handset := g.programs.Maps["handset"]
	if err := handset.Put(uint32(0), uint32(dir.Fd())); err != nil {
		return fmt.Errorf("cannot name the cgroup %s: %w", cgroupDir, err)
	}
	if err := handset.Freeze(); err != nil {
		return fmt.Errorf("cannot freeze the cgroup: %w", err)
	}
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return fmt.Errorf("cannot open own pidfd: %w", err)
	}
	defer unix.Close(self)
	if err := g.Trust(self); err != nil {
		return err
	}
	if err := os.MkdirAll(g.pinDir, 0o700); err != nil {
		return err
	}
	for i := range g.hooks {
		if err := g.hooks[i].attach(g.pinDir); err != nil {
			return fmt.Errorf("%s: %w", g.hooks[i].name, err)
		}
	}
	return g.alive()
}

func (h *hook) attach(pinDir string) error {
	info, err := h.program.Info()
	if err != nil {
		return err
	}
	h.tag = info.Tag
	l, err := link.AttachLSM(link.LSMOptions{Program: h.program})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return fmt.Errorf("%w: %w", ErrNoLSM, err)
	}
	if err != nil {
		return err
	}
	// Pin before it is h's: Remove must not take away a pin of another guard.
	if err := l.Pin(filepath.Join(pinDir, h.name)); err != nil {
		return errors.Join(fmt.Errorf("cannot pin: %w", err), l.Close())
	}
	h.link = l
	li, err := l.Info()
	if err != nil {
		return err
	}
	h.id = li.ID
	return nil
}

// Trust makes the process that pidfd refers to a supervisor: the guard lets it do
// everything. The trust is the process's (its thread group's), for its life; its
// children do not have it, and no process can take it. pidfd must be of a thread
// group leader, as pidfd_open and os/exec give it.
func (g *Guard) Trust(pidfd int) error {
	if err := g.programs.Maps["supervisors"].Put(int32(pidfd), uint32(1)); err != nil {
		return fmt.Errorf("cannot trust the process of pidfd %d: %w", pidfd, err)
	}
	return nil
}

// Counts are what the guard has decided on one hook, for the handset's processes.
type Counts struct {
	Trusted uint64 // let through: a supervisor
	Allowed uint64 // let through: harmless
	Refused uint64
}

// Counts returns the decisions on hook, one of the Hook constants.
func (g *Guard) Counts(hook int) (c Counts, err error) {
	for i, sum := range []*uint64{&c.Trusted, &c.Allowed, &c.Refused} {
		var perCPU []uint64
		if err := g.programs.Maps["seen"].Lookup(uint32(hook*outcomeSlots+i), &perCPU); err != nil {
			return c, fmt.Errorf("cannot read the guard's counters: %w", err)
		}
		for _, n := range perCPU {
			*sum += n
		}
	}
	return c, nil
}

// alive does, as a supervisor, one harmless thing per hook and looks whether the
// guard saw it. A kernel may have all the hook functions, accept every link, and
// never call them: "bpf" must be in the active LSM list.
func (g *Guard) alive() error {
	for _, probe := range []struct {
		name string
		hook int
		do   func() error
	}{
		{"bpf", HookBPF, func() error { _, err := g.Counts(HookBPF); return err }},
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
		{"inode", HookInode, func() error { return unix.Access(g.pinDir, unix.W_OK) }},
	} {
		before, err := g.Counts(probe.hook)
		if err != nil {
			return err
		}
		if err := probe.do(); err != nil {
			return fmt.Errorf("cannot try hook %s: %w", probe.name, err)
		}
		after, err := g.Counts(probe.hook)
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

// ReadBack asks the kernel, by ids, whether the guard stands as installed: every
// link attached with our program, pinned, the cgroup map ours and frozen, and every
// hook called. The caller must be a supervisor with CAP_SYS_ADMIN. The error names
// each difference.
func (g *Guard) ReadBack() error {
	handset, err := g.programs.Maps["handset"].Info()
	if err != nil {
		return fmt.Errorf("cannot read back the guard: %w", err)
	}
	var errs []error
	if !handset.Frozen() {
		errs = append(errs, errors.New("the cgroup map is not frozen"))
	}
	for _, h := range g.hooks {
		if err := h.check(g.pinDir, handset); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", h.name, err))
		}
	}
	if err := errors.Join(append(errs, g.alive())...); err != nil {
		return fmt.Errorf("the guard is not as installed: %w", err)
	}
	return nil
}

func (h *hook) check(pinDir string, handset *ebpf.MapInfo) error {
	byID, err := link.NewFromID(h.id)
	if err != nil {
		return fmt.Errorf("link %d: %w", h.id, err)
	}
	defer byID.Close()
	info, err := byID.Info()
	if err != nil {
		return err
	}
	p, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return fmt.Errorf("program %d: %w", info.Program, err)
	}
	defer p.Close()
	pi, err := p.Info()
	if err != nil {
		return err
	}
	var errs []error
	if pi.Tag != h.tag || pi.Type != ebpf.LSM {
		errs = append(errs, fmt.Errorf("link %d runs program %d %q with tag %s, not %s", h.id, info.Program, pi.Name, pi.Tag, h.tag))
	}
	want, _ := handset.ID()
	if ids, ok := pi.MapIDs(); !ok || !slices.Contains(ids, want) {
		errs = append(errs, errors.New("the program looks at another cgroup map"))
	}
	pinned, err := link.LoadPinnedLink(filepath.Join(pinDir, h.name), nil)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("its pin: %w", err))...)
	}
	defer pinned.Close()
	if li, err := pinned.Info(); err != nil || li.ID != h.id {
		errs = append(errs, errors.Join(errors.New("its pin holds another link"), err))
	}
	return errors.Join(errs...)
}

// Close lets go of the descriptors. The guard stays in force as long as its pins.
func (g *Guard) Close() error {
	var errs []error
	for i, h := range g.hooks {
		if h.link != nil {
			errs = append(errs, h.link.Close())
		}
		g.hooks[i].link = nil
	}
	g.programs.Close()
	return errors.Join(errs...)
}

// Remove takes the guard out of force: it unpins what it has attached, and closes.
// It is for a supervisor that takes the handset down in order.
func (g *Guard) Remove() error {
	var errs []error
	for _, h := range g.hooks {
		if h.link != nil {
			errs = append(errs, h.link.Unpin())
		}
	}
	return errors.Join(append(errs, g.Close())...)
}
