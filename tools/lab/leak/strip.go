package leak

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"rempart/board/netns"
	"rempart/board/scenario"
	"rempart/internal/link"
)

// stripBackstop takes away what stands behind the gate: nft, the IPsec policies' default, and that black has no way but to
// its gateways.
func stripBackstop(ctx context.Context, m netns.Machine, black *link.NS, layers []scenario.Layer) error {
	if slices.Contains(layers, scenario.NFT) {
		if err := flushOwned(filepath.Join(m.Paths.Cgroup, "init", "cgroup.procs")); err != nil {
			return fmt.Errorf("cannot take nft off the twin: %w", err)
		}
	}
	if slices.Contains(layers, scenario.XFRM) {
		for _, ns := range []string{m.Paths.Own, m.Paths.Red, m.Paths.Black} {
			out, err := exec.CommandContext(ctx, "nsenter", "--net="+ns, "ip", "xfrm", "policy", "setdefault", "in", "accept", "fwd", "accept", "out", "accept").CombinedOutput()
			if err != nil {
				return fmt.Errorf("cannot take the IPsec default off the twin: %w: %s", err, out)
			}
		}
	}
	if !slices.Contains(layers, scenario.Routes) {
		return nil
	}
	return black.Do(func() error {
		return errors.Join(
			link.AddRoute(link.Route{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Device: m.Radio.Device, Via: m.Radio.Router4}),
			link.AddRoute(link.Route{To: netip.PrefixFrom(netip.IPv6Unspecified(), 0), Device: m.Radio.Device, Via: m.Radio.Router6}))
	})
}

// flushOwned removes the tables that the process in a control group owns. No socket but the owner's may do that, not even the
// desk's root: so it borrows them from the frozen init (pidfd_getfd(2)), which nobody inside the handset may.
func flushOwned(procs string) error {
	data, err := os.ReadFile(procs)
	if err != nil {
		return err
	}
	flushed := 0
	for _, text := range strings.Fields(string(data)) {
		pid, err := strconv.Atoi(text)
		if err != nil {
			return err
		}
		n, err := flushOwnedBy(pid)
		if err != nil {
			return err
		}
		flushed += n
	}
	if flushed == 0 {
		return errors.New("nobody there owns a table")
	}
	return nil
}

func flushOwnedBy(pid int) (flushed int, err error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0, err
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(process)
	for _, e := range entries {
		number, err := strconv.Atoi(e.Name())
		if err != nil {
			return flushed, err
		}
		fd, err := unix.PidfdGetfd(process, number, 0)
		if err != nil {
			return flushed, fmt.Errorf("cannot borrow descriptor %d of process %d: %w", number, pid, err)
		}
		domain, derr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		protocol, perr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		if derr == nil && perr == nil && domain == unix.AF_NETLINK && protocol == unix.NETLINK_NETFILTER {
			if err = flush(fd); err == nil {
				flushed++
			}
		}
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return flushed, err
		}
	}
	return flushed, nil
}

// flush sends "flush ruleset" on a netlink socket and waits for the kernel's word.
func flush(fd int) error {
	message := func(kind, flags uint16, seq uint32, resource uint16) []byte {
		b := binary.NativeEndian.AppendUint32(nil, unix.NLMSG_HDRLEN+4)
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
		b = binary.NativeEndian.AppendUint32(b, seq)
		b = binary.NativeEndian.AppendUint32(b, 0)
		return binary.BigEndian.AppendUint16(append(b, unix.AF_UNSPEC, unix.NFNETLINK_V0), resource)
	}
	const seq = 0x7ffffff0
	batch := slices.Concat(message(unix.NFNL_MSG_BATCH_BEGIN, 0, seq, unix.NFNL_SUBSYS_NFTABLES),
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE, unix.NLM_F_ACK, seq+1, 0),
		message(unix.NFNL_MSG_BATCH_END, 0, seq+2, unix.NFNL_SUBSYS_NFTABLES))
	if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	// The kernel has answered before sendto returned.
	b := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
	switch {
	case err != nil:
		return fmt.Errorf("no answer to the flush: %w", err)
	case n < unix.NLMSG_HDRLEN+4:
		return fmt.Errorf("an answer of %d bytes", n)
	}
	if errno := unix.Errno(-int32(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN:]))); errno != 0 {
		return fmt.Errorf("cannot flush: %w", errno)
	}
	return nil
}
