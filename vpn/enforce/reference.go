package enforce

import (
	"fmt"
	"sync"

	"github.com/cilium/ebpf"

	"rempart/internal/bpf"
	"rempart/vpn/egress"
)

// references are the tags and map shapes of our own programs, as this kernel sees
// them: the tag of a program is computed by the kernel that loads it.
type references struct {
	floor  string
	closed *form

	mu   sync.Mutex
	full *form // loaded when it is first asked for: it takes the kernel's verifier long
}

// form is one of the gate's two forms.
type form struct {
	closed bool
	tags   [2]string // by egress.Direction
	maps   map[string]*ebpf.MapSpec
}

// form returns the gate's form that has this tag in direction d, or nil.
func (r *references) form(tag string, d egress.Direction) (*form, error) {
	if tag == r.closed.tags[d] {
		return r.closed, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full == nil {
		var err error
		if r.full, err = loadForm(object, "rempart_egress", "rempart_ingress"); err != nil {
			return nil, err
		}
	}
	if tag == r.full.tags[d] {
		return r.full, nil
	}
	return nil, nil
}

// filter returns the gate's form that filter f of direction d is, or nil.
func (r *references) filter(f filter, d egress.Direction) (*form, error) {
	if !f.is(gatePriority, f.tag) {
		return nil, nil
	}
	return r.form(f.tag, d)
}

// known are the references of this kernel: they cannot change while it runs.
var known struct {
	sync.Mutex
	*references
}

func reference() (*references, error) {
	known.Lock()
	defer known.Unlock()
	if known.references == nil {
		ref, err := loadReference()
		if err != nil {
			return nil, err
		}
		known.references = ref
	}
	return known.references, nil
}

func loadReference() (*references, error) {
	closed, err := loadForm(closedObject, "rempart_closed_egress", "rempart_closed_ingress")
	if err != nil {
		return nil, err
	}
	closed.closed = true
	ref := &references{closed: closed}
	var floor bpf.FloorObjects
	if err := bpf.LoadFloorObjects(&floor, nil); err != nil {
		return nil, fmt.Errorf("cannot load a floor to compare with: %w", err)
	}
	defer floor.Close()
	if ref.floor, err = programTag(floor.RempartFloor); err != nil {
		return nil, err
	}
	return ref, nil
}

// loadForm loads a form of the gate, for what the kernel says of it.
func loadForm(object func() (*ebpf.CollectionSpec, error), out, in string) (*form, error) {
	spec, err := object()
	if err != nil {
		return nil, err
	}
	f := &form{maps: map[string]*ebpf.MapSpec{}}
	for _, m := range spec.Maps {
		f.maps[m.Name] = m
	}
	coll, err := ebpf.NewCollection(spec.Copy())
	if err != nil {
		return nil, fmt.Errorf("cannot load a gate to compare with: %w", err)
	}
	defer coll.Close()
	for d, name := range [2]string{egress.Egress: out, egress.Ingress: in} {
		if f.tags[d], err = programTag(coll.Programs[name]); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func programTag(p *ebpf.Program) (string, error) {
	info, err := p.Info()
	if err != nil {
		return "", fmt.Errorf("cannot ask for a program's tag: %w", err)
	}
	return info.Tag, nil
}
