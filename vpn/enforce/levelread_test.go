package enforce

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"rempart/internal/bpf"
	"rempart/internal/proof"
	"rempart/vpn/egress"
)

// foreign is a program that lets everything pass at a hook of the cgroup.
func foreign(t *testing.T, attach ebpf.AttachType) *ebpf.Program {
	t.Helper()
	kind := ebpf.CGroupSockAddr
	switch attach {
	case ebpf.AttachCGroupInetEgress, ebpf.AttachCGroupInetIngress:
		kind = ebpf.CGroupSKB
	case ebpf.AttachCGroupInetSockCreate:
		kind = ebpf.CGroupSock
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "evil", Type: kind, AttachType: attach, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func (w *levelWorld) differences(want egress.LevelTable, others ...uint32) string {
	w.Helper()
	r, err := ReadBackLevels(w.handset, want, others...)
	if err != nil {
		w.Fatal(err)
	}
	return strings.Join(r.Differences, "\n")
}

// replaceHooks puts the programs of c in the place of ours, as who holds the links could.
func (w *levelWorld) replaceHooks(c *ebpf.Collection) {
	w.Helper()
	for i, h := range levelHooks {
		if err := w.levels.links[i].Update(c.Programs[h.name]); err != nil {
			w.Fatal(err)
		}
	}
}

// TestReadBackLevelsNotices: each way to be other than wanted, and only that.
func TestReadBackLevelsNotices(t *testing.T) {
	proof.SFR(t, "FPT_TST_EXT.1", "the read-back before and after each")
	w := newLevelWorld(t)
	table := w.table()
	w.swap(table)
	for name, c := range map[string]struct {
		tamper func() (undo func() error)
		says   string
	}{
		"a foreign program behind a link": {func() func() error {
			l, err := link.AttachCgroup(link.CgroupOptions{Path: w.handset, Attach: ebpf.AttachCGroupInet4Connect, Program: foreign(t, ebpf.AttachCGroupInet4Connect)})
			if err != nil {
				t.Fatal(err)
			}
			return l.Close
		}, `level_connect4: program`},
		"a foreign program without a link": {func() func() error {
			dir, err := os.Open(w.handset)
			if err != nil {
				t.Fatal(err)
			}
			p := foreign(t, ebpf.AttachCGroupInetSockCreate)
			if err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(dir.Fd()), Program: p, Attach: ebpf.AttachCGroupInetSockCreate, Flags: unix.BPF_F_ALLOW_MULTI}); err != nil {
				t.Fatal(err)
			}
			return func() error {
				return errors.Join(link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(dir.Fd()), Program: p, Attach: ebpf.AttachCGroupInetSockCreate}), dir.Close())
			}
		}, `level_socket: program`},
		"another table": {func() func() error {
			other := w.table()
			other.Rows[1].Send = 0
			other.Networks[0].Prefixes = append(other.Networks[0].Prefixes, netip.MustParsePrefix("198.51.100.0/24"))
			c, err := w.levels.load(other)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			w.replaceHooks(c)
			return func() error { return w.levels.Swap(table) }
		}, `map "level_rows" is`},
		"maps that are open": {func() func() error {
			c := w.loose(table, w.levels.depth)
			w.replaceHooks(c)
			return func() error { c.Close(); return w.levels.Swap(table) }
		}, `map "level_rows" is not closed to processes`},
		"another depth": {func() func() error {
			c := w.loose(table, w.levels.depth+1)
			w.replaceHooks(c)
			return func() error { c.Close(); return w.levels.Swap(table) }
		}, `map ".rodata" is`},
		"our own program a second time": {func() func() error {
			c, err := w.levels.load(table)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			l, err := link.AttachCgroup(link.CgroupOptions{Path: w.handset, Attach: ebpf.AttachCGroupInetEgress, Program: c.Programs["level_egress"]})
			if err != nil {
				t.Fatal(err)
			}
			return l.Close
		}, `level_egress: program`},
		"no hooks": {func() func() error {
			if err := RemoveLevels(w.handset); err != nil {
				t.Fatal(err)
			}
			return func() error {
				if err := w.levels.Release(); err != nil {
					return err
				}
				w.attach()
				return w.levels.Swap(table)
			}
		}, "level_sendmsg6: no hook"},
		"ours without a link": {func() func() error {
			if err := RemoveLevels(w.handset); err != nil {
				t.Fatal(err)
			}
			c, err := w.levels.load(table)
			if err != nil {
				t.Fatal(err)
			}
			dir, err := os.Open(w.handset)
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range levelHooks {
				if err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(dir.Fd()), Program: c.Programs[h.name], Attach: h.attach, Flags: unix.BPF_F_ALLOW_MULTI}); err != nil {
					t.Fatal(err)
				}
			}
			return func() error {
				var errs []error
				for _, h := range levelHooks {
					errs = append(errs, link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(dir.Fd()), Program: c.Programs[h.name], Attach: h.attach}))
				}
				c.Close()
				errs = append(errs, dir.Close(), w.levels.Release())
				w.attach()
				return errors.Join(append(errs, w.levels.Swap(table))...)
			}
		}, "level_ingress: attached without a link"},
	} {
		if got := w.differences(table); got != "" {
			t.Fatalf("before %q: %s", name, got)
		}
		undo := c.tamper()
		if got := w.differences(table); !strings.Contains(got, c.says) {
			t.Errorf("%s: found %q, want %q", name, got, c.says)
		}
		if err := undo(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if got := w.differences(table); got != "" {
		t.Errorf("at the end: %s", got)
	}
	if got := w.differences(table.Closed()); !strings.Contains(got, "level_rows") {
		t.Errorf("a closed table was wanted: %q", got)
	}
}

// loose loads the hooks with that depth and maps that are filled and not frozen.
func (w *levelWorld) loose(table egress.LevelTable, depth uint32) *ebpf.Collection {
	w.Helper()
	spec, err := bpf.LoadLevel()
	if err != nil {
		w.Fatal(err)
	}
	if err := spec.Variables[bpf.LevelVarDepth].Set(depth); err != nil {
		w.Fatal(err)
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: w.record.into(map[string]*ebpf.Map{bpf.LevelMapLevelCounts: w.levels.counts})})
	if err != nil {
		w.Fatal(err)
	}
	networks, rows := table.Entries()
	for _, e := range networks {
		if err := c.Maps[bpf.LevelMapLevelNets].Put(e.Key, e.Value); err != nil {
			w.Fatal(err)
		}
	}
	for _, e := range rows {
		if err := c.Maps[bpf.LevelMapLevelRows].Put(e.Cgroup, e.Value); err != nil {
			w.Fatal(err)
		}
	}
	return c
}

// TestReadBackLevelsKnowsTheGuard: programs that are named may stand beside the hooks.
func TestReadBackLevelsKnowsTheGuard(t *testing.T) {
	w := newLevelWorld(t)
	p := foreign(t, ebpf.AttachCGroupInetEgress)
	l, err := link.AttachCgroup(link.CgroupOptions{Path: w.handset, Attach: ebpf.AttachCGroupInetEgress, Program: p})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	if got := w.differences(egress.LevelTable{}, uint32(id)); got != "" {
		t.Errorf("with the guard named: %s", got)
	}
	if got := w.differences(egress.LevelTable{}); got == "" {
		t.Error("a stranger beside the hooks was not noticed")
	}
}

// TestLevelsAreTakenOver: kill -9 leaves the table in force, the next one empties it, and
// the counters go on.
func TestLevelsAreTakenOver(t *testing.T) {
	w := newLevelWorld(t)
	w.swap(w.table())
	notes := w.talk(w.red, "apps/notes")
	notes.must("socket udp4")
	if got := notes.do("sendto 10.0.1.1:9"); got != "EPERM" {
		t.Fatal(got)
	}
	before, err := w.levels.Counters()
	if err != nil {
		t.Fatal(err)
	}
	// What a killed process leaves is what one leaves that lets go.
	if err := w.levels.Release(); err != nil {
		t.Fatal(err)
	}
	if got := w.differences(w.table()); got != "" {
		t.Errorf("with no one behind it: %s", got)
	}
	notes.must("sendto 10.0.2.1:9")
	if got := notes.do("sendto 10.0.1.1:9"); got != "EPERM" {
		t.Errorf("downwards with no one behind it: %s", got)
	}
	if err := w.levels.Swap(w.table()); err == nil {
		t.Error("closed hooks took a table")
	}
	w.attach()
	if got := w.differences(egress.LevelTable{}); got != "" {
		t.Errorf("taken over: %s", got)
	}
	if got := notes.do("sendto 10.0.2.1:9"); got != "EPERM" {
		t.Errorf("under an empty table: %s", got)
	}
	after, err := w.levels.Counters()
	if err != nil || after[egress.HookSend][egress.LevelSend] <= before[egress.HookSend][egress.LevelSend] {
		t.Errorf("the counters went from %v to %v, %v", before[egress.HookSend], after[egress.HookSend], err)
	}
	// Hooks whose links are detached are an error, not a success.
	if err := RemoveLevels(w.handset); err != nil {
		t.Fatal(err)
	}
	if err := w.levels.Swap(w.table()); !errors.Is(err, ErrDetached) {
		t.Errorf("a table for hooks that are gone: %v", err)
	}
	if err := w.levels.Release(); err != nil {
		t.Fatal(err)
	}
	w.attach()
	w.swap(w.table())
	if got := w.differences(w.table()); got != "" {
		t.Errorf("attached anew over dead pins: %s", got)
	}
}

// TestLevelsRefusals: what cannot be put in force leaves nothing open.
func TestLevelsRefusals(t *testing.T) {
	w := newLevelWorld(t)
	w.swap(w.table())
	bad := w.table()
	bad.Rows[0].Cgroup = 0
	if err := w.levels.Swap(bad); err == nil {
		t.Error("a bad table was taken")
	}
	if got := w.differences(egress.LevelTable{}); got != "" {
		t.Errorf("after a bad table: %s", got)
	}
	// The caller must be below the cgroup: it could not tell its depth.
	if _, err := AttachLevels(filepath.Join(w.handset, "shell"), w.pins, w.record); err == nil || !strings.Contains(err.Error(), "not below") {
		t.Errorf("hooks on a cgroup beside: %v", err)
	}
	if _, err := AttachLevels(filepath.Join(w.handset, "none"), w.pins, w.record); err == nil {
		t.Error("hooks on no cgroup")
	}
}
