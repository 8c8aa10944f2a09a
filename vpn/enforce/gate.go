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

	change sync.Mutex       // held while programs are loaded; before mu
	mu     sync.Mutex       // held while they are exchanged: who asks what is in force does not wait for the verifier
	memory                  // nil maps: closed
	links  [2]link.Link     // by direction; nil on clsact
	policy egress.Policy    // in force
	facts  egress.LinkFacts // of the device's link, in force
	count  uint64           // of exchanges, tried or done
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

// Change is a policy that is loaded for a gate and not in force yet.
type Change struct {
	gate     *Gate
	policy   egress.Policy
	facts    egress.LinkFacts
	steps    []step
	in, deny *instance
	after    uint64 // the gate's count of exchanges that it was loaded for
}

var errChanged = errors.New("it was changed meanwhile")

// Prepare loads policy p, which takes the kernel's verifier a while, and puts nothing in force: [Change.Commit] does.
func (g *Gate) Prepare(p egress.Policy) (*Change, error) {
	g.change.Lock()
	defer g.change.Unlock()
	return g.prepare(p)
}

func (g *Gate) prepare(p egress.Policy) (*Change, error) {
	g.mu.Lock()
	c := &Change{gate: g, policy: p, facts: g.facts, steps: order(g.policy, p), after: g.count}
	g.mu.Unlock()
	if err := c.load(); err != nil {
		return nil, g.cannot("change the gate", err)
	}
	return c, nil
}

// load needs change or mu of the gate, so that nobody closes its maps meanwhile.
func (c *Change) load() (err error) {
	if c.gate.counters == nil {
		return errors.New("the gate is closed")
	}
	if c.in, err = loadInstance(c.policy, c.facts, c.gate.memory); err != nil {
		return err
	}
	if slices.ContainsFunc(c.steps, func(s step) bool { return s.deny }) {
		if c.deny, err = loadInstance(egress.DenyAll(), c.facts, c.gate.memory); err != nil {
			return errors.Join(err, c.Close())
		}
	}
	return nil
}

// Commit puts the policy in force, in some atomic steps of the kernel. If it fails part of the way, the gate denies all, and
// the error says so if not even that could be done. An error that wraps [ErrDetached] means that a direction has no gate any
// more and the floor drops. A change that was prepared before another one was committed is not taken.
func (c *Change) Commit() error {
	g := c.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	err := errChanged
	if c.after == g.count {
		err = c.exchange()
	}
	if err == nil {
		g.policy = c.policy
		return nil
	}
	return errors.Join(g.cannot("change the gate", err), g.denyEach())
}

// exchange needs mu of the gate.
func (c *Change) exchange() error {
	g := c.gate
	g.count++
	if g.counters == nil {
		return errors.New("the gate is closed")
	}
	for _, s := range c.steps {
		in := c.in
		if s.deny {
			in = c.deny
		}
		if err := g.set(s.direction, in.programs[s.direction]); err != nil {
			return fmt.Errorf("%v: %w", s.direction, err)
		}
	}
	return nil
}

// Close lets go of what was loaded. What is in force the device holds.
func (c *Change) Close() error {
	var errs []error
	for _, in := range []*instance{c.in, c.deny} {
		if in != nil {
			errs = append(errs, in.close())
		}
	}
	c.in, c.deny = nil, nil
	return errors.Join(errs...)
}

func (g *Gate) cannot(what string, err error) error {
	return fmt.Errorf("cannot %s of device %d: %w", what, g.ifindex, err)
}

// Swap prepares policy p and commits it. If it fails at all, the gate denies all, as in [Change.Commit].
func (g *Gate) Swap(p egress.Policy) error {
	g.change.Lock()
	defer g.change.Unlock()
	c, err := g.prepare(p)
	if err != nil {
		g.mu.Lock()
		defer g.mu.Unlock()
		return errors.Join(err, g.denyEach())
	}
	return errors.Join(c.Commit(), c.Close())
}

// SetLink puts new link facts in force, under the policy that is in force. If that fails part of the way, the gate denies
// all and the facts are none.
func (g *Gate) SetLink(f egress.LinkFacts) error {
	if err := f.Check(); err != nil {
		return err
	}
	g.change.Lock()
	defer g.change.Unlock()
	g.mu.Lock()
	c := &Change{gate: g, policy: g.policy, facts: f, steps: []step{{egress.Egress, false}, {egress.Ingress, false}}, after: g.count}
	g.mu.Unlock()
	err := c.load()
	g.mu.Lock()
	defer g.mu.Unlock()
	if err == nil && c.after != g.count {
		err = errors.Join(errChanged, c.Close())
	}
	if err == nil {
		err = errors.Join(c.exchange(), c.Close())
	}
	if err == nil {
		g.facts = f
		return nil
	}
	g.facts = egress.LinkFacts{}
	return errors.Join(g.cannot("change the link facts", err), g.denyEach())
}

// Link returns the link facts in force.
func (g *Gate) Link() egress.LinkFacts {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.facts
}

// denyEach denies all in each direction that still has a gate. It loads under mu: who asks waits for a gate that failed.
func (g *Gate) denyEach() error {
	g.policy = egress.DenyAll()
	for d := egress.Egress; d <= egress.Ingress; d++ {
		c := &Change{gate: g, policy: g.policy, facts: g.facts, steps: []step{{d, false}}}
		err := c.load()
		if err == nil {
			err = errors.Join(c.exchange(), c.Close())
		}
		if err != nil && !errors.Is(err, ErrDetached) {
			return g.cannot("even deny all", err)
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
	return errors.Join(g.Swap(egress.DenyAll()), g.Release())
}

// Release lets go of the descriptors and leaves the policy in force as it is.
func (g *Gate) Release() error {
	g.change.Lock()
	defer g.change.Unlock()
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
