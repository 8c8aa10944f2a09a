package enforce

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"rempart/internal/bpf"
	"rempart/vpn/egress"
)

// levelHooks are the level hooks' programs and where they are attached. The packet
// hooks come first: they have the last word in their direction, so a change is in force
// when they have it; the others only say no earlier.
var levelHooks = []struct {
	name   string // of the program and its pin
	attach ebpf.AttachType
}{
	{bpf.LevelProgLevelEgress, ebpf.AttachCGroupInetEgress},
	{bpf.LevelProgLevelIngress, ebpf.AttachCGroupInetIngress},
	{bpf.LevelProgLevelConnect4, ebpf.AttachCGroupInet4Connect},
	{bpf.LevelProgLevelConnect6, ebpf.AttachCGroupInet6Connect},
	{bpf.LevelProgLevelSendmsg4, ebpf.AttachCGroupUDP4Sendmsg},
	{bpf.LevelProgLevelSendmsg6, ebpf.AttachCGroupUDP6Sendmsg},
	{bpf.LevelProgLevelSocket, ebpf.AttachCGroupInetSockCreate},
}

// Levels are the level hooks of one handset. Its methods may be called concurrently.
type Levels struct {
	cgroup string
	pinDir string
	depth  uint32
	record *Record

	change sync.Mutex // held while programs are loaded; before mu
	mu     sync.Mutex // held while they are exchanged: who asks what is in force does not wait for the verifier
	counts *ebpf.Map
	links  []link.Link // in the order of levelHooks; nil where there is none
	table  egress.LevelTable
}

// AttachLevels puts the level hooks on the handset's cgroup2 folder with an empty table:
// everything is refused. The caller must be in a cgroup below. The links are pinned in
// pinDir, beside the gate's; pins of an earlier process are taken over and their table
// is emptied before anything else.
//
// The hooks outlive the process: kill -9 leaves the last table in force. Needs
// CAP_NET_ADMIN and CAP_BPF.
func AttachLevels(cgroup, pinDir string, record *Record) (*Levels, error) {
	l := &Levels{cgroup: cgroup, pinDir: pinDir, record: record, links: make([]link.Link, len(levelHooks))}
	if err := l.attach(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot put the level hooks on %s: %w", cgroup, err), l.release())
	}
	return l, nil
}

func (l *Levels) attach() error {
	id, err := cgroupOf(l.cgroup)
	if err != nil {
		return err
	}
	if l.depth, err = depthBelow(id); err != nil {
		return err
	}
	spec, err := bpf.LoadLevel()
	if err != nil {
		return fmt.Errorf("cannot read the hooks' object: %w", err)
	}
	if l.counts, err = openShared(filepath.Join(l.pinDir, bpf.LevelMapLevelCounts), spec.Maps[bpf.LevelMapLevelCounts]); err != nil {
		return err
	}
	empty, err := l.load(egress.LevelTable{})
	if err != nil {
		return err
	}
	defer empty.Close()
	for i, h := range levelHooks {
		if err := l.attachHook(i, id, empty.Programs[h.name]); err != nil {
			return fmt.Errorf("%s: %w", h.name, err)
		}
	}
	return nil
}

func (l *Levels) attachHook(i int, cgroup uint64, p *ebpf.Program) error {
	h := levelHooks[i]
	path := filepath.Join(l.pinDir, h.name)
	old, err := takeOverCgroup(path, cgroup)
	if err != nil {
		return err
	}
	if old != nil {
		l.links[i] = old
		return old.Update(p)
	}
	if l.links[i], err = link.AttachCgroup(link.CgroupOptions{Path: l.cgroup, Attach: h.attach, Program: p}); err != nil {
		return err
	}
	return pinObject(l.links[i], path)
}

// takeOverCgroup opens an earlier process's pin. One whose link is of another cgroup,
// or of none any more, is removed.
func takeOverCgroup(path string, cgroup uint64) (link.Link, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open pin %s: %w", path, err)
	}
	if on, err := cgroupOfLink(l); err != nil || on == cgroup {
		return l, err
	}
	if err := errors.Join(l.Close(), os.Remove(path)); err != nil {
		return nil, fmt.Errorf("cannot remove dead pin %s: %w", path, err)
	}
	return nil, nil
}

// cgroupOfLink returns the id of the cgroup that a link is on; 0 if on none.
func cgroupOfLink(l link.Link) (uint64, error) {
	info, err := l.Info()
	if err != nil {
		return 0, fmt.Errorf("cannot ask a link: %w", err)
	}
	if c := info.Cgroup(); c != nil {
		return c.CgroupId, nil
	}
	return 0, nil
}

// cgroupOf returns the id of a cgroup2 folder, which is its inode number.
func cgroupOf(dir string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, fmt.Errorf("cannot look at cgroup %s: %w", dir, err)
	}
	return st.Ino, nil
}

// depthBelow returns how deep the cgroup lies in the machine's hierarchy. The caller
// must be below it.
func depthBelow(cgroup uint64) (uint32, error) {
	spec, err := bpf.LoadDepth()
	if err != nil {
		return 0, fmt.Errorf("cannot read the object that finds a cgroup's depth: %w", err)
	}
	if err := spec.Variables[bpf.DepthVarAbove].Set(cgroup); err != nil {
		return 0, err
	}
	objects, err := ebpf.NewCollection(spec)
	if err != nil {
		return 0, fmt.Errorf("cannot load the program that finds a cgroup's depth: %w", err)
	}
	defer objects.Close()
	const deepest = 64
	for depth := range uint32(deepest) {
		// The third word of the context is the mark.
		found, err := objects.Programs[bpf.DepthProgCgroupDepth].Run(&ebpf.RunOptions{Data: make([]byte, 64), Context: [3]uint32{2: depth}})
		if err != nil {
			return 0, fmt.Errorf("cannot find the cgroup's depth: %w", err)
		}
		if found == 1 {
			return depth, nil
		}
	}
	return 0, fmt.Errorf("cannot find the cgroup's depth: this process is not below cgroup %d", cgroup)
}

// load makes the programs for table t, with maps of their own, filled and frozen.
func (l *Levels) load(t egress.LevelTable) (*ebpf.Collection, error) {
	if err := t.Check(); err != nil {
		return nil, fmt.Errorf("cannot load the level hooks: %w", err)
	}
	spec, err := bpf.LoadLevel()
	if err != nil {
		return nil, fmt.Errorf("cannot read the hooks' object: %w", err)
	}
	if err := spec.Variables[bpf.LevelVarDepth].Set(l.depth); err != nil {
		return nil, err
	}
	shared := l.record.into(map[string]*ebpf.Map{bpf.LevelMapLevelCounts: l.counts})
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		return nil, fmt.Errorf("cannot load the level hooks: %w", err)
	}
	if err := fillLevels(c, t); err != nil {
		c.Close()
		return nil, fmt.Errorf("cannot load the level hooks: %w", err)
	}
	return c, nil
}

func fillLevels(c *ebpf.Collection, t egress.LevelTable) error {
	networks, rows := t.Entries()
	for _, e := range networks {
		if err := c.Maps[bpf.LevelMapLevelNets].Update(e.Key, e.Value, ebpf.UpdateNoExist); err != nil {
			return fmt.Errorf("cannot write a network: %w", err)
		}
	}
	for _, e := range rows {
		if err := c.Maps[bpf.LevelMapLevelRows].Update(e.Cgroup, e.Value, ebpf.UpdateNoExist); err != nil {
			return fmt.Errorf("cannot write a row: %w", err)
		}
	}
	return errors.Join(c.Maps[bpf.LevelMapLevelNets].Freeze(), c.Maps[bpf.LevelMapLevelRows].Freeze())
}

// Table returns the table in force.
func (l *Levels) Table() egress.LevelTable {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.table
}

// Swap puts table t in force. Each hook is exchanged in one atomic step, so what passes
// in between passes by the old table or by the new one. If it fails part of the way, the
// table is empty, and the error says so if not even that could be done. An error that
// wraps [ErrDetached] means that a hook is not there any more.
func (l *Levels) Swap(t egress.LevelTable) error {
	l.change.Lock()
	defer l.change.Unlock()
	err := l.swap(t)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("cannot change the level table: %w", err)
	if empty := l.swap(egress.LevelTable{}); empty != nil {
		return errors.Join(err, fmt.Errorf("cannot even empty it: %w", empty))
	}
	return err
}

func (l *Levels) swap(t egress.LevelTable) error {
	if l.counts == nil {
		return errors.New("the hooks are closed")
	}
	id, err := cgroupOf(l.cgroup)
	if err != nil {
		return err
	}
	c, err := l.load(t)
	if err != nil {
		return err
	}
	defer c.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.table = egress.LevelTable{}
	// All that are there, whatever fails: a table is emptied as far as it can be.
	var errs []error
	for i, h := range levelHooks {
		on, err := cgroupOfLink(l.links[i])
		switch {
		case err == nil && on != id:
			err = ErrDetached
		case err == nil:
			err = l.links[i].Update(c.Programs[h.name])
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", h.name, err))
		}
	}
	if len(errs) == 0 {
		l.table = t
	}
	return errors.Join(errs...)
}

// Counters returns the decisions counted since the hooks were first attached.
func (l *Levels) Counters() (c egress.LevelCounters, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.counts == nil {
		return c, errors.New("cannot read the level hooks' counters: the hooks are closed")
	}
	for h := range c {
		for r := range c[h] {
			var perCPU []uint64
			if err := l.counts.Lookup(uint32(h*egress.RecordReasons+r), &perCPU); err != nil {
				return c, fmt.Errorf("cannot read the level hooks' counters: %w", err)
			}
			for _, n := range perCPU {
				c[h][r] += n
			}
		}
	}
	return c, nil
}

// Close empties the table and lets go of the descriptors. The hooks stay, held by their
// pins, and refuse everything.
func (l *Levels) Close() error {
	return errors.Join(l.Swap(egress.LevelTable{}), l.Release())
}

// Release lets go of the descriptors and leaves the table in force as it is.
func (l *Levels) Release() error {
	l.change.Lock()
	defer l.change.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.release()
}

func (l *Levels) release() error {
	var errs []error
	for i, k := range l.links {
		if k != nil {
			errs = append(errs, k.Close())
		}
		l.links[i] = nil
	}
	if l.counts != nil {
		errs = append(errs, l.counts.Close())
		l.counts = nil
	}
	return errors.Join(errs...)
}
