package enforce

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"rempart/internal/bpf"
	"rempart/vpn/egress"
)

// Hold keeps a device silent on its way to another namespace. The floor, as all of
// clsact, ends with the move; a hold is a TCX link that drops all in both directions,
// and goes where the device goes. It lives as long as the process or until Close.
type Hold struct{ links []link.Link }

// HoldDevice puts a hold on the device, which should be down. Where the kernel has no
// TCX the hold is empty: the floor is laid again after the move, and until then the
// device is down. Needs CAP_NET_ADMIN and CAP_BPF.
func HoldDevice(ifindex int) (*Hold, error) {
	h := &Hold{}
	if err := h.put(ifindex); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot hold device %d: %w", ifindex, err), h.Close())
	}
	return h, nil
}

func (h *Hold) put(ifindex int) error {
	var objects bpf.FloorObjects
	if err := bpf.LoadFloorObjects(&objects, nil); err != nil {
		return err
	}
	defer objects.Close()
	for d, attach := range map[egress.Direction]ebpf.AttachType{egress.Egress: ebpf.AttachTCXEgress, egress.Ingress: ebpf.AttachTCXIngress} {
		l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: objects.RempartFloor, Attach: attach, Anchor: link.Head()})
		if errors.Is(err, ebpf.ErrNotSupported) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%v: %w", d, err)
		}
		h.links = append(h.links, l)
	}
	return nil
}

// Close lets the device go: what is attached beside the hold decides alone.
func (h *Hold) Close() error {
	var errs []error
	for _, l := range h.links {
		errs = append(errs, l.Close())
	}
	h.links = nil
	return errors.Join(errs...)
}
