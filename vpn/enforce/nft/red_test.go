package nft

import (
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
	"rempart/internal/proof"
)

var voice = []Port{{unix.IPPROTO_UDP, 5004}, {unix.IPPROTO_TCP, 5063}}

// in red of a handset, from the tunnel: the voice ports and answers; to all else not a word.
func TestRedHearsVoiceAndAnswersAlone(t *testing.T) {
	proof.SFR(t, "FDP_VPN_EXT.1", "each attempt before the filter is there")
	w := newWorld(t)
	// bl0 plays the tunnel device, the air the rest of the inner network.
	var heard *net.UDPConn
	listen := func(port int) (*net.TCPListener, *net.UDPConn) {
		var l *net.TCPListener
		var u *net.UDPConn
		w.in(w.black, func() (err error) {
			if l, err = net.ListenTCP("tcp", &net.TCPAddr{Port: port}); err != nil {
				return err
			}
			u, err = net.ListenUDP("udp", &net.UDPAddr{Port: port})
			return err
		})
		t.Cleanup(func() { _, _ = l.Close(), u.Close() })
		return l, u
	}
	_, voiceUDP := listen(5004)
	listen(5063)
	_, otherUDP := listen(4000)
	dial := func(ns *link.NS, to netip.AddrPort) (err error) {
		w.in(ns, func() error {
			var c net.Conn
			if c, err = (&net.Dialer{Timeout: 40 * time.Millisecond}).Dial("tcp", to.String()); err == nil {
				return c.Close()
			}
			return nil
		})
		return err
	}
	udp := func(at *net.UDPConn, to netip.AddrPort) bool {
		heard = at
		w.in(w.air, func() error {
			c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("x"))
			return err
		})
		if err := heard.SetReadDeadline(time.Now().Add(30 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, _, err := heard.ReadFromUDP(make([]byte, 9))
		return err == nil
	}
	var outside *net.TCPListener
	w.in(w.air, func() (err error) { outside, err = net.ListenTCP("tcp", &net.TCPAddr{Port: 5061}); return err })
	defer outside.Close()
	for _, filtered := range []bool{false, true} {
		if filtered {
			w.put(Red("bl0", voice, nil))
		}
		for _, a := range []struct{ own, far netip.Addr }{{handset4, gateway4}, {handset6, gateway6}} {
			silent := func(err error) bool {
				var timeout net.Error
				return errors.As(err, &timeout) && timeout.Timeout()
			}
			if !udp(voiceUDP, at(a.own, 5004)) {
				t.Errorf("filtered %v: no sound at %v", filtered, a.own)
			}
			if err := dial(w.air, at(a.own, 5063)); err != nil {
				t.Errorf("filtered %v: no keys at %v: %v", filtered, a.own, err)
			}
			if udp(otherUDP, at(a.own, 4000)) == filtered {
				t.Errorf("filtered %v: a datagram to another port of %v", filtered, a.own)
			}
			if err := dial(w.air, at(a.own, 4000)); (err == nil) == filtered || err != nil && !silent(err) {
				t.Errorf("filtered %v: a connection to another port of %v: %v", filtered, a.own, err)
			}
			if err := dial(w.air, at(a.own, 5065)); errors.Is(err, unix.ECONNREFUSED) == filtered {
				t.Errorf("filtered %v: a closed port of %v: %v", filtered, a.own, err)
			}
			if err := dial(w.black, at(a.far, 5061)); err != nil {
				t.Errorf("filtered %v: red's own call to %v is not answered: %v", filtered, a.far, err)
			}
		}
		if err := dial(w.black, netip.MustParseAddrPort("127.0.0.1:4000")); err != nil {
			t.Errorf("filtered %v: loopback: %v", filtered, err)
		}
	}
	if err := w.differences(Red("bl0", voice, nil)); err != nil {
		t.Error(err)
	}
}

// Before there is a tunnel device red hears nothing.
func TestRedWithoutATunnel(t *testing.T) {
	w := newWorld(t)
	w.put(Red("", nil, nil))
	if err := w.differences(Red("", nil, nil)); err != nil {
		t.Error(err)
	}
	w.in(w.air, func() error {
		c, err := (&net.Dialer{Timeout: 30 * time.Millisecond}).Dial("tcp", at(handset4, 5063).String())
		if err == nil {
			return errors.Join(errors.New("a connection was made"), c.Close())
		}
		if errors.Is(err, unix.ECONNREFUSED) {
			t.Error("red answers")
		}
		return nil
	})
}

// A gateway passes from one handset to another what a call needs, and nothing else; a handset passes nothing on.
func TestForwardingIsForVoiceAlone(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "each attempt before the filter is there")
	proof.Need(t, "ip")
	red, far := space(t), space(t)
	// One device leads to both handsets, as wg0 does: a and b are addresses of one namespace with a policy route each way.
	own := netip.MustParsePrefix("10.77.0.1/24")
	a, b := netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("10.77.0.3")
	other := space(t)
	must := func(ns *link.NS, fn func() error) {
		t.Helper()
		if err := ns.Do(fn); err != nil {
			t.Fatal(err)
		}
	}
	must(red, func() error {
		err := errors.Join(link.AddBridge("wg0", net.HardwareAddr{2, 0, 0, 0, 7, 1}), link.SetUp("wg0"), link.AddAddr("wg0", own),
			link.Sysctl("net.ipv4.ip_forward", "1"), link.Sysctl("net.ipv4.conf.all.send_redirects", "0"), link.Sysctl("net.ipv4.conf.wg0.send_redirects", "0"))
		for name, ns := range map[string]*link.NS{"pa": far, "pb": other} {
			err = errors.Join(err, link.AddVeth(link.Port{Name: name}, link.Port{Name: "wg0", NS: ns}), link.SetMaster(name, "wg0"), link.SetUp(name))
		}
		return err
	})
	for ns, address := range map[*link.NS]netip.Addr{far: a, other: b} {
		must(ns, func() error {
			return errors.Join(link.SetUp("lo"), link.SetUp("wg0"), link.AddAddr("wg0", netip.PrefixFrom(address, 32)),
				link.AddRoute(link.Route{To: netip.MustParsePrefix("10.77.0.1/32"), Device: "wg0"}),
				link.AddRoute(link.Route{To: netip.MustParsePrefix("10.77.0.0/24"), Device: "wg0", Via: own.Addr()}))
		})
	}
	must(other, func() error {
		for _, p := range []int{5063, 4000} {
			l, err := net.ListenTCP("tcp", &net.TCPAddr{Port: p})
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = l.Close() })
		}
		return nil
	})
	dial := func(port uint16) (err error) {
		must(far, func() error {
			var c net.Conn
			if c, err = (&net.Dialer{Timeout: 100 * time.Millisecond}).Dial("tcp", at(b, port).String()); err == nil {
				return c.Close()
			}
			return nil
		})
		return err
	}
	var o *Owner
	must(red, func() (err error) { o, err = Open(); return err })
	defer o.Close()
	for _, c := range []struct {
		name        string
		put         []Table
		keys, other bool
	}{
		{"no filter", nil, true, true},
		{"a gateway", []Table{Red("wg0", []Port{{unix.IPPROTO_TCP, 5061}}, voice)}, true, false},
		{"a handset", []Table{Red("wg0", voice, nil)}, false, false},
	} {
		if err := o.Put(c.put...); err != nil {
			t.Fatal(err)
		}
		if err := dial(5063); (err == nil) != c.keys {
			t.Errorf("%s: keys from handset to handset: %v", c.name, err)
		}
		if err := dial(4000); (err == nil) != c.other || !c.other && errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: another port from handset to handset: %v", c.name, err)
		}
	}
}

// What nft(8) shows is what was meant.
func TestTablesAsOthersReadThem(t *testing.T) {
	proof.Need(t, "nft")
	w := newWorld(t)
	w.put(Released("bl0", tunnel, tunneld, own...), Red("wg0", voice, voice))
	w.in(w.black, func() error {
		out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
		for _, s := range []string{
			"flags owner", `type filter hook egress device "bl0" priority 2147483647; policy drop;`, `type filter hook ingress device "bl0"`,
			"meta skuid . meta l4proto . @nh,96,64 . th dport @out4 accept", "meta l4proto . @nh,64,256 . th sport @in6 accept",
			"elements = { 903 . udp . 203.0.113.11 . 203.0.113.1 . 51820 }", "udp . 2001:db8:113::1 . 2001:db8:113::11 . 51820",
			`iifname "lo" accept`, `iifname "wg0" ct state established,related accept`, `iifname "wg0" oifname "wg0" meta l4proto . th dport @forward accept`, "udp . 5004",
		} {
			if !strings.Contains(string(out), s) {
				t.Errorf("%q is not in:\n%s", s, out)
			}
		}
		return err
	})
}
