package nft

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/vpn/egress"
)

const (
	tunneld  = 903
	somebody = 1000
)

var (
	handset4 = netip.MustParseAddr("203.0.113.11")
	handset6 = netip.MustParseAddr("2001:db8:113::11")
	gateway4 = netip.MustParseAddr("203.0.113.1")
	gateway6 = netip.MustParseAddr("2001:db8:113::1")
	foreign4 = netip.MustParseAddr("192.0.2.77")
	foreign6 = netip.MustParseAddr("2001:db8:dead::beef")
	macBlack = net.HardwareAddr{2, 0, 0, 0, 0, 11}
	macAir   = net.HardwareAddr{2, 0, 0, 0, 0, 1}
)

// own are the addresses of the device bl0.
var own = []netip.Addr{handset4, handset6}

// tunnel are the classes of a handset with one gateway over both stacks.
var tunnel = egress.Policy{Classes: []egress.Class{
	{Gateway: "g", Addr: gateway4, Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 1},
	{Gateway: "g", Addr: gateway6, Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 1},
}}

// answering is the class of a gateway.
var answering = egress.Policy{Classes: []egress.Class{{Gateway: "g", Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 1}}}

// world is black with its device bl0, and the air behind it.
type world struct {
	t          *testing.T
	black, air *link.NS
	owner      *Owner
	ear        int // packet socket that hears all that bl0's other end receives
}

func newWorld(t *testing.T) *world {
	t.Helper()
	proof.NeedRoot(t)
	w := &world{t: t, black: space(t), air: space(t)}
	w.in(w.black, func() error {
		if err := link.AddVeth(link.Port{Name: "bl0", MAC: macBlack}, link.Port{Name: "air0", MAC: macAir, NS: w.air}); err != nil {
			return err
		}
		o, err := Open()
		w.owner = o
		return err
	})
	t.Cleanup(func() {
		if err := w.owner.Close(); err != nil && !errors.Is(err, unix.EBADF) {
			t.Error(err)
		}
	})
	w.end(w.black, "bl0", handset4, handset6, gateway4, gateway6, macAir)
	w.end(w.air, "air0", gateway4, gateway6, handset4, handset6, macBlack)
	w.in(w.air, func() (err error) {
		w.ear, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0x300 /* ETH_P_ALL, network order */)
		return err
	})
	t.Cleanup(func() { _ = unix.Close(w.ear) })
	// A pair that has just been set up drops until the kernel has noticed its carrier.
	for range 100 {
		if w.udp(0, netip.AddrPortFrom(handset4, 9), netip.AddrPortFrom(gateway4, 9), 8) {
			return w
		}
	}
	t.Fatal("the pair carries nothing")
	return nil
}

func space(t *testing.T) *link.NS {
	t.Helper()
	ns, err := link.Create("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	err = ns.Do(func() error {
		return errors.Join(link.Sysctl("net.ipv6.conf.default.addr_gen_mode", "1"), link.SetUp("lo"))
	})
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// end gives one end its addresses, and its routes and neighbour by hand.
func (w *world) end(ns *link.NS, dev string, own4, own6, far4, far6 netip.Addr, far net.HardwareAddr) {
	w.t.Helper()
	w.in(ns, func() error {
		err := link.SetUp(dev)
		for _, a := range []netip.Addr{own4, own6} {
			err = errors.Join(err, link.AddAddr(dev, netip.PrefixFrom(a, a.BitLen())))
		}
		for _, a := range []netip.Addr{far4, far6} {
			all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if a.Is6() {
				all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			err = errors.Join(err, link.AddNeighbour(dev, a, far), link.AddRoute(link.Route{To: netip.PrefixFrom(a, a.BitLen()), Device: dev}),
				link.AddRoute(link.Route{To: all, Device: dev, Via: a}))
		}
		return err
	})
}

func (w *world) in(ns *link.NS, fn func() error) {
	w.t.Helper()
	if err := ns.Do(fn); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) put(tables ...Table) {
	w.t.Helper()
	if err := w.owner.Put(tables...); err != nil {
		w.t.Fatal(err)
	}
}

// differences is what another socket in black reads back.
func (w *world) differences(want ...Table) (err error) {
	w.t.Helper()
	w.in(w.black, func() error { err = ReadBack(w.owner.Port(), want...); return nil })
	return err
}

// as runs fn on a thread of its own whose new files belong to a user.
func as(uid int, fn func() error) func() error {
	return func() error {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0); errno != 0 {
			return errno
		}
		return fn()
	}
}

// udp sends one datagram of a socket that uid opened, and tells whether it crossed.
func (w *world) udp(uid int, from, to netip.AddrPort, size int) bool {
	w.t.Helper()
	mark := w.marker()
	w.in(w.black, as(uid, func() error {
		c, err := (&net.ListenConfig{Control: anySource}).ListenPacket(context.Background(), "udp", from.String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, _ = c.(*net.UDPConn).WriteToUDPAddrPort(append(mark, make([]byte, size)...), to) // refused or lost: the ear decides
		return nil
	}))
	return w.heard(mark)
}

// anySource lets a socket have an address that is nobody's, which takes no capability
// (IP_FREEBIND, IPV6_FREEBIND).
func anySource(network, _ string, c syscall.RawConn) (err error) {
	level, option := unix.IPPROTO_IP, unix.IP_FREEBIND
	if network == "udp6" {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_FREEBIND
	}
	return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }), err)
}

func (w *world) marker() []byte {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		w.t.Fatal(err)
	}
	return b
}

// heard tells whether a frame with the marker has come. A frame that leaves one end of the pair is at the other before the
// send returns, or a moment later when a softirq was put off.
func (w *world) heard(mark []byte) bool {
	w.t.Helper()
	b := make([]byte, 64<<10)
	found := false
	for until := time.Now().Add(10 * time.Millisecond); time.Now().Before(until) && !found; {
		n, from, err := unix.Recvfrom(w.ear, b, 0)
		if errors.Is(err, unix.EAGAIN) {
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			w.t.Fatal(err)
		}
		if l := from.(*unix.SockaddrLinklayer); l.Pkttype != unix.PACKET_OUTGOING && bytes.Contains(b[:n], mark) {
			found = true
		}
	}
	return found
}

// frame sends a whole Ethernet frame from black by a packet socket of uid.
func (w *world) frame(uid int, bypass bool, protocol uint16, f []byte) {
	w.t.Helper()
	w.in(w.black, as(uid, func() error {
		i, err := link.Index("bl0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if bypass {
			if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
				return err
			}
		}
		to := &unix.SockaddrLinklayer{Protocol: protocol>>8 | protocol<<8, Ifindex: i, Halen: 6}
		_ = unix.Sendto(fd, f, 0, to) // refused or lost: the ear decides
		return nil
	}))
}

// ipv4 is an Ethernet frame with a UDP datagram; fragment is the offset field.
func ipv4(etherType uint16, from, to netip.AddrPort, fragment uint16, payload []byte) []byte {
	b := append(append([]byte{}, macAir...), macBlack...)
	b = binary.BigEndian.AppendUint16(b, etherType)
	b = append(b, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(28+len(payload)))
	b = append(b, 0, 1)
	b = binary.BigEndian.AppendUint16(b, fragment)
	b = append(b, 64, unix.IPPROTO_UDP, 0, 0)
	b = append(append(b, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return append(append(b, 0, 0), payload...)
}
