package enforce

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Unextended returns nil if no function of the programs was replaced. An extension
// (freplace) leaves id, tag and maps of the program it acts on as they were, so no
// read-back of that program shows it; its own link does. One walk over all links of the
// machine; it needs CAP_SYS_ADMIN.
//
// A program that only looks on (fentry, fexit) is not noticed: it changes no verdict.
func Unextended(programs ...uint32) error {
	return whole(func() error { return unextended(programs) })
}

func unextended(programs []uint32) error {
	all := new(link.Iterator)
	defer all.Close()
	var found error
	for all.Next() {
		info, err := all.Link.Info()
		if err != nil {
			return fmt.Errorf("cannot look for extensions: cannot ask a link: %w", err)
		}
		on := info.Tracing()
		if on == nil || on.TargetObjectId == 0 || !slices.Contains(programs, on.TargetObjectId) {
			continue
		}
		name, extends, err := extension(info.Program)
		if err != nil {
			return fmt.Errorf("cannot look for extensions: %w", err)
		}
		// Of a tracing program the target may be another kind of object with that number.
		if extends {
			found = errors.Join(found, fmt.Errorf("program %d %q replaces a function of program %d, by link %d", info.Program, name, on.TargetObjectId, info.ID))
		}
	}
	if err := all.Err(); err != nil {
		return fmt.Errorf("cannot look for extensions: cannot list the links: %w", err)
	}
	return found
}

func extension(id ebpf.ProgramID) (name string, extends bool, err error) {
	p, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, os.ErrNotExist) {
		return "", false, nil // it went with its link
	}
	if err != nil {
		return "", false, fmt.Errorf("cannot open program %d: %w", id, err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return "", false, fmt.Errorf("cannot ask program %d: %w", id, err)
	}
	return info.Name, p.Type() == ebpf.Extension, nil
}
