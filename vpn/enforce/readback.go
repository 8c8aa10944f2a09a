package enforce

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rempart/internal/bpf"
	"rempart/vpn/egress"
)

// Report is what the kernel says stands on a device.
type Report struct {
	Ifindex int
	// Hook is where the gate was found; 0 if there is none.
	Hook egress.Hook
	// Programs are the gate's programs by direction, 0 where there is none.
	Programs [2]uint32
	// Floors are the ids of the floor's programs.
	Floors []uint32
	// Tag is the kernel's hash of each gate program as found.
	Tags [2]string
	// Digest is that of the wanted policy: with no difference, the policy in force.
	Digest [32]byte
	// Differences name everything that is not as wanted. Empty: all is.
	Differences []string
	missing     int // differences that say no more than that a direction has no gate
}

// Bare returns nil if the device has no gate and nothing in its place: what holds it
// is the floor. One gate alone that is as wanted is nil too.
func (r Report) Bare() error {
	if len(r.Differences) == r.missing {
		return nil
	}
	return r.Err()
}

// Err returns nil if nothing differs, else an error that names each difference.
func (r Report) Err() error {
	if len(r.Differences) == 0 {
		return nil
	}
	return fmt.Errorf("the gate of device %d is not as wanted: %s", r.Ifindex, strings.Join(r.Differences, "; "))
}

// ReadBack compares what stands on the device with policy want and the facts of its link. It starts from the
// device index alone and follows the kernel's ids: every program attached to the
// device, the maps each of them uses, their content. It is meant for a process that
// did not attach the gate, and needs CAP_SYS_ADMIN (objects by id), CAP_NET_ADMIN
// and CAP_BPF. The error says that the question could not be asked; what differs is
// in the report.
func ReadBack(ifindex int, want egress.Policy, facts egress.LinkFacts) (Report, error) {
	r := Report{Ifindex: ifindex, Digest: want.Digest()}
	ref, err := reference()
	if err != nil {
		return r, fmt.Errorf("cannot read back the gate of device %d: %w", ifindex, err)
	}
	err = whole(func() error {
		r = Report{Ifindex: ifindex, Digest: want.Digest()}
		return (&checker{ref: ref, want: want, facts: facts, report: &r}).device()
	})
	if err != nil {
		return r, fmt.Errorf("cannot read back the gate of device %d: %w", ifindex, err)
	}
	return r, nil
}

// wholeTries bounds how often a reading that a change ran into begins anew.
const wholeTries = 10

// whole reads until no object went away between being listed and being opened, as programs do that are exchanged, and none was
// still being made: such a link answers EAGAIN for as long as its maker is at it, here the maker of any link of the machine,
// which takes milliseconds. What changes each time cannot be vouched for, and is an error.
func whole(read func() error) error {
	for i := range wholeTries - 1 {
		err := read()
		switch {
		case errors.Is(err, unix.EAGAIN):
			time.Sleep(time.Millisecond << i) // half a second in all
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	return read()
}

type checker struct {
	ref    *references
	want   egress.Policy
	facts  egress.LinkFacts
	report *Report
}

func (c *checker) differ(format string, args ...any) {
	c.report.Differences = append(c.report.Differences, fmt.Sprintf(format, args...))
}

func (c *checker) noGate(d egress.Direction) {
	c.differ("%v: no gate", d)
	c.report.missing++
}

func (c *checker) device() error {
	dev, err := netlink.LinkByIndex(c.report.Ifindex)
	if err != nil {
		return fmt.Errorf("cannot find the device: %w", err)
	}
	if xdp := dev.Attrs().Xdp; xdp != nil && xdp.Attached {
		c.differ("ingress: XDP program %d stands in front of the gate", xdp.ProgId)
	}
	qdiscs, err := netlink.QdiscList(dev)
	if err != nil {
		return fmt.Errorf("cannot list the qdiscs: %w", err)
	}
	for _, q := range qdiscs {
		// The kernel's own default qdisc has handle 0; another one may carry
		// filters with actions, and they see frames that the gate has passed.
		if a := q.Attrs(); q.Type() != "clsact" && a.Handle != 0 {
			c.differ("egress: qdisc %s %x: stands behind the gate", q.Type(), a.Handle>>16)
		}
	}
	for _, d := range []egress.Direction{egress.Egress, egress.Ingress} {
		if err := c.direction(d); err != nil {
			return fmt.Errorf("%v: %w", d, err)
		}
	}
	return nil
}

func (c *checker) direction(d egress.Direction) error {
	filters, err := readFilters(c.report.Ifindex, d)
	if err != nil {
		return err
	}
	for _, f := range filters {
		if f.is(floorPriority, c.ref.floor) {
			c.report.Floors = append(c.report.Floors, uint32(f.program))
		}
	}
	diffs, err := floorDifferences(filters, d, c.ref)
	if err != nil {
		return err
	}
	for _, diff := range diffs {
		c.differ("%v: %s", d, diff)
	}
	attached, err := queryTCX(c.report.Ifindex, d)
	if err != nil {
		return err
	}
	if len(attached) == 0 {
		return c.clsact(d, filters)
	}
	return c.tcx(d, attached, filters)
}

// queryTCX lists the TCX programs of a direction in the order they run; none where
// the kernel has no TCX.
func queryTCX(ifindex int, d egress.Direction) ([]link.AttachedProgram, error) {
	attach := ebpf.AttachTCXEgress
	if d == egress.Ingress {
		attach = ebpf.AttachTCXIngress
	}
	result, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: attach})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return nil, nil
	}
	if err != nil {
		// Before 6.6 the attach type is unknown, which the kernel calls invalid.
		if !haveTCX() {
			return nil, nil
		}
		return nil, fmt.Errorf("cannot query TCX: %w", err)
	}
	return result.Programs, nil
}

// haveTCX asks by trying to attach to a device that cannot be.
func haveTCX() bool {
	var floor bpf.FloorObjects
	if bpf.LoadFloorObjects(&floor, nil) != nil {
		return true // the caller's error stands
	}
	defer floor.Close()
	l, err := link.AttachTCX(link.TCXOptions{Interface: math.MaxInt32, Program: floor.RempartFloor, Attach: ebpf.AttachTCXEgress})
	if err == nil {
		_ = l.Close()
	}
	return !errors.Is(err, ebpf.ErrNotSupported)
}

func (c *checker) tcx(d egress.Direction, attached []link.AttachedProgram, filters []filter) error {
	for _, f := range filters {
		if second, err := c.ref.filter(f, d); err != nil {
			return err
		} else if second != nil {
			c.differ("%v: a second gate stands behind the gate: %v", d, f)
		}
	}
	var gate *form
	found := -1
	for i, a := range attached {
		tag, name, err := tagOf(a.ID)
		if err != nil {
			return err
		}
		if found < 0 {
			if gate, err = c.ref.form(tag, d); err != nil {
				return err
			}
			if gate != nil {
				found = i
				continue
			}
		}
		where := "in front of the gate or instead of it"
		if found >= 0 {
			where = "behind the gate"
		}
		c.differ("%v: program %d %q with tag %s stands %s", d, a.ID, name, tag, where)
	}
	if found < 0 {
		c.noGate(d)
		return nil
	}
	c.report.Hook = egress.HookTCX
	id, ok := attached[found].LinkID()
	if !ok || id == 0 {
		c.differ("%v: the gate is attached without a link: anyone with CAP_NET_ADMIN can take it off", d)
	} else if err := c.link(d, id, attached[found].ID); err != nil {
		return err
	}
	return c.program(d, attached[found].ID, gate)
}

// link checks the link from its own side.
func (c *checker) link(d egress.Direction, id link.ID, program ebpf.ProgramID) error {
	l, err := link.NewFromID(id)
	if err != nil {
		return fmt.Errorf("cannot open link %d: %w", id, err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return fmt.Errorf("cannot ask link %d: %w", id, err)
	}
	want := ebpf.AttachTCXEgress
	if d == egress.Ingress {
		want = ebpf.AttachTCXIngress
	}
	tcx := info.TCX()
	if tcx == nil || tcx.Ifindex != uint32(c.report.Ifindex) || ebpf.AttachType(tcx.AttachType) != want || info.Program != program {
		c.differ("%v: link %d says of itself %+v, program %d", d, id, tcx, info.Program)
	}
	return nil
}

// clsact looks for the gate among the filters; unknown ones are reported already.
func (c *checker) clsact(d egress.Direction, filters []filter) error {
	for _, f := range filters {
		gate, err := c.ref.filter(f, d)
		if err != nil {
			return err
		}
		if gate != nil {
			c.report.Hook = egress.HookClsact
			return c.program(d, f.program, gate)
		}
	}
	c.noGate(d)
	return nil
}

// program checks the maps of a program whose tag is the gate's: the tag covers the
// instructions, not which maps they use.
func (c *checker) program(d egress.Direction, id ebpf.ProgramID, gate *form) error {
	c.report.Programs[d], c.report.Tags[d] = uint32(id), gate.tags[d]
	switch closed := egress.ClosedBy(c.want, c.facts); {
	case closed && !gate.closed:
		c.differ("%v: the closed gate is wanted and not in force", d)
	case !closed && gate.closed:
		c.differ("%v: the closed gate is in force and not wanted", d)
	}
	maps, closeMaps, err := mapsOf(id)
	if err != nil {
		return err
	}
	defer closeMaps()
	seen := map[string]int{}
	for _, m := range maps {
		info, err := m.Info()
		if err != nil {
			return fmt.Errorf("cannot ask a map of program %d: %w", id, err)
		}
		spec, ok := gate.maps[info.Name]
		if !ok {
			c.differ("%v: the gate uses unknown map %q", d, info.Name)
			continue
		}
		seen[info.Name]++
		if info.Type != spec.Type || info.KeySize != spec.KeySize || info.ValueSize != spec.ValueSize || info.MaxEntries != spec.MaxEntries || info.Flags != spec.Flags {
			c.differ("%v: map %q has another shape: %v, key %d, value %d, entries %d, flags %#x", d, info.Name,
				info.Type, info.KeySize, info.ValueSize, info.MaxEntries, info.Flags)
			continue
		}
		if !info.Frozen() {
			c.differ("%v: map %q is not frozen: a process can write it", d, info.Name)
		}
		switch info.Name {
		case policyMap:
			err = c.policy(d, m)
		case "link_facts":
			facts := c.facts.Bytes()
			err = c.entry(d, m, info, 0, facts[:])
		case "link_dhcp":
			for message := range egress.DHCPMessages {
				for i, chunk := range c.facts.Template(message).Chunks() {
					err = errors.Join(err, c.entry(d, m, info, uint32(int(message)*egress.DHCPChunks+i), chunk[:]))
				}
			}
		}
		if err != nil {
			return err
		}
	}
	for name := range gate.maps {
		if seen[name] != 1 {
			c.differ("%v: the gate uses map %q %d times", d, name, seen[name])
		}
	}
	return nil
}

// entry compares one entry of an array.
func (c *checker) entry(d egress.Direction, m *ebpf.Map, info *ebpf.MapInfo, index uint32, want []byte) error {
	got, err := m.LookupBytes(index)
	if err != nil {
		return fmt.Errorf("cannot read map %s: %w", info.Name, err)
	}
	if !bytes.Equal(got, want) {
		c.differ("%v: %s %d is not as wanted", d, info.Name, index)
	}
	return nil
}

// policy compares the table of rules, byte by byte, and names the rules that differ.
func (c *checker) policy(d egress.Direction, m *ebpf.Map) error {
	table, err := m.LookupBytes(uint32(0))
	if err != nil {
		return fmt.Errorf("cannot read the rules: %w", err)
	}
	wanted, err := c.want.Table()
	if err != nil {
		return err
	}
	if bytes.Equal(table, wanted) {
		return nil
	}
	before := len(c.report.Differences)
	want := map[egress.Key]uint64{}
	for _, e := range c.want.Entries() {
		want[e.Key] = e.Cgroup
	}
	for _, e := range egress.TableEntries(table) {
		cgroup, ok := want[e.Key]
		switch {
		case !ok:
			c.differ("%v: rule %v is in force and not wanted", d, e.Key)
		case cgroup != e.Cgroup:
			c.differ("%v: rule %v is for cgroup %d, not %d", d, e.Key, e.Cgroup, cgroup)
		}
		delete(want, e.Key)
	}
	for _, e := range c.want.Entries() {
		if _, missing := want[e.Key]; missing {
			c.differ("%v: rule %v is wanted and not in force", d, e.Key)
		}
	}
	if len(c.report.Differences) == before {
		c.differ("%v: the rules are not where the program looks for them, or fragments live for another time", d)
	}
	return nil
}

func tagOf(id ebpf.ProgramID) (tag, name string, err error) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return "", "", fmt.Errorf("cannot open program %d: %w", id, err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return "", "", fmt.Errorf("cannot ask program %d: %w", id, err)
	}
	return info.Tag, info.Name, nil
}

// mapsOf opens the maps of a program by their ids.
func mapsOf(id ebpf.ProgramID) (maps []*ebpf.Map, closeAll func(), err error) {
	closeAll = func() {
		for _, m := range maps {
			_ = m.Close()
		}
	}
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot open program %d: %w", id, err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return nil, nil, fmt.Errorf("cannot ask program %d: %w", id, err)
	}
	ids, ok := info.MapIDs()
	if !ok {
		return nil, nil, fmt.Errorf("program %d does not tell its maps", id)
	}
	for _, mid := range ids {
		m, err := ebpf.NewMapFromID(mid)
		if err != nil {
			closeAll()
			return nil, nil, fmt.Errorf("cannot open map %d: %w", mid, err)
		}
		maps = append(maps, m)
	}
	return maps, closeAll, nil
}
