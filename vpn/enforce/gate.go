package enforce

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"rempart/vpn/egress"
)

// ErrDetached says that a gate's link is no longer on its device: it was severed, or
// the device is gone. What is left there is the floor.
var ErrDetached = errors.New("the link is detached")

// Option changes how [Attach] works.
type Option func(*Gate)

// WithoutTCX makes the gate a clsact filter even where the kernel has TCX, as on a
// kernel before 6.6.
func WithoutTCX() Option { return func(g *Gate) { g.hook = egress.HookClsact } }

// Gate is the gate on one device. Its methods may be called concurrently.
type Gate struct {
	ifindex int
	pinDir  string
	hook    egress.Hook

	mu     sync.Mutex
	memory                  // nil maps: closed
	links  [2]link.Link     // by direction; nil on clsact
	policy egress.Policy    // in force
	facts  egress.LinkFacts // of the device's link, in force
}

// Attach puts the gate on the device, deny-all, in both directions, in front of a
// floor that must be in force. On TCX the links are pinned in pinDir (a bpffs, the
// caller's own folder, mode 0700) as IFINDEX-egress and IFINDEX-ingress; the counters
// are pinned as IFINDEX-counters in any case, and what it drops is in the record that
// [OpenRecord] finds in pinDir. Pins of an earlier process are taken over: their gate is
// replaced by deny-all before anything else.
//
// The gate outlives the process: kill -9 leaves the last policy in force, as its
// pins hold it. Needs CAP_NET_ADMIN and CAP_BPF.
func Attach(ifindex int, pinDir string, options ...Option) (*Gate, error) {
	g := &Gate{ifindex: ifindex, pinDir: pinDir}
	for _, o := range options {
		o(g)
	}
	if err := g.attach(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot put the gate on device %d: %w", ifindex, err), g.release())
	}
	return g, nil
}

func (g *Gate) attach() error {
	// Fail before a foreign floor: a gate alone would be open whenever it is not there.
	if err := FloorInForce(g.ifindex); err != nil {
		return err
	}
	var err error
	if g.counters, err = g.openCounters(); err != nil {
		return err
	}
	if g.link, err = newLinkState(); err != nil {
		return err
	}
	if err := closeToProcesses(g.link); err != nil {
		return err
	}
	if g.record, err = OpenRecord(g.pinDir); err != nil {
		return err
	}
	deny, err := loadInstance(egress.DenyAll(), egress.LinkFacts{}, g.memory)
	if err != nil {
		return err
	}
	defer deny.close()
	for _, d := range []egress.Direction{egress.Egress, egress.Ingress} {
		if err := g.attachDirection(d, deny.programs[d]); err != nil {
			return fmt.Errorf("%v: %w", d, err)
		}
	}
	return nil
}

func (g *Gate) pin(what string) string {
	return filepath.Join(g.pinDir, fmt.Sprintf("%d-%s", g.ifindex, what))
}

// openCounters takes over the pinned counters, or makes and pins new ones.
func (g *Gate) openCounters() (*ebpf.Map, error) {
	path := g.pin("counters")
	compiled, err := object()
	if err != nil {
		return nil, err
	}
	return openShared(path, compiled.Maps[countersVariable].Copy())
}

// Pinned lists the device indices that have pins in pinDir.
func Pinned(pinDir string) ([]int, error) {
	entries, err := os.ReadDir(pinDir)
	if err != nil {
		return nil, fmt.Errorf("cannot list the gate's pins: %w", err)
	}
	var indices []int
	for _, e := range entries {
		number, _, _ := strings.Cut(e.Name(), "-")
		if n, err := strconv.Atoi(number); err == nil && n > 0 && !slices.Contains(indices, n) {
			indices = append(indices, n)
		}
	}
	return indices, nil
}

func (g *Gate) attachDirection(d egress.Direction, p *ebpf.Program) error {
	if g.hook == egress.HookClsact {
		return setFilter(g.ifindex, d, gatePriority, "rempart-gate", p)
	}
	old, err := g.takeOver(d)
	if err != nil {
		return err
	}
	if old != nil {
		g.hook, g.links[d] = egress.HookTCX, old
		return old.Update(p)
	}
	attach := ebpf.AttachTCXEgress
	if d == egress.Ingress {
		attach = ebpf.AttachTCXIngress
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: g.ifindex, Program: p, Attach: attach, Anchor: link.Head()})
	if errors.Is(err, ebpf.ErrNotSupported) && g.hook == 0 {
		g.hook = egress.HookClsact
		return g.attachDirection(d, p)
	}
	if err != nil {
		return err
	}
	g.hook, g.links[d] = egress.HookTCX, l
	return pinObject(l, g.pin(d.String()))
}

// takeOver opens an earlier process's pin. A pin whose link is dead (its device is
// gone, or it was severed) is removed: the index may belong to another device now.
func (g *Gate) takeOver(d egress.Direction) (link.Link, error) {
	path := g.pin(d.String())
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open pin %s: %w", path, err)
	}
	info, err := l.Info()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot ask the link of pin %s: %w", path, err), l.Close())
	}
	if tcx := info.TCX(); tcx != nil && tcx.Ifindex == uint32(g.ifindex) {
		return l, nil
	}
	if err := errors.Join(l.Close(), os.Remove(path)); err != nil {
		return nil, fmt.Errorf("cannot remove dead pin %s: %w", path, err)
	}
	return nil, nil
}

// Hook tells where the gate is attached.
func (g *Gate) Hook() egress.Hook { return g.hook }

// Policy returns the policy in force.
func (g *Gate) Policy() egress.Policy {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.policy
}

// Swap puts policy p in force. If it fails part of the way, the gate denies all,
// and the error says so if not even that could be done. An error that wraps
// [ErrDetached] means that a direction has no gate any more and the floor drops.
func (g *Gate) Swap(p egress.Policy) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	err := g.swap(p, order(g.policy, p))
	if err == nil {
		g.policy = p
		return nil
	}
	g.policy = egress.DenyAll()
	return errors.Join(fmt.Errorf("cannot change the gate of device %d: %w", g.ifindex, err), g.denyEach())
}

// SetLink puts new link facts in force, under the policy that is in force. If that fails part of the way, the gate denies
// all and the facts are none.
func (g *Gate) SetLink(f egress.LinkFacts) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.facts
	g.facts = f
	err := g.swap(g.policy, []step{{egress.Egress, false}, {egress.Ingress, false}})
	if err == nil {
		return nil
	}
	if f.Check() != nil {
		g.facts = old // nothing was loaded
		return err
	}
	g.policy, g.facts = egress.DenyAll(), egress.LinkFacts{}
	return errors.Join(fmt.Errorf("cannot change the link facts of device %d: %w", g.ifindex, err), g.denyEach())
}

// Link returns the link facts in force.
func (g *Gate) Link() egress.LinkFacts {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.facts
}

// denyEach denies all in each direction that still has a gate.
func (g *Gate) denyEach() error {
	for d := egress.Egress; d <= egress.Ingress; d++ {
		err := g.swap(egress.DenyAll(), []step{{d, true}})
		if err != nil && !errors.Is(err, ErrDetached) {
			return fmt.Errorf("cannot even deny all on device %d: %w", g.ifindex, err)
		}
	}
	return nil
}

func (g *Gate) swap(p egress.Policy, steps []step) error {
	if g.counters == nil {
		return errors.New("the gate is closed")
	}
	in, err := loadInstance(p, g.facts, g.memory)
	if err != nil {
		return err
	}
	defer in.close()
	deny := in
	if slices.ContainsFunc(steps, func(s step) bool { return s.deny }) {
		if deny, err = loadInstance(egress.DenyAll(), g.facts, g.memory); err != nil {
			return err
		}
		defer deny.close()
	}
	for _, s := range steps {
		program := in.programs[s.direction]
		if s.deny {
			program = deny.programs[s.direction]
		}
		if err := g.set(s.direction, program); err != nil {
			return fmt.Errorf("%v: %w", s.direction, err)
		}
	}
	return nil
}

// set exchanges one direction's program; the kernel does it in one step.
func (g *Gate) set(d egress.Direction, p *ebpf.Program) error {
	if g.hook == egress.HookClsact {
		return setFilter(g.ifindex, d, gatePriority, "rempart-gate", p)
	}
	// A link that lost its device takes an update in silence on some kernels.
	info, err := g.links[d].Info()
	if err != nil {
		return err
	}
	if tcx := info.TCX(); tcx == nil || tcx.Ifindex != uint32(g.ifindex) {
		return ErrDetached
	}
	return g.links[d].Update(p)
}

// Counters returns the frames counted since the gate was first attached.
func (g *Gate) Counters() (egress.Counters, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.counters == nil {
		return egress.Counters{}, errors.New("cannot read the gate's counters: the gate is closed")
	}
	return readCounters(g.counters)
}

// Close denies all and lets go of the descriptors. The gate stays on the device,
// held by its pins; [Sever] takes it off.
func (g *Gate) Close() error {
	err := g.Swap(egress.DenyAll())
	g.mu.Lock()
	defer g.mu.Unlock()
	return errors.Join(err, g.release())
}

// Release lets go of the descriptors and leaves the policy in force as it is.
func (g *Gate) Release() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.release()
}

func (g *Gate) release() error {
	var errs []error
	for d, l := range g.links {
		if l != nil {
			errs = append(errs, l.Close())
		}
		g.links[d] = nil
	}
	return errors.Join(append(errs, g.memory.close())...)
}
