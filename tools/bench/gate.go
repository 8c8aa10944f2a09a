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
// policy; the chains are the costly ones that are legal.
func gateFigures(own uint64) []gateFigure {
	out := func(gateways int) enforce.Trial {
		p := gateways4(gateways, own)
		local := netip.MustParseAddr("198.51.100.11")
		return enforce.Trial{Policy: p, Direction: egress.Egress, Frame: udp4(local, p.Classes[gateways-1].Addr, nil, 0)}
	}
	in := func(options []byte, field uint16) enforce.Trial {
		p := gateways4(1, own)
		return enforce.Trial{Policy: p, Direction: egress.Ingress, Frame: udp4(p.Classes[0].Addr, netip.MustParseAddr("198.51.100.11"), options, field)}
	}
	return []gateFigure{
		{"fast path, one gateway", 15, out(1)},
		{"16 gateways", 45, out(16)},
		{"250 gateways", 85, out(250)},
		{"IPv4, eight options", 150, in([]byte{1, 1, 1, 1, 1, 1, 1, 1}, 0)},
		{"IPv4, eight options, first fragment", 150, in([]byte{1, 1, 1, 1, 1, 1, 1, 1}, 0x2000)},
		{"IPv6, every extension header, eight options each", 150, chain6(own, false)},
		{"the same, first fragment", 150, chain6(own, true)},
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

// udp4 is a frame with 64 bytes of data.
func udp4(src, dst netip.Addr, options []byte, field uint16) []byte {
	b := append(make([]byte, 12), 8, 0, 0x45+byte(len(options)/4), 0)
	b = binary.BigEndian.AppendUint16(b, uint16(20+len(options)+8+64))
	b = binary.BigEndian.AppendUint16(append(b, 0, 1), field)
	b = append(append(append(b, 64, egress.UDP, 0, 0), src.AsSlice()...), dst.AsSlice()...)
	return append(append(b, options...), udp64()...)
}

func udp64() []byte {
	return append([]byte{0xca, 0x6c, 0xca, 0x6c, 0, 8 + 64, 0, 0}, make([]byte, 64)...)
}

// chain6 has each extension header that RFC 8200 orders, with as many options as the gate
// takes.
func chain6(own uint64, cut bool) enforce.Trial {
	gateway := netip.MustParseAddr("2001:db8:113::1")
	options := func(next byte) []byte { // six Pad1 and two PadN: 16 bytes
		return []byte{next, 1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 1, 2, 0, 0}
	}
	more := byte(0)
	if cut {
		more = 1
	}
	ext := append(options(60), options(43)...)
	ext = append(ext, 44, 0, 2, 0, 0, 0, 0, 0)
	ext = append(ext, 60, 0, 0, more, 0, 0, 0, 1)
	ext = append(append(ext, options(egress.UDP)...), udp64()...)
	b := append(make([]byte, 12), 0x86, 0xdd, 0x60, 0, 0, 0)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(ext))), 0, 64)
	b = append(append(b, gateway.AsSlice()...), netip.MustParseAddr("2001:db8:113::11").AsSlice()...)
	class := egress.Class{Gateway: "g", Addr: gateway, Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: own}
	return enforce.Trial{Policy: egress.Policy{Classes: []egress.Class{class}}, Direction: egress.Ingress, Frame: append(b, ext...)}
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
