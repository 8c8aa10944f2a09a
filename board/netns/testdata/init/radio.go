package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
)

// configure sets up the radio from the command line's words, with every
// destination behind the router.
func configure(w []string) error {
	if len(w) != 6 {
		return fmt.Errorf("cannot read the radio: %d words", len(w))
	}
	mac, err := net.ParseMAC(w[5])
	if err != nil {
		return err
	}
	dev := w[0]
	v4, v6, via4, via6 := netip.MustParsePrefix(w[1]), netip.MustParsePrefix(w[2]), netip.MustParseAddr(w[3]), netip.MustParseAddr(w[4])
	return errors.Join(
		link.Sysctl("net/ipv6/conf/"+dev+"/addr_gen_mode", "1"),
		link.Sysctl("net/ipv6/conf/"+dev+"/router_solicitations", "0"),
		link.AddAddr(dev, netip.PrefixFrom(v4.Addr(), 32)), link.AddAddr(dev, netip.PrefixFrom(v6.Addr(), 128)),
		link.SetUp(dev),
		link.AddNeighbour(dev, via4, mac), link.AddNeighbour(dev, via6, mac),
		link.AddRoute(link.Route{To: netip.PrefixFrom(via4, 32), Device: dev}),
		link.AddRoute(link.Route{To: netip.PrefixFrom(via6, 128), Device: dev}),
		link.AddRoute(link.Route{To: netip.MustParsePrefix("0.0.0.0/0"), Device: dev, Via: via4}),
		link.AddRoute(link.Route{To: netip.MustParsePrefix("::/0"), Device: dev, Via: via6}),
	)
}

// pin makes a BPF map called rempart_board and pins it, as a gate is pinned:
// the test looks for it from outside (BPF_MAP_CREATE, BPF_OBJ_PIN of bpf(2)).
func pin(path string) error {
	create := struct {
		kind, key, value, entries, flags, inner, node uint32
		name                                          [16]byte
	}{kind: 2, key: 4, value: 4, entries: 1}
	copy(create.name[:], "rempart_board")
	fd, _, errno := unix.Syscall(unix.SYS_BPF, 0, uintptr(unsafe.Pointer(&create)), unsafe.Sizeof(create))
	if errno != 0 {
		return fmt.Errorf("cannot make a map: %w", errno)
	}
	defer unix.Close(int(fd))
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	obj := struct {
		path  uint64
		fd    uint32
		flags uint32
	}{path: uint64(uintptr(unsafe.Pointer(name))), fd: uint32(fd)}
	if _, _, errno := unix.Syscall(unix.SYS_BPF, 6, uintptr(unsafe.Pointer(&obj)), unsafe.Sizeof(obj)); errno != 0 {
		return fmt.Errorf("cannot pin a map: %w", errno)
	}
	return nil
}
