package guard

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

const outcomeSlots = 4 // enum outcome in guard.c and calls.c: trusted, allowed, refused, failed

// Form is how a guard is made. It is what a report prints.
type Form string

// The forms; the package comment says what each stops.
const (
	LSM   Form = "LSM"
	Calls Form = "system calls"
)

// ErrNoGuard says that this kernel runs neither form.
var ErrNoGuard = errors.New("the kernel runs no form of the guard")

// Guard keeps every process of one handset, root included, from passing the gate
// by. Excepted are the supervisors, which [Guard.Trust] names. Processes outside the
// handset's cgroup are never touched.
type Guard struct {
	form     Form
	programs *ebpf.Collection
	hooks    []hook
	pinDir   string
	cgroup   uint64 // id of the handset's
	alive    func(seen *ebpf.Map, pinDir string) error
	counters func() []string

	mu       sync.Mutex
	admitted []device // what [Guard.Admit] was told
}

// hook is one program and where it is attached.
type hook struct {
	name    string // of its pin
	program *ebpf.Program
	judges  bool   // it looks at the map that names the handset
	point   string // of a raw tracepoint
	cgroup  ebpf.AttachType
	attach  func(*ebpf.Program) (link.Link, error)
	link    link.Link // nil before it is attached
	id      link.ID
	tag     string
}

// Install puts the guard in force for all processes at and below the cgroup2 folder
// cgroupDir, and trusts the calling process as the first supervisor. It must be
// called in the network namespace that is to be the dead end where new devices are
// born. The links are pinned in pinDir, a folder of a bpffs that is made if missing:
// the guard lives while that file system or g does. A pin that is there already is an
// error. Needs CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_ADMIN (or root).
//
// It takes the form [LSM], or where the kernel does not run that, [Calls]. It returns
// [ErrNoGuard] and leaves nothing where the kernel runs neither.
func Install(cgroupDir, pinDir string) (*Guard, error) {
	g, lsm := installForm(loadLSM, cgroupDir, pinDir)
	if !errors.Is(lsm, ErrNoLSM) {
		return g, lsm
	}
	g, err := installForm(loadCalls, cgroupDir, pinDir)
	if errors.Is(err, ErrNoGuard) {
		return nil, errors.Join(err, lsm)
	}
	return g, err
}

func installForm(load func() (*Guard, error), cgroupDir, pinDir string) (*Guard, error) {
	g, err := load()
	if err != nil {
		return nil, fmt.Errorf("cannot install the guard: %w", err)
	}
	g.pinDir = pinDir
	if err := g.install(cgroupDir); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot install the guard: %w", err), g.Remove())
	}
	return g, nil
}

// Form returns how this guard is made.
func (g *Guard) Form() Form { return g.form }

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
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return fmt.Errorf("cannot look at the cgroup %s: %w", cgroupDir, err)
	}
	g.cgroup = st.Ino // cgroup2's id of a cgroup is the inode number of its folder
	for i := range g.hooks {
		if err := g.hooks[i].enforce(cgroupDir, g.pinDir); err != nil {
			return fmt.Errorf("%s: %w", g.hooks[i].name, err)
		}
	}
	return g.alive(g.programs.Maps["seen"], g.pinDir)
}

func (h *hook) enforce(cgroupDir, pinDir string) error {
	info, err := h.program.Info()
	if err != nil {
		return err
	}
	h.tag = info.Tag
	var l link.Link
	switch {
	case h.attach != nil:
		l, err = h.attach(h.program)
	case h.point != "":
		l, err = link.AttachRawTracepoint(link.RawTracepointOptions{Name: h.point, Program: h.program})
	default:
		l, err = link.AttachCgroup(link.CgroupOptions{Path: cgroupDir, Attach: h.cgroup, Program: h.program})
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
	Refused uint64 // in the form Calls also: killed
	Failed  uint64 // form Calls: the kernel did not take the signal, the caller lives
}

// Counts returns the decisions on hook, one of the Hook constants in the form [LSM]
// and of the Call constants in the form [Calls].
func (g *Guard) Counts(hook int) (Counts, error) {
	return countsIn(g.programs.Maps["seen"], hook)
}

func countsIn(seen *ebpf.Map, hook int) (c Counts, err error) {
	for i, sum := range []*uint64{&c.Trusted, &c.Allowed, &c.Refused, &c.Failed} {
		var perCPU []uint64
		if err := seen.Lookup(uint32(hook*outcomeSlots+i), &perCPU); err != nil {
			return c, fmt.Errorf("cannot read the guard's counters: %w", err)
		}
		for _, n := range perCPU {
			*sum += n
		}
	}
	return c, nil
}

// Refusals returns how often the guard has refused (or killed for) what, by the name
// of what; names without a refusal are left out.
func (g *Guard) Refusals() (map[string]uint64, error) {
	refused := map[string]uint64{}
	for hook, name := range g.counters() {
		c, err := g.Counts(hook)
		if err != nil {
			return nil, err
		}
		if c.Refused > 0 {
			refused[name] = c.Refused
		}
	}
	return refused, nil
}

// ReadBack asks the kernel, by ids, whether the guard stands as installed: every
// link attached with our program, pinned, the cgroup map ours and frozen, and every
// hook called. The caller must be a supervisor with CAP_SYS_ADMIN. The error names
// each difference.
func (g *Guard) ReadBack() error {
	standing, err := g.Standing()
	if err != nil {
		return err
	}
	errs := []error{standing.differences(g.pinDir)}
	for _, h := range g.hooks {
		if err := h.checkPin(g.pinDir); err != nil {
			errs = append(errs, fmt.Errorf("%s: its pin: %w", h.name, err))
		}
	}
	return notAsInstalled(errors.Join(errs...))
}

func notAsInstalled(err error) error {
	if err != nil {
		return fmt.Errorf("the guard is not as installed: %w", err)
	}
	return nil
}

func (h *hook) checkPin(pinDir string) error {
	pinned, err := link.LoadPinnedLink(filepath.Join(pinDir, h.name), nil)
	if err != nil {
		return err
	}
	defer pinned.Close()
	if li, err := pinned.Info(); err != nil || li.ID != h.id {
		return errors.Join(errors.New("it holds another link"), err)
	}
	return nil
}

// Programs returns the ids of the guard's programs that stand at the handset's cgroup,
// for who reads back what else stands there.
func (g *Guard) Programs() ([]uint32, error) {
	var ids []uint32
	for _, h := range g.hooks {
		if h.attach != nil || h.point != "" {
			continue
		}
		info, err := h.program.Info()
		if err != nil {
			return nil, fmt.Errorf("cannot tell the guard's programs: %w", err)
		}
		id, ok := info.ID()
		if !ok {
			return nil, errors.New("cannot tell the guard's programs: the kernel gives no ids")
		}
		ids = append(ids, uint32(id))
	}
	return ids, nil
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
