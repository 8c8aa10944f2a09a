package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"rempart/vpn/egress"
	"rempart/vpn/enforce"
)

// Rounds and runs of one figure of the gate.
const (
	gateRounds = 25
	gateRepeat = 200_000
)

// gate times the gate's decision by test runs of its programs, above an empty program in
// the same rounds.
func gate(ctx context.Context, _ options, r *result) error {
	own, err := ownCgroup()
	if err != nil {
		return err
	}
	r.Settings["loaded with"] = "CAP_BPF and CAP_NET_ADMIN alone, as by egressd"
	r.Settings["a sample"] = fmt.Sprintf("ns of one run above an empty program, each the mean of %d runs, in turn", gateRepeat)
	raw := map[string][]float64{}
	for _, f := range gateFigures(own) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		above, err := enforce.Measure(f.trial, gateRounds, gateRepeat)
		if err != nil {
			return fmt.Errorf("%s: %w", f.what, err)
		}
		raw[f.what] = above
		r.add(f.what, "ns", above, bound{Of: p50, Limit: f.limit})
	}
	r.Raw = raw
	return nil
}

type gateFigure struct {
	what  string
	limit float64
	trial enforce.Trial
}

// gateFigures are the bounds of the issue. The gateway asked for is the last one of the
// policy.
func gateFigures(own uint64) []gateFigure {
	out := func(gateways int) enforce.Trial {
		p := gateways4(gateways, own)
		local := netip.MustParseAddr("198.51.100.11")
		return enforce.Trial{Policy: p, Direction: egress.Egress, Frame: udp4(local, p.Classes[gateways-1].Addr)}
	}
	figures := []gateFigure{
		{"fast path, one gateway", 15, out(1)},
		{"16 gateways", 45, out(16)},
		{"250 gateways", 85, out(250)},
	}
	for _, c := range chains(own) {
		c.limit = 150
		figures = append(figures, c)
	}
	return figures
}

// chains are the longest headers that are legal, of each shape: the greatest of these
// figures is that of the worst legal chain. The remote is known to no rule but a
// responder's, which is the longer way to a class.
func chains(own uint64) []gateFigure {
	options4 := []byte{7, 10, 4, 0, 0, 0, 0, 0, 0, 0, 7, 10, 4, 0, 0, 0, 0, 0, 0, 0, 7, 10, 4, 0, 0, 0, 0, 0, 0, 0, 7, 10, 4, 0, 0, 0, 0, 0, 0, 0}
	p := gateways4(250, own)
	p.Classes = append(p.Classes, egress.Class{Gateway: "r", Proto: egress.TCP, Port: 444, Purpose: egress.Attestation, Cgroup: own},
		egress.Class{Gateway: "r", Proto: egress.UDP, Port: 51821, Purpose: egress.Tunnel, Cgroup: own})
	trial := func(d egress.Direction, frame []byte) enforce.Trial {
		return enforce.Trial{Policy: p, Direction: d, Frame: frame}
	}
	far4, far6 := netip.MustParseAddr("198.51.100.77"), netip.MustParseAddr("2001:db8:51::77")
	own4, own6 := netip.MustParseAddr("198.51.100.11"), netip.MustParseAddr("2001:db8:113::11")
	return []gateFigure{
		{"IPv4, four options, TCP", 0, trial(egress.Ingress, ipv4(far4, own4, options4, 0, egress.TCP, tcp444()))},
		{"IPv4, four options, TCP, first fragment", 0, trial(egress.Ingress, ipv4(far4, own4, options4, 0x2000, egress.TCP, tcp444()))},
		{"IPv4, UDP, first fragment, outgoing", 0, trial(egress.Egress, ipv4(own4, far4, nil, 0x2000, egress.UDP, udp51821(8+64+8)))},
		{"IPv6, an options header of four, TCP", 0, trial(egress.Ingress, ipv6(far6, own6, 60, options6(egress.TCP), tcp444()))},
		{"IPv6, an options header of four, TCP, first fragment", 0, trial(egress.Ingress, ipv6(far6, own6, 60, options6(44), append([]byte{egress.TCP, 0, 0, 1, 0, 0, 0, 1}, tcp444()...)))},
		{"IPv6, UDP, first fragment, outgoing", 0, trial(egress.Egress, ipv6(own6, far6, 44, nil, append([]byte{egress.UDP, 0, 0, 1, 0, 0, 0, 1}, udp51821(8+64+8)...)))},
	}
}

// gateways4 is a policy of n gateways with one class each.
func gateways4(n int, own uint64) (p egress.Policy) {
	for i := range n {
		addr := netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)})
		p.Classes = append(p.Classes, egress.Class{Gateway: fmt.Sprintf("g%d", i), Addr: addr, Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: own})
	}
	return p
}

// udp4 is a frame to a gateway's tunnel port with 64 bytes of data.
func udp4(src, dst netip.Addr) []byte {
	return ipv4(src, dst, nil, 0, egress.UDP, append([]byte{0xca, 0x6c, 0xca, 0x6c, 0, 8 + 64, 0, 0}, make([]byte, 64)...))
}

func ipv4(src, dst netip.Addr, options []byte, field uint16, proto byte, body []byte) []byte {
	b := append(make([]byte, 12), 8, 0, 0x45+byte(len(options)/4), 0)
	b = binary.BigEndian.AppendUint16(b, uint16(20+len(options)+len(body)))
	b = binary.BigEndian.AppendUint16(append(b, 0, 1), field)
	b = append(append(append(b, 64, proto, 0, 0), src.AsSlice()...), dst.AsSlice()...)
	return append(append(b, options...), body...)
}

func ipv6(src, dst netip.Addr, next byte, extension, body []byte) []byte {
	b := append(make([]byte, 12), 0x86, 0xdd, 0x60, 0, 0, 0)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(extension)+len(body))), next, 64)
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	return append(append(b, extension...), body...)
}

// options6 is a header of the greatest legal length with as many options as are legal.
func options6(next byte) []byte {
	return []byte{next, 4, 2: 0x1e, 3: 8, 12: 0x1e, 13: 8, 22: 0x1e, 23: 8, 32: 0x1e, 33: 6, 39: 0}
}

// tcp444 is a segment from a responder's remote to its port, a multiple of 8 bytes.
func tcp444() []byte {
	return append([]byte{0x9c, 0x40, 1, 0xbc, 12: 0x50, 13: 0x10, 19: 0}, make([]byte, 44)...)
}

// udp51821 is a datagram of a responder to a remote, of that length by its header.
func udp51821(length byte) []byte {
	return append([]byte{0xca, 0x6d, 0x9c, 0x40, 0, length, 0, 0}, make([]byte, 64)...)
}

// ownCgroup is the id of this process's cgroup: the one that a test run's frames are from.
func ownCgroup() (uint64, error) {
	dir, err := ownCgroupDir()
	if err != nil {
		return 0, err
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, fmt.Errorf("cannot find the own cgroup: %w", err)
	}
	return st.Ino, nil
}

// ownCgroupDir is the folder of this process's cgroup.
func ownCgroupDir() (string, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("cannot find the own cgroup: %w", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("cannot find the own cgroup: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		for mount := range strings.Lines(string(mounts)) {
			if fields := strings.Fields(mount); strings.Contains(mount, " - cgroup2 ") && fields[3] == "/" {
				return filepath.Join(fields[4], path), nil
			}
		}
	}
	return "", fmt.Errorf("cannot find the own cgroup: no cgroup2 is mounted")
}
