package enforce

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rempart/internal/bpf"
	"rempart/vpn/egress"
)

// Priorities (tc "pref") of our filters on clsact: the lower number is asked first.
const (
	gatePriority  = 1
	floorPriority = 0xff00
	filterHandle  = 1
)

// parents are clsact's two filter lists by direction.
func parent(d egress.Direction) uint32 {
	if d == egress.Egress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

// ErrNoFloor says that a device would pass frames if it had no gate.
var ErrNoFloor = errors.New("the floor is not in force")

// AttachFloor puts the drop-all classifier on both directions of the device. It is
// idempotent: a floor that stands is left as it is. Needs CAP_NET_ADMIN and CAP_BPF.
func AttachFloor(ifindex int) error {
	if FloorInForce(ifindex) == nil {
		return nil
	}
	if err := attachFloor(ifindex); err != nil {
		return fmt.Errorf("cannot lay the floor on device %d: %w", ifindex, err)
	}
	return FloorInForce(ifindex)
}

func attachFloor(ifindex int) error {
	var objects bpf.FloorObjects
	if err := bpf.LoadFloorObjects(&objects, nil); err != nil {
		return err
	}
	defer objects.Close()
	if err := addClsact(ifindex); err != nil {
		return err
	}
	for _, d := range []egress.Direction{egress.Egress, egress.Ingress} {
		if err := setFilter(ifindex, d, floorPriority, "rempart-floor", objects.RempartFloor); err != nil {
			return err
		}
	}
	return nil
}

func addClsact(ifindex int) error {
	err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("cannot add clsact: %w", err)
	}
	return nil
}

// setFilter adds, or atomically replaces, one of our filters.
func setFilter(ifindex int, d egress.Direction, priority uint16, name string, p *ebpf.Program) error {
	err := netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: ifindex, Parent: parent(d), Handle: filterHandle,
			Protocol: unix.ETH_P_ALL, Priority: priority},
		Fd: p.FD(), Name: name, DirectAction: true,
	})
	if err != nil {
		return fmt.Errorf("cannot set filter %s on %v: %w", name, d, err)
	}
	return nil
}

// FloorInForce returns nil if the floor stands in both directions and nothing but
// a gate of ours is asked before it, else an error that wraps [ErrNoFloor] and
// names each difference. It trusts no descriptor: it asks the kernel for the
// device's filters and compares program tags with those of our own programs, which
// it loads. Needs CAP_NET_ADMIN and CAP_BPF.
func FloorInForce(ifindex int) error {
	ref, err := reference()
	if err != nil {
		return fmt.Errorf("cannot check the floor of device %d: %w", ifindex, err)
	}
	var all []error
	for _, d := range []egress.Direction{egress.Egress, egress.Ingress} {
		filters, err := readFilters(ifindex, d)
		if err != nil {
			return fmt.Errorf("cannot check the floor of device %d: %w", ifindex, err)
		}
		diffs, err := floorDifferences(filters, d, ref)
		if err != nil {
			return fmt.Errorf("cannot check the floor of device %d: %w", ifindex, err)
		}
		for _, diff := range diffs {
			all = append(all, fmt.Errorf("%v: %s", d, diff))
		}
	}
	if len(all) != 0 {
		return fmt.Errorf("device %d: %w: %w", ifindex, ErrNoFloor, errors.Join(all...))
	}
	return nil
}

func floorDifferences(filters []filter, d egress.Direction, ref *references) (diffs []string, err error) {
	standing := false
	for _, f := range filters {
		if f.is(floorPriority, ref.floor) {
			standing = true
			continue
		}
		gate, err := ref.filter(f, d)
		if err != nil {
			return nil, err
		}
		if gate == nil {
			diffs = append(diffs, fmt.Sprintf("unknown filter: %v", f))
		}
	}
	if !standing {
		diffs = append(diffs, "no floor: no drop-all classifier of ours")
	}
	return diffs, nil
}

// filter is what the kernel tells of one filter on clsact.
type filter struct {
	kind     string
	name     string
	tag      string
	priority uint16
	protocol uint16
	chain    uint32
	direct   bool
	program  ebpf.ProgramID
}

// is tells whether f is our filter: the program by its tag, asked for every frame,
// its verdict final.
func (f filter) is(priority uint16, tag string) bool {
	return f.kind == "bpf" && f.priority == priority && f.tag == tag && f.direct && f.protocol == unix.ETH_P_ALL && f.chain == 0
}

func (f filter) String() string {
	return fmt.Sprintf("%s %q, priority %d, protocol %#x, chain %d, program %d, tag %s", f.kind, f.name, f.priority, f.protocol, f.chain, f.program, f.tag)
}

// readFilters lists the filters of one direction; none if there is no clsact.
func readFilters(ifindex int, d egress.Direction) ([]filter, error) {
	list, err := listFilters(ifindex, d)
	if err != nil {
		return nil, err
	}
	filters := make([]filter, 0, len(list))
	for _, l := range list {
		a := l.Attrs()
		f := filter{kind: l.Type(), priority: a.Priority, protocol: a.Protocol}
		if a.Chain != nil {
			f.chain = *a.Chain
		}
		if b, ok := l.(*netlink.BpfFilter); ok {
			f.name, f.tag, f.direct, f.program = b.Name, b.Tag, b.DirectAction, ebpf.ProgramID(b.Id)
		}
		filters = append(filters, f)
	}
	return filters, nil
}

func listFilters(ifindex int, d egress.Direction) ([]netlink.Filter, error) {
	dev, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return nil, fmt.Errorf("cannot find device %d: %w", ifindex, err)
	}
	qdiscs, err := netlink.QdiscList(dev)
	if err != nil {
		return nil, fmt.Errorf("cannot list the qdiscs of device %d: %w", ifindex, err)
	}
	for _, q := range qdiscs {
		if q.Type() != "clsact" {
			continue
		}
		list, err := netlink.FilterList(dev, parent(d))
		if err != nil {
			return nil, fmt.Errorf("cannot list the filters of device %d: %w", ifindex, err)
		}
		return list, nil
	}
	return nil, nil
}

// FloorDrops is the number of frames that each direction's floor has dropped:
// frames that no gate stood in front of. Needs CAP_SYS_ADMIN (maps by id).
func FloorDrops(ifindex int) (drops [2]uint64, err error) {
	ref, err := reference()
	if err != nil {
		return drops, err
	}
	for _, d := range []egress.Direction{egress.Egress, egress.Ingress} {
		filters, err := readFilters(ifindex, d)
		if err != nil {
			return drops, err
		}
		for _, f := range filters {
			if !f.is(floorPriority, ref.floor) {
				continue
			}
			if drops[d], err = floorCount(f.program); err != nil {
				return drops, fmt.Errorf("cannot read the floor's counter on device %d: %w", ifindex, err)
			}
		}
	}
	return drops, nil
}

func floorCount(id ebpf.ProgramID) (sum uint64, err error) {
	maps, closeMaps, err := mapsOf(id)
	if err != nil {
		return 0, err
	}
	defer closeMaps()
	for _, m := range maps {
		var perCPU []uint64
		if err := m.Lookup(uint32(0), &perCPU); err != nil {
			return 0, err
		}
		for _, n := range perCPU {
			sum += n
		}
	}
	return sum, nil
}
