package enforce

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rempart/internal/proof"
	"rempart/vpn/egress"
)

// modes runs a test on both hooks.
func modes(t *testing.T, test func(t *testing.T, w *world, options ...Option)) {
	t.Helper()
	t.Run("tcx", func(t *testing.T) {
		proof.NeedRoot(t)
		if !haveTCX() {
			t.Skip("this kernel has no TCX")
		}
		test(t, newWorld(t))
	})
	t.Run("clsact", func(t *testing.T) { test(t, newWorld(t), WithoutTCX()) })
}

func (w *world) floor() {
	w.t.Helper()
	w.in(w.black, func() error { return AttachFloor(w.ifindex) })
}

// gate lays the floor, attaches the gate and admits p.
func (w *world) gate(p egress.Policy, options ...Option) *Gate {
	w.t.Helper()
	w.floor()
	var g *Gate
	w.in(w.black, func() (err error) {
		if g, err = Attach(w.ifindex, w.pins, options...); err != nil {
			return err
		}
		return g.Swap(p)
	})
	w.t.Cleanup(func() {
		if err := g.Release(); err != nil {
			w.t.Error(err)
		}
		for _, what := range []string{"egress", "ingress", "counters"} {
			if err := os.Remove(g.pin(what)); err != nil && !errors.Is(err, os.ErrNotExist) {
				w.t.Error(err)
			}
		}
	})
	return g
}

// differences reads back in another process and returns what it prints.
func (w *world) differences(want egress.Policy) string {
	w.t.Helper()
	cmd := w.child(w.black, "", "readback", "IFINDEX="+strconv.Itoa(w.ifindex), "POLICY="+w.file(want))
	if err := cmd.Wait(); err != nil {
		w.t.Fatalf("read back: %v: %v", err, cmd.Stdout)
	}
	return fmt.Sprint(cmd.Stdout)
}

func (w *world) file(p egress.Policy) string {
	w.t.Helper()
	b, err := p.Marshal()
	if err != nil {
		w.t.Fatal(err)
	}
	path := filepath.Join(w.t.TempDir(), "policy")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func TestFloorDropsAllAndStays(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the first half of TestRealPackets")
	w := newWorld(t)
	if err := w.black.Do(func() error { return FloorInForce(w.ifindex) }); !errors.Is(err, ErrNoFloor) {
		t.Errorf("a bare device: %v, want ErrNoFloor", err)
	}
	if err := w.black.Do(func() error { _, err := Attach(w.ifindex, w.pins); return err }); !errors.Is(err, ErrNoFloor) {
		t.Errorf("a gate without a floor: %v, want ErrNoFloor", err)
	}
	w.floor()
	w.floor() // idempotent
	w.up()
	before := w.frames(w.internet, "in0")
	w.send(w.black, w.tunneld, "203.0.113.11:0", "203.0.113.1:51820", 0)
	w.send(w.internet, "", "203.0.113.1:51820", "203.0.113.11:1", 0)
	if n := w.frames(w.internet, "in0") - before; n != 0 {
		t.Errorf("%d frames passed the floor", n)
	}
	var drops [2]uint64
	w.in(w.black, func() (err error) { drops, err = FloorDrops(w.ifindex); return err })
	if drops[egress.Egress] == 0 || drops[egress.Ingress] == 0 {
		t.Errorf("floor counters %v, want both above 0", drops)
	}
}

func TestRealPackets(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the row of the right cgroup")
	modes(t, func(t *testing.T, w *world, options ...Option) {
		g := w.gate(w.tunnel(), options...)
		w.up()
		try := func(name string, reason egress.Reason, passes bool, send func()) {
			t.Helper()
			frames := w.frames(w.internet, "in0")
			before, err := g.Counters()
			if err != nil {
				t.Fatal(err)
			}
			send()
			after, err := g.Counters()
			if err != nil {
				t.Fatal(err)
			}
			if n := w.frames(w.internet, "in0") - frames; (n == 1) != passes || n > 1 {
				t.Errorf("%s: %d frames outside", name, n)
			}
			if after[egress.Egress][reason] != before[egress.Egress][reason]+1 {
				t.Errorf("%s: counter %v went from %d to %d", name, reason, before[egress.Egress][reason], after[egress.Egress][reason])
			}
		}
		w.quiet()
		try("tunneld", egress.Admitted, true, func() { w.send(w.black, w.tunneld, "203.0.113.11:0", "203.0.113.1:51820", 0) })
		try("tunneld, IPv6", egress.Admitted, true, func() { w.send(w.black, w.tunneld, "[2001:db8:113::11]:0", "[2001:db8:113::1]:51820", 0) })
		try("another cgroup", egress.Cgroup, false, func() { w.send(w.black, w.other, "203.0.113.11:0", "203.0.113.1:51820", 0) })
		try("another cgroup, IPv6", egress.Cgroup, false, func() { w.send(w.black, w.other, "[2001:db8:113::11]:0", "[2001:db8:113::1]:51820", 0) })
		try("a mark", egress.Mark, false, func() { w.send(w.black, w.tunneld, "203.0.113.11:0", "203.0.113.1:51820", 7) })
		try("another port", egress.NoClass, false, func() { w.send(w.black, w.tunneld, "203.0.113.11:0", "203.0.113.1:51821", 0) })
		if err := g.Swap(egress.DenyAll()); err != nil && g.Hook() == egress.HookTCX {
			t.Fatal(err)
		}
		if g.Hook() == egress.HookTCX {
			try("deny all", egress.Closed, false, func() { w.send(w.black, w.tunneld, "203.0.113.11:0", "203.0.113.1:51820", 0) })
		}
	})
}

// quiet waits until the devices' own first frames (IPv6 duplicate detection, MLD),
// which are all dropped, have been counted.
func (w *world) quiet() {
	w.t.Helper()
	for last, calm := -1, 0; calm < 10; time.Sleep(50 * time.Millisecond) {
		n := w.frames(w.black, "bl0")
		if calm++; n != last {
			last, calm = n, 0
		}
	}
}

func TestReadBackAgreesInAnotherProcess(t *testing.T) {
	modes(t, func(t *testing.T, w *world, options ...Option) {
		p := w.tunnel()
		w.gate(p, options...)
		if out := w.differences(p); out != "" {
			t.Errorf("differences: %s", out)
		}
		out := w.differences(egress.DenyAll())
		if strings.Count(out, "is in force and not wanted") != 4 {
			t.Errorf("against deny-all: %s", out)
		}
		wider := egress.Policy{Classes: append(w.tunnel().Classes, egress.Class{Gateway: "g", Addr: gatewayV4, Proto: egress.UDP, Port: 4500, Purpose: egress.IKE, Cgroup: 7})}
		if out := w.differences(wider); strings.Count(out, "is wanted and not in force") != 2 {
			t.Errorf("against a wider policy: %s", out)
		}
		other := w.tunnel()
		other.Classes[0].Cgroup++
		if out := w.differences(other); strings.Count(out, "is for cgroup") != 2 {
			t.Errorf("against another cgroup: %s", out)
		}
	})
}

// Each alteration must be noticed by the other process, and named.
func TestReadBackNotices(t *testing.T) {
	proof.SFR(t, "FPT_TST_EXT.1", "TestReadBackAgreesInAnotherProcess")
	pass := func(w *world) *ebpf.Program {
		p, err := ebpf.NewProgram(passSpec())
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { _ = p.Close() })
		return p
	}
	for _, c := range []struct {
		name, want string
		tcx        bool
		alter      func(w *world, g *Gate) error
	}{
		{"the link's program", "egress: no gate", true, func(w *world, g *Gate) error { return g.links[egress.Egress].Update(pass(w)) }},
		{"the program of the other direction", "ingress: no gate", true, func(w *world, g *Gate) error {
			in, err := loadInstance(w.tunnel(), egress.LinkFacts{}, g.memory)
			if err != nil {
				return err
			}
			defer in.close()
			return g.links[egress.Ingress].Update(in.programs[egress.Egress])
		}},
		{"the rules, by the same program with another map", "is in force and not wanted", true, func(w *world, g *Gate) error {
			p := w.tunnel()
			p.Classes = append(p.Classes, egress.Class{Gateway: "x", Addr: gatewayV4, Proto: egress.TCP, Port: 22, Purpose: egress.IKE, Cgroup: 1})
			in, err := loadInstance(p, egress.LinkFacts{}, g.memory)
			if err != nil {
				return err
			}
			defer in.close()
			return g.links[egress.Egress].Update(in.programs[egress.Egress])
		}},
		{"the closed gate", "the closed gate is in force and not wanted", true, func(_ *world, g *Gate) error {
			in, err := loadInstance(egress.DenyAll(), egress.LinkFacts{}, g.memory)
			if err != nil {
				return err
			}
			defer in.close()
			return g.links[egress.Egress].Update(in.programs[egress.Egress])
		}},
		{"maps that are not frozen", "can write it", true, func(w *world, g *Gate) error {
			return altered(g, nil, func(*ebpf.CollectionSpec) {})
		}},
		{"the same rules in other places", "not where the program looks", true, func(w *world, g *Gate) error {
			table, err := w.tunnel().Table()
			if err != nil {
				return err
			}
			table[0] ^= 2 // another multiplier
			policy, err := newPolicy(table)
			if err != nil {
				return err
			}
			defer policy.Close()
			return altered(g, map[string]*ebpf.Map{policyVariable: policy}, func(*ebpf.CollectionSpec) {})
		}},
		{"a larger map", "another shape", true, func(w *world, g *Gate) error {
			return altered(g, nil, func(spec *ebpf.CollectionSpec) { spec.Maps["fragments"].MaxEntries++ })
		}},
		{"the link detached", "egress: no gate", true, func(_ *world, g *Gate) error { return g.links[egress.Egress].Detach() }},
		{"a program in front", "in front of the gate", true, func(w *world, _ *Gate) error {
			l, err := link.AttachTCX(link.TCXOptions{Interface: w.ifindex, Program: pass(w), Attach: ebpf.AttachTCXEgress, Anchor: link.Head()})
			if err == nil {
				w.t.Cleanup(func() { _ = l.Close() })
			}
			return err
		}},
		{"a program behind", "behind the gate", true, func(w *world, _ *Gate) error {
			l, err := link.AttachTCX(link.TCXOptions{Interface: w.ifindex, Program: pass(w), Attach: ebpf.AttachTCXIngress, Anchor: link.Tail()})
			if err == nil {
				w.t.Cleanup(func() { _ = l.Close() })
			}
			return err
		}},
		{"an XDP program", "XDP program", true, func(w *world, _ *Gate) error {
			p, err := ebpf.NewProgram(xdpSpec())
			if err != nil {
				return err
			}
			w.t.Cleanup(func() { _ = p.Close() })
			l, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: w.ifindex, Flags: link.XDPGenericMode})
			if err == nil {
				w.t.Cleanup(func() { _ = l.Close() })
			}
			return err
		}},
		{"the floor removed", "no floor", false, func(w *world, _ *Gate) error { return w.dropFilter(floorPriority) }},
		{"the floor's program", "no floor", false, func(w *world, _ *Gate) error {
			return setFilter(w.ifindex, egress.Egress, floorPriority, "rempart-floor", pass(w))
		}},
		{"clsact removed", "no floor", false, func(w *world, _ *Gate) error {
			return netlink.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: w.ifindex, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)}})
		}},
		{"a filter in front of the floor", "unknown filter", false, func(w *world, _ *Gate) error {
			return setFilter(w.ifindex, egress.Egress, 5, "evil", pass(w))
		}},
		{"a filter that is no eBPF", "unknown filter", false, func(w *world, _ *Gate) error {
			return netlink.FilterAdd(&netlink.U32{FilterAttrs: netlink.FilterAttrs{LinkIndex: w.ifindex, Parent: parent(egress.Egress), Priority: 7, Protocol: unix.ETH_P_ALL}})
		}},
	} {
		run := func(t *testing.T, w *world, options ...Option) {
			p := w.tunnel()
			g := w.gate(p, options...)
			if out := w.differences(p); out != "" {
				t.Fatalf("before: %s", out)
			}
			w.in(w.black, func() error { return c.alter(w, g) })
			if out := w.differences(p); !strings.Contains(out, c.want) {
				t.Errorf("read back says %q, want %q", out, c.want)
			}
		}
		t.Run(c.name, func(t *testing.T) {
			if !c.tcx {
				modes(t, run)
				return
			}
			proof.NeedRoot(t)
			if !haveTCX() {
				t.Skip("this kernel has no TCX")
			}
			run(t, newWorld(t))
		})
	}
}

// In clsact mode the gate's own filter can be altered by netlink.
func TestReadBackNoticesOnClsact(t *testing.T) {
	for name, alter := range map[string]func(w *world) error{
		"the gate's filter removed": func(w *world) error { return w.dropFilter(gatePriority) },
		"the gate's program": func(w *world) error {
			p, err := ebpf.NewProgram(passSpec())
			if err != nil {
				return err
			}
			defer p.Close()
			return setFilter(w.ifindex, egress.Egress, gatePriority, "rempart-gate", p)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.gate(w.tunnel(), WithoutTCX())
			w.in(w.black, func() error { return alter(w) })
			if out := w.differences(w.tunnel()); !strings.Contains(out, "egress: no gate") {
				t.Errorf("read back says %q", out)
			}
		})
	}
}

func (w *world) dropFilter(priority uint16) error {
	return netlink.FilterDel(&netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{LinkIndex: w.ifindex, Parent: parent(egress.Egress),
		Handle: filterHandle, Protocol: unix.ETH_P_ALL, Priority: priority}})
}

// TestNoProcessWritesTheGatesMaps: neither what decides nor what is counted.
func TestNoProcessWritesTheGatesMaps(t *testing.T) {
	w := newWorld(t)
	g := w.gate(w.tunnel(), WithoutTCX())
	in, err := loadInstance(w.tunnel(), egress.LinkFacts{}, g.memory)
	if err != nil {
		t.Fatal(err)
	}
	defer in.close()
	maps, closeMaps, err := mapsOf(programID(t, in.programs[egress.Egress]))
	if err != nil {
		t.Fatal(err)
	}
	defer closeMaps()
	tried := map[string]bool{}
	for _, m := range maps {
		info, err := m.Info()
		if err != nil {
			t.Fatal(err)
		}
		tried[info.Name] = true
		value := make([]byte, info.ValueSize)
		var put any = value
		if info.Type == ebpf.PerCPUArray {
			put = slices.Repeat([][]byte{value}, ebpf.MustPossibleCPU())
		}
		if err := m.Put(make([]byte, info.KeySize), put); !errors.Is(err, unix.EPERM) {
			t.Errorf("a write to %s: %v, want EPERM", info.Name, err)
		}
	}
	for _, name := range []string{policyMap, "fragments", "desks", "counters", "link_facts", "link_dhcp", "link_state", "drop_record", "drop_head", "drop_state"} {
		if !tried[name] {
			t.Errorf("the gate has no map %s: this test is blind there", name)
		}
	}
}

// altered puts our own program with other maps in the place of the outgoing one.
func altered(g *Gate, maps map[string]*ebpf.Map, alter func(*ebpf.CollectionSpec)) error {
	compiled, err := object()
	if err != nil {
		return err
	}
	spec := compiled.Copy()
	alter(spec)
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: maps})
	if err != nil {
		return err
	}
	defer coll.Close()
	return g.links[egress.Egress].Update(coll.Programs["rempart_egress"])
}

func programID(t *testing.T, p *ebpf.Program) ebpf.ProgramID {
	t.Helper()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, ok := info.ID()
	if !ok {
		t.Fatal("the kernel tells no program id")
	}
	return id
}

func TestKilledAttacherLeavesTheGate(t *testing.T) {
	proof.SFR(t, "FPT_FLS.1", "the last part: the floor without the gate")
	modes(t, func(t *testing.T, w *world, options ...Option) {
		w.floor()
		env := []string{"IFINDEX=" + strconv.Itoa(w.ifindex), "PINS=" + w.pins, "POLICY=" + w.file(w.tunnel())}
		if len(options) > 0 {
			env = append(env, "CLSACT=1")
		}
		cmd := w.child(w.black, "", "attach", env...)
		_ = cmd.Wait()
		if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGKILL {
			t.Fatalf("the attacher ended by %v: %v", cmd.ProcessState, cmd.Stdout)
		}
		w.up()
		w.quiet()
		if out := w.differences(w.tunnel()); out != "" {
			t.Errorf("after kill -9: %s", out)
		}
		before := w.frames(w.internet, "in0")
		w.send(w.black, w.tunneld, "203.0.113.11:0", "203.0.113.1:51820", 0)
		w.send(w.black, w.other, "203.0.113.11:0", "203.0.113.1:51820", 0)
		if n := w.frames(w.internet, "in0") - before; n != 1 {
			t.Errorf("%d frames passed, want tunneld's one", n)
		}
		// A new process takes over: deny-all before anything else, counters kept.
		var g *Gate
		w.in(w.black, func() (err error) { g, err = Attach(w.ifindex, w.pins, options...); return err })
		if out := w.differences(egress.DenyAll()); out != "" {
			t.Errorf("after the take-over: %s", out)
		}
		if c, err := g.Counters(); err != nil || c[egress.Egress][egress.Admitted] != 1 || c[egress.Egress][egress.Cgroup] == 0 {
			t.Errorf("counters did not survive: %v, %v", c, err)
		}
		// Severed by a third party: the floor alone.
		w.in(w.black, func() error { return Sever(w.ifindex) })
		w.send(w.black, w.tunneld, "203.0.113.11:0", "203.0.113.1:51820", 0)
		if n := w.frames(w.internet, "in0") - before; n != 1 {
			t.Errorf("%d frames after sever", n-1)
		}
		if out := w.differences(egress.DenyAll()); !strings.Contains(out, "egress: no gate; ingress") && strings.Count(out, "no gate") != 2 {
			t.Errorf("after sever: %s", out)
		}
		if g.Hook() == egress.HookTCX {
			if err := g.Swap(w.tunnel()); !errors.Is(err, ErrDetached) {
				t.Errorf("a swap on a severed gate: %v, want ErrDetached", err)
			}
		}
		if err := g.Release(); err != nil {
			t.Error(err)
		}
		// And attached anew over its dead pins.
		w.gate(w.tunnel(), options...)
		if out := w.differences(w.tunnel()); out != "" {
			t.Errorf("attached anew: %s", out)
		}
	})
}

func TestUnpinnedAndClosedLeavesTheFloor(t *testing.T) {
	proof.NeedRoot(t)
	if !haveTCX() {
		t.Skip("this kernel has no TCX")
	}
	w := newWorld(t)
	g := w.gate(w.tunnel())
	w.up()
	w.quiet()
	for _, what := range []string{"egress", "ingress"} {
		if err := os.Remove(g.pin(what)); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Release(); err != nil {
		t.Fatal(err)
	}
	before := w.frames(w.internet, "in0")
	w.send(w.black, w.tunneld, "203.0.113.11:0", "203.0.113.1:51820", 0)
	if n := w.frames(w.internet, "in0") - before; n != 0 {
		t.Errorf("%d frames passed without the gate", n)
	}
	w.in(w.black, func() error { return FloorInForce(w.ifindex) })
}

func TestCloseDeniesAndStays(t *testing.T) {
	modes(t, func(t *testing.T, w *world, options ...Option) {
		g := w.gate(w.tunnel(), options...)
		w.in(w.black, g.Close)
		if out := w.differences(egress.DenyAll()); out != "" {
			t.Errorf("after Close: %s", out)
		}
		if err := w.black.Do(func() error { return g.Swap(w.tunnel()) }); err == nil {
			t.Error("a closed gate took a policy")
		}
	})
}
