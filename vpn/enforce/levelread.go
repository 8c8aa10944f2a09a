package enforce

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"rempart/internal/bpf"
	"rempart/vpn/egress"
)

// LevelReport is what the kernel says stands at a handset's cgroup.
type LevelReport struct {
	// Digest is that of the wanted table: with no difference, the table in force.
	Digest [32]byte
	// Programs are the ids of the level hooks' programs, by name.
	Programs map[string]uint32
	// Differences name everything that is not as wanted. Empty: all is.
	Differences []string
}

// Err returns nil if nothing differs, else an error that names each difference.
func (r LevelReport) Err() error {
	if len(r.Differences) == 0 {
		return nil
	}
	return fmt.Errorf("the level hooks are not as wanted: %s", strings.Join(r.Differences, "; "))
}

// ReadBackLevels compares what stands at the handset's cgroup2 folder with table want. It
// starts from the cgroup alone and follows the kernel's ids: every program at one of the
// hooks, its link, its maps, their content. Programs of the ids in others, which are the
// guard's, may stand there too; any other is a difference. It is meant for a process
// that did not attach the hooks; it must be below the cgroup, and needs CAP_SYS_ADMIN
// and CAP_BPF. The error says that the question could not be asked.
func ReadBackLevels(cgroup string, want egress.LevelTable, others ...uint32) (LevelReport, error) {
	var r LevelReport
	err := whole(func() error {
		r = LevelReport{Digest: want.Digest(), Programs: map[string]uint32{}}
		return (&levelChecker{want: want, others: others, report: &r, checked: map[ebpf.MapID]bool{}}).check(cgroup)
	})
	if err != nil {
		return r, fmt.Errorf("cannot read back the level hooks: %w", err)
	}
	return r, nil
}

type levelChecker struct {
	want    egress.LevelTable
	others  []uint32
	report  *LevelReport
	ref     *levelReferences
	depth   uint32
	links   []*link.Info // of the cgroup
	checked map[ebpf.MapID]bool
}

func (c *levelChecker) differ(format string, args ...any) {
	c.report.Differences = append(c.report.Differences, fmt.Sprintf(format, args...))
}

func (c *levelChecker) check(cgroup string) (err error) {
	if c.ref, err = levelReference(); err != nil {
		return err
	}
	id, err := cgroupOf(cgroup)
	if err != nil {
		return err
	}
	if c.depth, err = depthBelow(id); err != nil {
		return err
	}
	if c.links, err = linksOf(id); err != nil {
		return err
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, h := range levelHooks {
		attached, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: h.attach})
		if err != nil {
			return fmt.Errorf("%s: cannot query the cgroup: %w", h.name, err)
		}
		if err := c.hook(h.name, h.attach, attached.Programs); err != nil {
			return fmt.Errorf("%s: %w", h.name, err)
		}
	}
	return nil
}

// linksOf returns what the kernel says of each link to the cgroup.
func linksOf(cgroup uint64) ([]*link.Info, error) {
	var found []*link.Info
	all := new(link.Iterator)
	defer all.Close()
	for all.Next() {
		info, err := all.Link.Info()
		if err != nil {
			return nil, fmt.Errorf("cannot ask a link: %w", err)
		}
		if on := info.Cgroup(); on != nil && on.CgroupId == cgroup {
			found = append(found, info)
		}
	}
	if err := all.Err(); err != nil {
		return nil, fmt.Errorf("cannot list the links: %w", err)
	}
	return found, nil
}

func (c *levelChecker) hook(name string, attach ebpf.AttachType, programs []link.AttachedProgram) error {
	for _, p := range programs {
		tag, called, err := tagOf(p.ID)
		if err != nil {
			return err
		}
		if slices.Contains(c.others, uint32(p.ID)) {
			continue
		}
		if tag != c.ref.tags[name] || c.report.Programs[name] != 0 {
			c.differ("%s: program %d %q with tag %s stands there too", name, p.ID, called, tag)
			continue
		}
		c.report.Programs[name] = uint32(p.ID)
		if !slices.ContainsFunc(c.links, func(l *link.Info) bool {
			return l.Program == p.ID && ebpf.AttachType(l.Cgroup().AttachType) == attach
		}) {
			c.differ("%s: attached without a link: anyone with CAP_NET_ADMIN can take it off", name)
		}
		if err := c.program(name, p.ID); err != nil {
			return err
		}
	}
	if c.report.Programs[name] == 0 {
		c.differ("%s: no hook", name)
	}
	return nil
}

// program checks the maps of a program whose tag is ours: the tag covers the
// instructions, not which maps they use.
func (c *levelChecker) program(name string, id ebpf.ProgramID) error {
	maps, closeMaps, err := mapsOf(id)
	if err != nil {
		return err
	}
	defer closeMaps()
	seen := map[string]bool{}
	for _, m := range maps {
		info, err := m.Info()
		if err != nil {
			return fmt.Errorf("cannot ask a map of program %d: %w", id, err)
		}
		spec, ok := c.ref.maps[info.Name]
		if !ok || seen[info.Name] {
			c.differ("%s: unknown map %q", name, info.Name)
			continue
		}
		seen[info.Name] = true
		if info.Type != spec.Type || info.KeySize != spec.KeySize || info.ValueSize != spec.ValueSize || info.MaxEntries != spec.MaxEntries || info.Flags != spec.Flags {
			c.differ("%s: map %q has another shape", name, info.Name)
			continue
		}
		if mid, ok := info.ID(); ok && c.checked[mid] {
			continue
		} else if ok {
			c.checked[mid] = true
		}
		if !info.Frozen() {
			c.differ("%s: map %q is not closed to processes", name, info.Name)
		}
		if err := c.content(name, m, info.Name); err != nil {
			return err
		}
	}
	for _, needed := range c.ref.uses[name] {
		if !seen[needed] {
			c.differ("%s: map %q is not in use", name, needed)
		}
	}
	return nil
}

// content compares what a map holds with the wanted table.
func (c *levelChecker) content(name string, m *ebpf.Map, called string) error {
	want := map[string][]byte{}
	networks, rows := c.want.Entries()
	switch called {
	case bpf.LevelMapLevelNets:
		for _, e := range networks {
			want[string(e.Key[:])] = e.Value[:]
		}
	case bpf.LevelMapLevelRows:
		for _, e := range rows {
			want[string(binary.NativeEndian.AppendUint64(nil, e.Cgroup))] = e.Value[:]
		}
	case ".rodata":
		want[string(make([]byte, 4))] = binary.NativeEndian.AppendUint32(nil, c.depth)
	default:
		return nil // counters and the record: what they hold decides nothing
	}
	var key, value []byte
	it := m.Iterate()
	for it.Next(&key, &value) {
		if wanted, ok := want[string(key)]; !ok {
			c.differ("%s: an entry of map %q is in force and not wanted: %x", name, called, key)
		} else if !bytes.Equal(wanted, value) {
			c.differ("%s: entry %x of map %q is %x, not %x", name, key, called, value, wanted)
		}
		delete(want, string(key))
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("cannot read map %q: %w", called, err)
	}
	if len(want) > 0 {
		c.differ("%s: %d entries of map %q are wanted and not in force", name, len(want), called)
	}
	return nil
}

// levelReferences are the tags, map shapes and uses of our own hooks as this kernel
// sees them.
type levelReferences struct {
	tags map[string]string
	maps map[string]*ebpf.MapInfo
	uses map[string][]string // of each program, the maps by name
}

// levelReference loads the hooks once in a process: they do not change while it runs.
var levelReference = sync.OnceValues(func() (*levelReferences, error) {
	spec, err := bpf.LoadLevel()
	if err != nil {
		return nil, fmt.Errorf("cannot read the hooks' object: %w", err)
	}
	ref := &levelReferences{tags: map[string]string{}, maps: map[string]*ebpf.MapInfo{}, uses: map[string][]string{}}
	objects, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("cannot load level hooks to compare with: %w", err)
	}
	defer objects.Close()
	for name, m := range objects.Maps {
		if ref.maps[name], err = m.Info(); err != nil {
			return nil, fmt.Errorf("cannot ask map %s: %w", name, err)
		}
	}
	for name, p := range objects.Programs {
		info, err := p.Info()
		if err != nil {
			return nil, fmt.Errorf("cannot ask for a program's tag: %w", err)
		}
		ref.tags[name] = info.Tag
		ids, ok := info.MapIDs()
		if !ok {
			return nil, fmt.Errorf("program %s does not tell its maps", name)
		}
		for called, m := range ref.maps {
			if id, ok := m.ID(); ok && slices.Contains(ids, id) {
				ref.uses[name] = append(ref.uses[name], called)
			}
		}
	}
	return ref, nil
})

// RemoveLevels takes the level hooks off a handset's cgroup, whoever attached them. It
// needs no help of the process that did. It is for a board that shows what holds without
// them: no part of a handset calls it. Needs CAP_SYS_ADMIN and CAP_BPF.
func RemoveLevels(cgroup string) error {
	ref, err := levelReference()
	if err != nil {
		return err
	}
	id, err := cgroupOf(cgroup)
	if err != nil {
		return err
	}
	return whole(func() error { return removeLevels(id, ref) })
}

func removeLevels(id uint64, ref *levelReferences) error {
	all := new(link.Iterator)
	defer all.Close()
	for all.Next() {
		info, err := all.Link.Info()
		if err != nil {
			return fmt.Errorf("cannot ask a link: %w", err)
		}
		if on := info.Cgroup(); on == nil || on.CgroupId != id {
			continue
		}
		tag, name, err := tagOf(info.Program)
		if err != nil {
			return err
		}
		if ref.tags[name] != tag {
			continue
		}
		if err := all.Link.Detach(); err != nil {
			return fmt.Errorf("cannot detach %s: %w", name, err)
		}
	}
	return errors.Join(all.Err())
}
