package xfrm

import (
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/vpn/egress"
)

var (
	handset4 = netip.MustParseAddr("203.0.113.11")
	handset6 = netip.MustParseAddr("2001:db8:113::11")
	gateway4 = netip.MustParseAddr("203.0.113.1")
	gateway6 = netip.MustParseAddr("2001:db8:113::1")
)

var classes = egress.Policy{Classes: []egress.Class{
	{Gateway: "g", Addr: gateway4, Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 1},
	{Gateway: "g", Addr: gateway6, Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 1},
}}

// world is black with its device bl0, and the air behind it.
type world struct {
	t          *testing.T
	black, air *link.NS
}

func newWorld(t *testing.T) *world {
	t.Helper()
	proof.NeedRoot(t)
	w := &world{t: t, black: space(t), air: space(t)}
	macs := []net.HardwareAddr{{2, 0, 0, 0, 0, 11}, {2, 0, 0, 0, 0, 1}}
	w.in(w.black, func() error {
		return link.AddVeth(link.Port{Name: "bl0", MAC: macs[0]}, link.Port{Name: "air0", MAC: macs[1], NS: w.air})
	})
	end := func(dev string, own, far []netip.Addr, mac net.HardwareAddr) func() error {
		return func() error {
			err := errors.Join(link.SetUp("lo"), link.SetUp(dev))
			for i := range own {
				err = errors.Join(err, link.AddAddr(dev, netip.PrefixFrom(own[i], own[i].BitLen())), link.AddNeighbour(dev, far[i], mac),
					link.AddRoute(link.Route{To: netip.PrefixFrom(far[i], far[i].BitLen()), Device: dev}))
			}
			return err
		}
	}
	w.in(w.black, end("bl0", []netip.Addr{handset4, handset6}, []netip.Addr{gateway4, gateway6}, macs[1]))
	w.in(w.air, end("air0", []netip.Addr{gateway4, gateway6}, []netip.Addr{handset4, handset6}, macs[0]))
	return w
}

func space(t *testing.T) *link.NS {
	t.Helper()
	ns, err := link.Create("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

func (w *world) in(ns *link.NS, fn func() error) {
	w.t.Helper()
	if err := ns.Do(fn); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) put(policies []Policy) {
	w.t.Helper()
	w.in(w.black, func() error { return Put(policies) })
}

func (w *world) differences(want []Policy) (err error) {
	w.t.Helper()
	w.in(w.black, func() error { err = ReadBack(want); return nil })
	return err
}

// send sends one datagram and returns the sender's error.
func (w *world) send(ns *link.NS, from, to netip.AddrPort) (sent error) {
	w.t.Helper()
	w.in(ns, func() error {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(from))
		if err != nil {
			return err
		}
		defer c.Close()
		_, sent = c.WriteToUDPAddrPort([]byte("rempart test"), to)
		return nil
	})
	return sent
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// Everything that goes by a route is refused at once but the classes, whoever sends; loopback is not asked.
func TestOnlyTheClassesAreRouted(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "each attempt before the default is set")
	w := newWorld(t)
	attempts := []struct {
		what     string
		from, to netip.AddrPort
		pass     bool
	}{
		{"the class, IPv4", at(handset4, 51820), at(gateway4, 51820), true},
		{"the class, IPv6", at(handset6, 51820), at(gateway6, 51820), true},
		{"another port, IPv4", at(handset4, 51820), at(gateway4, 51821), false},
		{"another port, IPv6", at(handset6, 51820), at(gateway6, 51821), false},
	}
	for _, state := range []string{"accept", "closed", "released", "closed again"} {
		switch state {
		case "closed", "closed again":
			w.put(nil)
		case "released":
			w.put(Classes(classes))
		}
		for _, a := range attempts {
			want := state == "accept" || state == "released" && a.pass
			err := w.send(w.black, a.from, a.to)
			if (err == nil) != want || err != nil && !errors.Is(err, unix.EPERM) {
				t.Errorf("%s, %s: %v", state, a.what, err)
			}
		}
		if err := w.send(w.black, netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("127.0.0.1:9")); err != nil {
			t.Errorf("%s: loopback: %v", state, err)
		}
	}
}

// What comes from outside is neither taken in nor answered: no datagram arrives, no connection is refused, no error is sent.
func TestSilenceInbound(t *testing.T) {
	proof.SFR(t, "FDP_VPN_EXT.1", "the same before the default is set")
	w := newWorld(t)
	var inside *net.UDPConn
	w.in(w.black, func() (err error) { inside, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 4000}); return err })
	defer inside.Close()
	for _, closed := range []bool{false, true} {
		if closed {
			w.put(nil)
		}
		if err := w.send(w.air, at(gateway4, 51820), at(handset4, 4000)); err != nil {
			t.Fatal(err)
		}
		if err := inside.SetReadDeadline(time.Now().Add(30 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := inside.ReadFromUDP(make([]byte, 99)); (err == nil) == closed {
			t.Errorf("closed %v: a datagram arrived: %v", closed, err == nil)
		}
		w.in(w.air, func() error {
			c, err := (&net.Dialer{Timeout: 50 * time.Millisecond}).Dial("tcp", at(handset4, 4001).String())
			if err == nil {
				return errors.Join(errors.New("somebody listens"), c.Close())
			}
			if refused := errors.Is(err, unix.ECONNREFUSED); refused == closed {
				t.Errorf("closed %v: the connection was refused: %v", closed, err)
			}
			return nil
		})
	}
	w.put(Classes(classes))
	if err := w.send(w.air, at(gateway4, 51820), at(handset4, 4000)); err != nil {
		t.Fatal(err)
	}
	if err := inside.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := inside.ReadFromUDP(make([]byte, 99)); err != nil {
		t.Errorf("released: what the gateway sends does not arrive: %v", err)
	}
}

// A device that appears after the default was set is under it like all others.
func TestANewDeviceIsUnderTheDefault(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the same send before the default is set")
	w := newWorld(t)
	plug := func(name, address string) error {
		w.in(w.black, func() error {
			return errors.Join(link.AddVeth(link.Port{Name: name}, link.Port{Name: name + "x", NS: w.air}), link.SetUp(name),
				link.AddAddr(name, netip.MustParsePrefix(address)))
		})
		own := netip.MustParsePrefix(address)
		return w.send(w.black, at(own.Addr(), 0), at(own.Addr().Next(), 9))
	}
	if err := plug("usb0", "192.0.2.1/30"); err != nil {
		t.Fatalf("twin: %v", err)
	}
	w.put(Classes(classes))
	if err := plug("usb1", "192.0.2.5/30"); !errors.Is(err, unix.EPERM) {
		t.Errorf("a send on the new device: %v", err)
	}
}

// Each way to loosen or add to the policies is a difference; so is one that is missing.
func TestReadBackNotices(t *testing.T) {
	proof.SFR(t, "FPT_TST_EXT.1", "the read-back of what was put in force")
	proof.Need(t, "ip")
	want := Classes(classes)
	for what, command := range map[string]string{
		"default of out":         "ip xfrm policy setdefault out accept",
		"default of in":          "ip xfrm policy setdefault in accept",
		"default of fwd":         "ip xfrm policy setdefault fwd accept",
		"not wanted: allow out":  "ip xfrm policy add dir out src 0.0.0.0/0 dst 198.51.100.0/24",
		"not wanted: allow fwd":  "ip xfrm policy add dir fwd src ::/0 dst ::/0",
		"not wanted: block out":  "ip xfrm policy add dir out src 0.0.0.0/0 dst 203.0.113.1/32 action block priority 7",
		"bytes of attributes":    "ip xfrm policy add dir out src 0.0.0.0/0 dst 192.0.2.9/32 tmpl src 203.0.113.11 dst 192.0.2.9 proto esp mode tunnel",
		"wanted and not":         "ip xfrm policy delete dir out src 0.0.0.0/0 dst 203.0.113.1/32 proto udp dport 51820",
		"protocol 17":            "ip xfrm policy update dir out src 0.0.0.0/0 dst 203.0.113.1/32 proto udp dport 51820 priority 3",
		"bl0/disable_xfrm":       "echo 1 > /proc/sys/net/ipv4/conf/bl0/disable_xfrm",
		"all/disable_policy":     "echo 1 > /proc/sys/net/ipv4/conf/all/disable_policy",
		"ipv6/conf/bl0/disable_": "echo 1 > /proc/sys/net/ipv6/conf/bl0/disable_policy",
	} {
		w := newWorld(t)
		if err := w.differences(want); err == nil {
			t.Fatal("a namespace without any policy is not noticed")
		}
		w.put(want)
		if err := w.differences(want); err != nil {
			t.Fatal(err)
		}
		w.in(w.black, func() error {
			out, err := exec.Command("sh", "-c", command).CombinedOutput()
			if err != nil {
				t.Errorf("%s: %v: %s", command, err, out)
			}
			return nil
		})
		if err := w.differences(want); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: error %v does not say %q", command, err, what)
		}
		// Putting it in force again mends everything but what is a device's.
		w.put(want)
		if err := w.differences(want); (err == nil) == strings.Contains(what, "disable_") {
			t.Errorf("%s: put in force again: %v", command, err)
		}
	}
}

// A policy that a socket brought along lets it past the default; the read-back sees it while the socket lives.
func TestReadBackNoticesASocketsOwnPolicy(t *testing.T) {
	proof.SFR(t, "FPT_TST_EXT.1", "the read-back before")
	w := newWorld(t)
	w.put(nil)
	own := Policy{Direction: Out, Source: everywhere(false), Destination: everywhere(false)}
	var fd int
	w.in(w.black, func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0); err != nil {
			return err
		}
		const ipXfrmPolicy = 17 // IP_XFRM_POLICY
		return unix.SetsockoptString(fd, unix.SOL_IP, ipXfrmPolicy, string(own.info()))
	})
	if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: gateway4.As4()}); err != nil {
		t.Logf("the socket's policy does not help it: %v", err)
	}
	if err := w.differences(nil); err == nil || !strings.Contains(err.Error(), "in force and not wanted") {
		t.Errorf("error %v", err)
	}
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
}

// What ip(8) shows is what was meant.
func TestPoliciesAsOthersReadThem(t *testing.T) {
	proof.Need(t, "ip")
	w := newWorld(t)
	inner := []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/64")}
	answering := egress.Policy{Classes: []egress.Class{{Gateway: "g", Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 1}}}
	for _, c := range []struct {
		policies []Policy
		says     []string
	}{
		{Classes(classes), []string{"src 0.0.0.0/0 dst 203.0.113.1/32 proto udp dport 51820 \n\tdir out", "src 2001:db8:113::1/128 dst ::/0 proto udp sport 51820 \n\tdir in"}},
		{Classes(answering), []string{"src ::/0 dst ::/0 proto udp sport 51820 \n\tdir out", "src 0.0.0.0/0 dst 0.0.0.0/0 proto udp dport 51820 \n\tdir in"}},
		{Networks(inner, false), []string{"src 0.0.0.0/0 dst 10.77.0.0/16 \n\tdir out", "src fd77::/64 dst ::/0 \n\tdir in"}},
		{Networks(inner, true), []string{"src 10.77.0.0/16 dst 10.77.0.0/16 \n\tdir fwd"}},
	} {
		w.put(c.policies)
		w.in(w.black, func() error {
			out, err := exec.Command("ip", "xfrm", "policy").CombinedOutput()
			for _, s := range c.says {
				if !strings.Contains(string(out), s) {
					t.Errorf("%q is not in:\n%s", s, out)
				}
			}
			if n := strings.Count(string(out), "dir "); n != len(c.policies) {
				t.Errorf("%d policies, want %d:\n%s", n, len(c.policies), out)
			}
			return err
		})
	}
}

// Of a link that leases its addresses DHCP is routed, and ND with the router and of linkd, closed or not; no other message is.
func TestLinkLayerMinimum(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "each attempt before the default is set")
	w := newWorld(t)
	router, local, stranger := netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fe80::b"), netip.MustParseAddr("fe80::99")
	var index int
	w.in(w.black, func() (err error) {
		if index, err = link.Index("bl0"); err != nil {
			return err
		}
		mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
		return errors.Join(link.AddAddr("bl0", netip.PrefixFrom(local, 64)), link.AddNeighbour("bl0", router, mac), link.AddNeighbour("bl0", stranger, mac))
	})
	icmp6 := func(kind byte, to string) (sent error) {
		w.in(w.black, func() error {
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Bind(fd, &unix.SockaddrInet6{Addr: local.As16(), ZoneId: uint32(index)}); err != nil {
				return err
			}
			sent = unix.Sendto(fd, append([]byte{kind}, make([]byte, 23)...), 0, &unix.SockaddrInet6{Addr: netip.MustParseAddr(to).As16(), ZoneId: uint32(index)})
			return nil
		})
		return sent
	}
	facts := egress.LinkFacts{Linkd: 7, MAC: [6]byte{2, 0, 0, 0, 0, 11}, Addr4: handset4, Router4: gateway4, Local6: local, Addr6: handset6, Router6: router}
	for _, closed := range []bool{false, true} {
		if closed {
			w.put(Link(facts))
			if err := w.differences(Link(facts)); err != nil {
				t.Error(err)
			}
		}
		for _, c := range []struct {
			what string
			send func() error
			pass bool
		}{
			{"DHCP", func() error { return w.send(w.black, at(handset4, 68), at(gateway4, 67)) }, true},
			{"port 67 from another port", func() error { return w.send(w.black, at(handset4, 69), at(gateway4, 67)) }, false},
			{"router solicitation", func() error { return icmp6(133, "ff02::2") }, true},
			{"router solicitation to a host", func() error { return icmp6(133, "fe80::99") }, false},
			{"router advertisement", func() error { return icmp6(134, "ff02::1") }, false},
			{"neighbour solicitation", func() error { return icmp6(135, "ff02::1:ff00:1") }, true},
			{"neighbour advertisement", func() error { return icmp6(136, "fe80::1") }, true},
			{"neighbour advertisement to a stranger", func() error { return icmp6(136, "fe80::99") }, false},
			{"echo request", func() error { return icmp6(128, "fe80::1") }, false},
		} {
			if err := c.send(); (err == nil) != (c.pass || !closed) {
				t.Errorf("closed %v, %s: %v", closed, c.what, err)
			}
		}
	}
	if Link(egress.LinkFacts{}) != nil {
		t.Error("a link without facts lets something through")
	}
}

// A connected socket keeps the route that it was allowed. Put makes the kernel ask again,
// also when the socket is used at the very moment when the policies go.
func TestConnectedSocketsAreAskedAgain(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "IPsec default: connected sockets")
	w := newWorld(t)
	for _, far := range []netip.Addr{gateway4, gateway6} {
		w.put(Classes(classes))
		var c net.Conn
		w.in(w.black, func() (err error) {
			c, err = net.Dial("udp", netip.AddrPortFrom(far, 51820).String())
			return err
		})
		defer c.Close()
		write := func() error { _, err := c.Write([]byte("late")); return err }
		if err := write(); err != nil {
			t.Fatalf("%v: an allowed packet: %v", far, err)
		}
		// The failing twin: the policies go, and nothing else happens.
		w.in(w.black, func() error { _, err := ask(nl.XFRM_MSG_FLUSHPOLICY, unix.NLM_F_ACK, 0, nil); return err })
		if err := write(); err != nil {
			t.Errorf("%v: the twin is refused (%v): Put need not set the default twice", far, err)
		}
		for range 50 {
			w.put(Classes(classes))
			if err := write(); err != nil {
				t.Fatalf("%v: an allowed packet: %v", far, err)
			}
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				for {
					select {
					case <-stop:
						return
					default:
						_ = write() // refused or not
					}
				}
			}()
			w.put(nil)
			err := write()
			close(stop)
			<-stopped
			if !errors.Is(err, unix.EPERM) {
				t.Fatalf("%v: a connected socket sends after the policies are gone: %v", far, err)
			}
		}
	}
}
