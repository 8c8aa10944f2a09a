package enforce

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/vpn/egress"
)

// TestEachReason has one frame per reason and direction, made from a good one by one
// change. The program and the model must both give exactly that reason.
func TestEachReason(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the rows that are admitted")
	s := newSubject(t)
	gw4, gw6 := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:113::1")
	stranger := netip.MustParseAddr("198.51.100.7")
	both := []egress.Direction{egress.Egress, egress.Ingress}
	out := both[:1]
	udp := func(remote netip.Addr, change func(f []byte) []byte) func(d egress.Direction) []byte {
		return func(d egress.Direction) []byte {
			return change(frameOf(remote, d, egress.UDP, 51820, 40000, 32))
		}
	}
	same := func(f []byte) []byte { return f }
	set := func(at int, v byte) func([]byte) []byte {
		return func(f []byte) []byte { f[at] = v; return f }
	}
	ethertype := func(v uint16) func([]byte) []byte {
		return func(f []byte) []byte { binary.BigEndian.PutUint16(f[12:], v); return f }
	}
	responder := func(remote string, proto uint8, port uint16) func(egress.Direction) []byte {
		return func(d egress.Direction) []byte {
			return frameOf(netip.MustParseAddr(remote), d, proto, 40000, port, 32)
		}
	}
	for _, c := range []struct {
		name  string
		want  egress.Reason
		ways  []egress.Direction
		frame func(egress.Direction) []byte
		mark  uint32
	}{
		{"tunnel over IPv4", egress.Admitted, both, udp(gw4, same), 0},
		{"tunnel over IPv6", egress.Admitted, both, udp(gw6, same), 0},
		{"don't fragment clear", egress.Admitted, both, udp(gw4, set(20, 0)), 0},
		{"attestation over TCP", egress.Admitted, both, func(d egress.Direction) []byte { return frameOf(gw4, d, egress.TCP, 443, 40000, 9) }, 0},
		{"responder, any remote", egress.Admitted, both, responder("198.51.100.7", egress.UDP, 51821), 0},
		{"responder, any remote, IPv6", egress.Admitted, both, responder("2001:db8:51::7", egress.TCP, 444), 0},
		{"responder to multicast", egress.RemoteRefused, both, responder("224.0.0.251", egress.UDP, 51821), 0},
		{"responder to broadcast", egress.RemoteRefused, both, responder("255.255.255.255", egress.UDP, 51821), 0},
		{"responder to loopback", egress.RemoteRefused, both, responder("127.0.0.1", egress.UDP, 51821), 0},
		{"responder to IPv6 multicast", egress.RemoteRefused, both, responder("ff02::fb", egress.UDP, 51821), 0},
		{"responder to mapped IPv4", egress.RemoteRefused, both, responder("::ffff:198.51.100.7", egress.UDP, 51821), 0},
		{"the gateway as mapped IPv4", egress.NoClass, both, udp(netip.MustParseAddr("::ffff:203.0.113.1"), same), 0},
		{"802.1Q", egress.VLAN, both, udp(gw4, ethertype(0x8100)), 0},
		{"802.1ad", egress.VLAN, both, udp(gw6, ethertype(0x88a8)), 0},
		{"ARP", egress.ARP, both, udp(gw4, ethertype(0x0806)), 0},
		{"LLDP", egress.EtherType, both, udp(gw4, ethertype(0x88cc)), 0},
		{"802.3 length", egress.EtherType, both, udp(gw4, ethertype(0x0040)), 0},
		{"IPv6 named IPv4", egress.IPHeader, both, udp(gw6, ethertype(0x0800)), 0},
		{"IPv4 named IPv6", egress.IPHeader, both, udp(gw4, ethertype(0x86dd)), 0},
		{"IPv4 header length 4", egress.IPHeader, both, udp(gw4, set(14, 0x44)), 0},
		{"an option that takes the ports' place", egress.IPOptions, out, udp(gw4, set(14, 0x46)), 0},
		{"IPv4 longer than the frame", egress.IPHeader, both, udp(gw4, set(17, 200)), 0},
		{"IPv4 shorter than its header", egress.IPHeader, both, udp(gw4, set(17, 19)), 0},
		{"bytes behind the datagram", egress.IPHeader, out, udp(gw4, func(f []byte) []byte { return append(f, 1, 2, 3) }), 0},
		{"bytes behind the datagram, IPv6", egress.IPHeader, out, udp(gw6, func(f []byte) []byte { return append(f, 1) }), 0},
		{"Ethernet padding", egress.Admitted, both[1:], udp(gw4, func(f []byte) []byte { return append(f, 0, 0, 0) }), 0},
		{"later fragment of nothing", egress.NoFirst, both, udp(gw4, set(21, 9)), 0},
		{"reserved flag", egress.Fragment, both, udp(gw4, set(20, 0x80)), 0},
		{"ICMP", egress.Protocol, both, udp(gw4, set(23, 1)), 0},
		{"ESP", egress.Protocol, both, udp(gw4, set(23, 50)), 0},
		{"ICMPv6 echo", egress.Protocol, both, udp(gw6, set(20, 58)), 0},
		{"no IPv6 hop-by-hop header", egress.Extension, both, udp(gw6, set(20, 0)), 0},
		{"UDP length 7", egress.L4Length, both, udp(gw4, set(39, 7)), 0},
		{"UDP longer than the datagram", egress.L4Length, both, udp(gw4, set(39, 41)), 0},
		{"UDP shorter than the datagram", egress.L4Length, out, udp(gw4, set(39, 39)), 0},
		{"TCP offset 4", egress.L4Length, both, func(d egress.Direction) []byte { return set(46, 0x40)(frameOf(gw4, d, egress.TCP, 443, 1, 0)) }, 0},
		{"TCP offset behind the end", egress.L4Length, both, func(d egress.Direction) []byte { return set(46, 0x60)(frameOf(gw4, d, egress.TCP, 443, 1, 3)) }, 0},
		{"another remote", egress.NoClass, both, udp(stranger, same), 0},
		{"another port", egress.NoClass, both, func(d egress.Direction) []byte { return frameOf(gw4, d, egress.UDP, 53, 40000, 8) }, 0},
		{"the port on our side", egress.NoClass, both, func(d egress.Direction) []byte { return frameOf(gw4, d, egress.UDP, 40000, 51820, 8) }, 0},
		{"the port of the other protocol", egress.NoClass, both, func(d egress.Direction) []byte { return frameOf(gw4, d, egress.TCP, 51820, 40000, 8) }, 0},
		{"a mark", egress.Mark, out, udp(gw4, same), 1},
		{"a mark does not matter inward", egress.Admitted, both[1:], udp(gw4, same), 1},
		{"another cgroup", egress.Cgroup, out, func(d egress.Direction) []byte {
			return frameOf(netip.MustParseAddr("203.0.113.2"), d, egress.UDP, 4500, 40000, 8)
		}, 0},
	} {
		for _, d := range c.ways {
			frame := c.frame(d)
			before, err := readCounters(s.counters)
			if err != nil {
				t.Fatal(err)
			}
			code, ok := s.run(d, frame, c.mark)
			if !ok {
				t.Fatalf("%s: the test run takes no such frame", c.name)
			}
			after, err := readCounters(s.counters)
			if err != nil {
				t.Fatal(err)
			}
			verdict, reason := egress.Decide(s.policy, d, frame, egress.Meta{Cgroup: s.own, Mark: c.mark})
			if reason != c.want || bool(verdict) != (c.want == egress.Admitted) {
				t.Errorf("%s, %v: the model says %v", c.name, d, reason)
			}
			if (code == 0) != (c.want == egress.Admitted) || after[d][c.want] != before[d][c.want]+1 {
				t.Errorf("%s, %v: the program says %d, counter of %v moved by %d", c.name, d, code, c.want, after[d][c.want]-before[d][c.want])
			}
		}
	}
	// A tag that the device took off; TestTagsThatADeviceTookOff has it on the program.
	frame := frameOf(gw4, egress.Egress, egress.UDP, 51820, 40000, 8)
	if _, r := egress.Decide(s.policy, egress.Egress, frame, egress.Meta{Cgroup: s.own, VLAN: true}); r != egress.VLAN {
		t.Errorf("an offloaded tag: %v", r)
	}
}

// TestShortFrames sends frames that end inside a header, which this kernel's test
// run may refuse, through a packet socket on the real device.
func TestShortFrames(t *testing.T) {
	modes(t, func(t *testing.T, w *world, options ...Option) {
		g := w.gate(w.tunnel(), options...)
		w.up()
		w.quiet()
		for name, length := range map[string]int{"inside IPv4": 14 + 19, "after Ethernet": 15} {
			frame := frameOf(gatewayV4, egress.Egress, egress.UDP, 51820, 40000, 8)[:length]
			before, err := g.Counters()
			if err != nil {
				t.Fatal(err)
			}
			w.in(w.black, func() error { return rawSend("bl0", frame) })
			after, err := g.Counters()
			if err != nil {
				t.Fatal(err)
			}
			if n := after[egress.Egress][egress.Short] - before[egress.Egress][egress.Short]; n != 1 {
				t.Errorf("%s: counted %d short frames", name, n)
			}
		}
	})
}

// rawSend hands a frame to a device as it is. ENOBUFS is how a drop is told.
func rawSend(dev string, frame []byte) error {
	index, err := link.Index(dev)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index, Protocol: 0x0008, Halen: 6})
	if err == unix.ENOBUFS {
		return nil
	}
	return err
}
