package enforce

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"rempart/vpn/egress"
)

// Sever takes everything but the floor off the device, whoever attached it, so
// that all frames are dropped. It needs no help of the process that attached the
// gate. The floor is made sure of first: without it nothing is taken off. Needs
// CAP_SYS_ADMIN (links by id), CAP_NET_ADMIN and CAP_BPF.
func Sever(ifindex int) error {
	if err := attachFloor(ifindex); err != nil {
		return fmt.Errorf("cannot sever device %d: cannot lay the floor: %w", ifindex, err)
	}
	var errs []error
	for _, d := range []egress.Direction{egress.Egress, egress.Ingress} {
		// Filters first: while a gate is in front they are not asked.
		errs = append(errs, severFilters(ifindex, d), severTCX(ifindex, d))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot sever device %d: %w", ifindex, err)
	}
	return FloorInForce(ifindex)
}

func severFilters(ifindex int, d egress.Direction) error {
	filters, err := listFilters(ifindex, d)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range filters {
		if f.Attrs().Priority == floorPriority {
			continue
		}
		if err := netlink.FilterDel(f); err != nil {
			errs = append(errs, fmt.Errorf("cannot remove a %s filter of %v: %w", f.Type(), d, err))
		}
	}
	return errors.Join(errs...)
}

func severTCX(ifindex int, d egress.Direction) error {
	attached, err := queryTCX(ifindex, d)
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range attached {
		if err := detach(ifindex, d, a); err != nil {
			errs = append(errs, fmt.Errorf("cannot detach program %d of %v: %w", a.ID, d, err))
		}
	}
	return errors.Join(errs...)
}

func detach(ifindex int, d egress.Direction, a link.AttachedProgram) error {
	if id, ok := a.LinkID(); ok && id != 0 {
		l, err := link.NewFromID(id)
		if err != nil {
			return err
		}
		return errors.Join(l.Detach(), l.Close())
	}
	p, err := ebpf.NewProgramFromID(a.ID)
	if err != nil {
		return err
	}
	attach := ebpf.AttachTCXEgress
	if d == egress.Ingress {
		attach = ebpf.AttachTCXIngress
	}
	return errors.Join(link.RawDetachProgram(link.RawDetachProgramOptions{Target: ifindex, Program: p, Attach: attach}), p.Close())
}
