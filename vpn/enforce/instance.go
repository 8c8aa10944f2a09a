package enforce

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"rempart/internal/bpf"
	"rempart/vpn/egress"
)

// instance is one loaded gate: both programs and the rule map they share, filled
// and frozen. It is not changed after load; a new policy is a new instance.
type instance struct {
	programs [2]*ebpf.Program // by egress.Direction
	rules    *ebpf.Map
	facts    *ebpf.Map // of the device's link
	dhcp     *ebpf.Map // templates of the messages that linkd may send
}

// memory is what outlives an instance on a device: counters, and the state of the link-layer minimum, so that no swap fills
// its buckets anew.
type memory struct {
	counters, link *ebpf.Map
}

// loadInstance loads the gate for policy p on a device with these link facts.
func loadInstance(p egress.Policy, f egress.LinkFacts, m memory) (*instance, error) {
	if err := errors.Join(p.Check(), f.Check()); err != nil {
		return nil, fmt.Errorf("cannot load the gate: %w", err)
	}
	var objects bpf.GateObjects
	err := bpf.LoadGateObjects(&objects, &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{"counters": m.counters, "link_state": m.link}})
	if err != nil {
		return nil, fmt.Errorf("cannot load the gate: %w", err)
	}
	in := &instance{[2]*ebpf.Program{egress.Egress: objects.RempartEgress, egress.Ingress: objects.RempartIngress},
		objects.Rules, objects.LinkFacts, objects.LinkDhcp}
	// LoadAndAssign gave us copies of the descriptors of what we brought.
	if err := errors.Join(objects.Counters.Close(), objects.LinkState.Close(), fill(in.rules, p), in.tell(f)); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot load the gate: %w", err), in.close())
	}
	return in, nil
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

// fill writes p's entries and closes the map for good: programs cannot write it
// (BPF_F_RDONLY_PROG), and after the freeze no process can.
func fill(rules *ebpf.Map, p egress.Policy) error {
	for _, e := range p.Entries() {
		if err := rules.Update(e.Key, e.Cgroup, ebpf.UpdateNoExist); err != nil {
			return fmt.Errorf("cannot write a rule: %w", err)
		}
	}
	if err := rules.Freeze(); err != nil {
		return fmt.Errorf("cannot freeze the rules: %w", err)
	}
	return nil
}

func (in *instance) close() error {
	var errs []error
	for _, p := range in.programs {
		errs = append(errs, p.Close())
	}
	return errors.Join(append(errs, in.rules.Close(), in.facts.Close(), in.dhcp.Close())...)
}

// newCounters makes a counter map.
func newCounters() (*ebpf.Map, error) { return newMap("counters") }

// newMap makes one of the gate's maps on its own.
func newMap(name string) (*ebpf.Map, error) {
	spec, err := bpf.LoadGate()
	if err != nil {
		return nil, fmt.Errorf("cannot read the gate's object: %w", err)
	}
	m, err := ebpf.NewMap(spec.Maps[name])
	if err != nil {
		return nil, fmt.Errorf("cannot make the gate's map %s: %w", name, err)
	}
	return m, nil
}

// readCounters adds the CPUs' counts up.
func readCounters(m *ebpf.Map) (c egress.Counters, err error) {
	for d := range c {
		for r := range c[d] {
			var perCPU []uint64
			if err := m.Lookup(uint32(d*egress.CounterSlots+r), &perCPU); err != nil {
				return c, fmt.Errorf("cannot read the gate's counters: %w", err)
			}
			for _, n := range perCPU {
				c[d][r] += n
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
