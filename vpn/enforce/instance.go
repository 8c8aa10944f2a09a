package enforce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"

	"rempart/internal/bpf"
	"rempart/vpn/egress"
)

// instance is one loaded gate: both programs, the policy that is a constant of theirs,
// and what they know of the device's link. It is not changed after load; a new policy is
// a new instance. One that admits nothing (egress.ClosedBy) is the closed gate: other
// programs, and no maps of its own.
type instance struct {
	programs  [2]*ebpf.Program // by egress.Direction
	fragments *ebpf.Map        // first fragments that it admitted: a new instance knows none
	facts     *ebpf.Map        // of the device's link
	dhcp      *ebpf.Map        // templates of the messages that linkd may send
}

// memory is what outlives an instance on a device: counters, the drop record, and the state of the link-layer minimum, so
// that no swap fills its buckets anew.
type memory struct {
	counters, link *ebpf.Map
	record         *Record // nil: what is dropped is recorded for no one
}

func (m *memory) close() error {
	var errs []error
	for _, c := range []*ebpf.Map{m.counters, m.link} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	if m.record != nil {
		errs = append(errs, m.record.Close())
	}
	*m = memory{}
	return errors.Join(errs...)
}

// Two of the gate's maps are variables of its programs. By these names they are in its
// object; in the kernel they have the plain ones.
const (
	policyVariable   = ".rodata.policy"
	countersVariable = ".data.counters"
	policyMap        = "policy"
	countersMap      = "counters"
)

// object is the gate as it was compiled, read once: the policy's table is a large part of
// it, and nobody changes a copy's original.
var object = sync.OnceValues(func() (*ebpf.CollectionSpec, error) {
	spec, err := bpf.LoadGate()
	if err != nil {
		return nil, fmt.Errorf("cannot read the gate's object: %w", err)
	}
	// Under their own names the library would make them memory that a process can map.
	spec.Maps[policyVariable].Name, spec.Maps[countersVariable].Name = policyMap, countersMap
	return spec, nil
})

// closedObject is the closed gate as it was compiled.
var closedObject = sync.OnceValues(func() (*ebpf.CollectionSpec, error) {
	spec, err := bpf.LoadClosed()
	if err != nil {
		return nil, fmt.Errorf("cannot read the closed gate's object: %w", err)
	}
	spec.Maps[countersVariable].Name = countersMap
	return spec, nil
})

// newPolicy makes the map that holds a policy's table and closes it for good: the programs
// that are loaded after that take it for a constant.
func newPolicy(table []byte) (*ebpf.Map, error) {
	m, err := newMap(policyVariable)
	if err != nil {
		return nil, err
	}
	if err = m.Put(uint32(0), table); err == nil {
		err = closeToProcesses(m)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot write the policy: %w", err), m.Close())
	}
	return m, nil
}

// loadInstance loads the gate for policy p on a device with these link facts.
func loadInstance(p egress.Policy, f egress.LinkFacts, m memory) (*instance, error) {
	in, err := load(p, f, m)
	if err != nil {
		return nil, fmt.Errorf("cannot load the gate: %w", err)
	}
	return in, nil
}

func load(p egress.Policy, f egress.LinkFacts, m memory) (*instance, error) {
	if err := errors.Join(p.Check(), f.Check()); err != nil {
		return nil, err
	}
	if egress.ClosedBy(p, f) {
		return loadClosed(m)
	}
	return loadFull(p, f, m)
}

func loadFull(p egress.Policy, f egress.LinkFacts, m memory) (*instance, error) {
	compiled, err := object()
	if err != nil {
		return nil, err
	}
	table, err := p.Table()
	if err != nil {
		return nil, err
	}
	policy, err := newPolicy(table)
	if err != nil {
		return nil, err
	}
	defer policy.Close() // the programs hold it
	shared := map[string]*ebpf.Map{policyVariable: policy, countersVariable: m.counters, bpf.GateMapLinkState: m.link}
	if m.record != nil {
		shared = m.record.into(shared)
	}
	var objects bpf.GateObjects
	if err := compiled.Copy().LoadAndAssign(&objects, &ebpf.CollectionOptions{MapReplacements: shared}); err != nil {
		return nil, err
	}
	in := &instance{[2]*ebpf.Program{egress.Egress: objects.RempartEgress, egress.Ingress: objects.RempartIngress},
		objects.Fragments, objects.LinkFacts, objects.LinkDhcp}
	// LoadAndAssign gave us copies of the descriptors of what we brought.
	err = errors.Join(objects.LinkState.Close(), objects.DropRecord.Close(), objects.DropHead.Close(), objects.DropState.Close())
	if err == nil {
		err = in.tell(f)
	}
	if err == nil {
		err = errors.Join(closeToProcesses(in.fragments), closeToProcesses(objects.Desks))
	}
	err = errors.Join(err, objects.Desks.Close()) // the programs hold it
	if err != nil {
		return nil, errors.Join(err, in.close())
	}
	return in, nil
}

// loadClosed loads the closed gate.
func loadClosed(m memory) (*instance, error) {
	compiled, err := closedObject()
	if err != nil {
		return nil, err
	}
	shared := map[string]*ebpf.Map{countersVariable: m.counters}
	if m.record != nil {
		shared = m.record.into(shared)
	}
	coll, err := ebpf.NewCollectionWithOptions(compiled.Copy(), ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	return &instance{programs: [2]*ebpf.Program{egress.Egress: coll.DetachProgram("rempart_closed_egress"),
		egress.Ingress: coll.DetachProgram("rempart_closed_ingress")}}, nil
}

// closeToProcesses freezes a map that the programs write: no process can, after that.
func closeToProcesses(m *ebpf.Map) error {
	if err := m.Freeze(); err != nil {
		return fmt.Errorf("cannot close %v to processes: %w", m, err)
	}
	return nil
}

// tell writes the facts and what follows from them, and closes both maps for good.
func (in *instance) tell(f egress.LinkFacts) error {
	if err := in.facts.Put(uint32(0), f.Bytes()); err != nil {
		return fmt.Errorf("cannot write the link facts: %w", err)
	}
	for m := range egress.DHCPMessages {
		for i, chunk := range f.Template(m).Chunks() {
			if err := in.dhcp.Put(uint32(int(m)*egress.DHCPChunks+i), chunk); err != nil {
				return fmt.Errorf("cannot write a DHCP template: %w", err)
			}
		}
	}
	if err := errors.Join(in.facts.Freeze(), in.dhcp.Freeze()); err != nil {
		return fmt.Errorf("cannot freeze the link facts: %w", err)
	}
	return nil
}

func (in *instance) close() error {
	var errs []error
	for _, p := range in.programs {
		errs = append(errs, p.Close())
	}
	return errors.Join(append(errs, in.fragments.Close(), in.facts.Close(), in.dhcp.Close())...)
}

// newCounters makes a counter map.
func newCounters() (*ebpf.Map, error) { return newMap(countersVariable) }

// newLinkState makes the memory of the link-layer minimum: full buckets.
func newLinkState() (*ebpf.Map, error) { return newMap(bpf.GateMapLinkState) }

// newMap makes one of the maps that outlive an instance.
func newMap(name string) (*ebpf.Map, error) {
	compiled, err := object()
	if err != nil {
		return nil, err
	}
	m, err := ebpf.NewMap(compiled.Maps[name].Copy())
	if err != nil {
		return nil, fmt.Errorf("cannot make the gate's map %s: %w", name, err)
	}
	return m, nil
}

// readCounters adds the processors' counts up: a row of both directions' counters for each.
func readCounters(m *ebpf.Map) (c egress.Counters, err error) {
	b, err := m.LookupBytes(uint32(0))
	if err != nil {
		return c, fmt.Errorf("cannot read the gate's counters: %w", err)
	}
	for ; len(b) >= 2*egress.CounterSlots*8; b = b[2*egress.CounterSlots*8:] {
		for d := range c {
			for r := range c[d] {
				c[d][r] += binary.NativeEndian.Uint64(b[(d*egress.CounterSlots+r)*8:])
			}
		}
	}
	return c, nil
}

// step is one atomic exchange: direction d gets the new policy, or deny-all first.
type step struct {
	direction egress.Direction
	deny      bool
}

// order lists the exchanges that lead from policy old to policy new. In between,
// each direction has the old policy, the new one, or deny-all; and outgoing frames
// are first to close and last to open, so that a remote can be reached only while
// both directions agree on it.
func order(old, new egress.Policy) []step {
	switch {
	case new.Within(old): // closing, or the same
		return []step{{egress.Egress, false}, {egress.Ingress, false}}
	case old.Within(new): // opening
		return []step{{egress.Ingress, false}, {egress.Egress, false}}
	}
	return []step{{egress.Egress, true}, {egress.Ingress, false}, {egress.Egress, false}}
}
