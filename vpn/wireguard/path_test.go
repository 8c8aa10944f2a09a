package wireguard

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"rempart/internal/link"
	"rempart/vpn/egress"
	"rempart/vpn/enforce/xfrm"
)

// answered is a handset's bind in a, a gateway's in b, and the endpoint by which the
// gateway has answered, so that the next send may be connected.
type answered struct {
	a, b      *end
	handset   *bind
	gateway   *bind
	at        <-chan received // what the gateway receives
	back      <-chan received
	e         *endpoint
	lastHeard conn.Endpoint // the handset, as the gateway sees it
}

func answer(t *testing.T, family int) *answered {
	t.Helper()
	w := &answered{handset: newBind(), gateway: newBind()}
	w.a, w.b = world(t)
	w.handset.only = w.b.endpoint(family)
	var receive []conn.ReceiveFunc
	in(t, w.b.black, func() (err error) { receive, _, err = w.gateway.Open(51820); return err })
	w.at = deliver(t, w.gateway, receive)
	in(t, w.a.black, func() (err error) { receive, _, err = w.handset.Open(0); return err })
	w.back = deliver(t, w.handset, receive)
	w.e = &endpoint{dst: w.b.endpoint(family)}
	w.turn(t)
	return w
}

// turn sends one packet there and takes the answer's endpoint, as wireguard-go does.
func (w *answered) turn(t *testing.T) {
	t.Helper()
	w.send(t, "ask")
	if err := w.gateway.Send([][]byte{[]byte("answer")}, w.lastHeard); err != nil {
		t.Fatal(err)
	}
	r := take(t, w.back)
	if string(r.packet) != "answer" {
		t.Fatalf("the answer is %q", r.packet)
	}
	w.e = r.from.(*endpoint)
}

// send sends one packet and sees it arrive; it returns where from.
func (w *answered) send(t *testing.T, text string) netip.AddrPort {
	t.Helper()
	if err := w.handset.Send([][]byte{[]byte(text)}, w.e); err != nil {
		t.Fatal(err)
	}
	r := take(t, w.at)
	for string(r.packet) == "busy" { // of a sender that has stopped; how long its packets take is nobody's to say
		r = take(t, w.at)
	}
	if string(r.packet) != text {
		t.Fatalf("got %q, want %q", r.packet, text)
	}
	w.lastHeard = r.from
	return r.from.(*endpoint).dst
}

// drain forgets what is still on its way to the gateway.
func (w *answered) drain() {
	for {
		select {
		case <-w.at:
		case <-time.After(20 * time.Millisecond):
			return
		}
	}
}

// connected asks the kernel where the handset's IPv4 socket is connected to, zero if nowhere.
func (w *answered) connected(t *testing.T) (to netip.AddrPort) {
	t.Helper()
	err := w.handset.v4.control(func(fd int) error {
		peer, err := unix.Getpeername(fd)
		if errors.Is(err, unix.ENOTCONN) {
			return nil
		}
		if v4, ok := peer.(*unix.SockaddrInet4); ok {
			to = netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), uint16(v4.Port))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// A handset's socket is connected from the first answer on, and not before; a
// packet without a path parts it, on the same port.
func TestHandsetConnectsOnAnAnswer(t *testing.T) {
	t.Parallel() // each world waits a second for its IPv6 addresses
	w := answer(t, 0)
	first := w.lastHeard.DstToString()
	if to := w.connected(t); to.IsValid() {
		t.Fatalf("connected to %s before the gateway had answered", to)
	}
	for range 3 {
		if from := w.send(t, "data"); from.String() != first {
			t.Errorf("connected it sends from %s, before from %s", from, first)
		}
		if to := w.connected(t); to != w.b.endpoint(0) {
			t.Fatalf("connected to %v, want %v", to, w.b.endpoint(0))
		}
	}
	w.turn(t) // it hears the gateway, and the next answer is the same path
	w.send(t, "data")
	if to := w.connected(t); to != w.b.endpoint(0) {
		t.Errorf("after another answer connected to %v", to)
	}
	w.e.ClearSrc() // as wireguard-go does when a handshake gets no answer
	if from := w.send(t, "handshake"); from.String() != first {
		t.Errorf("parted it sends from %s, before from %s", from, first)
	}
	if to := w.connected(t); to.IsValid() {
		t.Errorf("without a path it is connected to %s", to)
	}
	w.turn(t)
	w.send(t, "data")
	if to := w.connected(t); to != w.b.endpoint(0) {
		t.Errorf("after the next answer connected to %v", to)
	}
}

// IPv6 and a gateway's sockets are never connected.
func TestOthersAreNotConnected(t *testing.T) {
	t.Parallel()
	w := answer(t, 1)
	w.send(t, "data")
	w.turn(t)
	if w.handset.v6.path != nil || w.connected(t).IsValid() {
		t.Error("an IPv6 path is connected")
	}
	w = answer(t, 0)
	w.send(t, "data")
	if w.gateway.v4.path != nil {
		t.Error("a gateway's socket is connected")
	}
}

// What a batch looks like at the other end does not depend on the connection.
func TestConnectedBatches(t *testing.T) {
	t.Parallel()
	for _, gso := range []bool{true, false} {
		w := answer(t, 0)
		if !gso {
			w.handset.v4.gso.Store(false)
		}
		var batch [][]byte
		for i := range conn.IdealBatchSize {
			size := 1452
			if i%40 == 39 || i > 100 {
				size = 1 + i*3%300
			}
			batch = append(batch, bytes.Repeat([]byte{byte(i)}, size))
		}
		if err := w.handset.Send(batch, w.e); err != nil {
			t.Fatal(err)
		}
		if !w.connected(t).IsValid() {
			t.Fatal("not connected")
		}
		for i, want := range batch {
			if r := take(t, w.at); !bytes.Equal(r.packet, want) {
				t.Fatalf("gso %v, packet %d: %d bytes of %d, want %d of %d", gso, i, len(r.packet), r.packet[0], len(want), i)
			}
		}
	}
}

// Each change of what a path consists of: the socket that was connected along it does
// what one that never was does, and where that one is refused a handset asks the route.
func TestPathChanges(t *testing.T) {
	t.Parallel()
	old, other := netip.MustParseAddr("203.0.113.11"), netip.MustParseAddr("203.0.113.12")
	readdress := []string{"ip addr del 203.0.113.11/24 dev wwan0", "ip addr add 203.0.113.12/24 dev wwan0"}
	for _, c := range []struct {
		name    string
		family  int
		change  []string
		refused bool       // the old path, by a socket that never was connected; the error varies by kernel
		from    netip.Addr // where the handset sends from all the same
		want    error      // or what it says
	}{
		{name: "nothing", from: old},
		{name: "another address comes", change: readdress[1:], from: old},
		{name: "the address changes", change: readdress, refused: true, from: other},
		{name: "the address goes", change: readdress[:1], refused: true, want: unix.ENETUNREACH},
		{name: "the device goes down", change: []string{"ip link set wwan0 down"}, refused: true, want: unix.ENETUNREACH},
		{name: "the device goes", change: []string{"ip link del wwan0"}, refused: true, want: unix.ENETUNREACH},
		{name: "the IPv6 address changes", family: 1, refused: true, from: netip.MustParseAddr("2001:db8:113::12"),
			change: []string{"ip addr del 2001:db8:113::11/64 dev wwan0", "ip addr add 2001:db8:113::12/64 dev wwan0 nodad"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w, twin := answer(t, c.family), newBind()
			w.send(t, "data")
			if w.connected(t).IsValid() != (c.family == 0) {
				t.Fatal("not as a handset's socket should be")
			}
			in(t, w.a.black, func() error { _, _, err := twin.Open(0); return err })
			defer twin.Close()
			for _, line := range c.change {
				in(t, w.a.black, func() error { return command(strings.Fields(line)...) })
			}
			err := w.handset.Send([][]byte{[]byte("after")}, w.e)
			if got := twin.Send([][]byte{[]byte("twin")}, w.e); (got != nil) != c.refused || c.refused && !gone(got) {
				t.Errorf("never connected: %v, refused is %v", got, c.refused)
			}
			if !errors.Is(err, c.want) {
				t.Fatalf("connected before: %v, want %v", err, c.want)
			}
			if c.refused && w.connected(t).IsValid() {
				t.Error("still connected")
			}
			if !c.from.IsValid() {
				return
			}
			if r := take(t, w.at); string(r.packet) != "after" || r.from.DstIP() != c.from {
				t.Errorf("%q comes from %s, want %s", r.packet, r.from.DstToString(), c.from)
			} else {
				w.lastHeard = r.from
			}
			w.drain()
			w.turn(t)
			if from := w.send(t, "data"); from.Addr() != c.from || w.connected(t).IsValid() != (c.family == 0) {
				t.Errorf("after the answer it comes from %s, connected to %v", from, w.connected(t))
			}
		})
	}
}

func command(argv ...string) error {
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %s", argv, err, out)
	}
	return nil
}

// A second radio takes the route: what is under way stays on the first, with its
// address, until a handshake goes by the second.
func TestSecondRadio(t *testing.T) {
	t.Parallel()
	w := answer(t, 0)
	if err := link.AddVeth(link.Port{Name: "usb1", NS: w.a.black}, link.Port{Name: "usb1", NS: w.b.black}); err != nil {
		t.Fatal(err)
	}
	in(t, w.b.black, func() error {
		return errors.Join(link.AddAddr("usb1", netip.MustParsePrefix("198.51.100.1/24")), link.SetUp("usb1"))
	})
	in(t, w.a.black, func() error {
		return errors.Join(link.AddAddr("usb1", netip.MustParsePrefix("198.51.100.11/24")), link.SetUp("usb1"))
	})
	w.send(t, "data")
	in(t, w.a.black, func() error {
		return link.AddRoute(link.Route{To: netip.MustParsePrefix("203.0.113.1/32"), Device: "usb1", Via: netip.MustParseAddr("198.51.100.1")})
	})
	for range 3 {
		if from := w.send(t, "data"); from.Addr() != netip.MustParseAddr("203.0.113.11") {
			t.Errorf("it comes from %s, over two radios", from)
		}
	}
	w.e.ClearSrc()
	var from netip.AddrPort
	await(t, 5*time.Second, "answer by the second radio", func() bool {
		if err := w.handset.Send([][]byte{[]byte("ask")}, w.e); err != nil {
			return false
		}
		select {
		case r := <-w.at:
			w.lastHeard, from = r.from, r.from.(*endpoint).dst
			return true
		case <-time.After(20 * time.Millisecond):
			return false
		}
	})
	if from.Addr() != netip.MustParseAddr("198.51.100.11") {
		t.Errorf("a handshake comes from %s", from)
	}
	w.drain()
	w.turn(t)
	if from := w.send(t, "data"); from.Addr() != netip.MustParseAddr("198.51.100.11") || !w.connected(t).IsValid() {
		t.Errorf("afterwards it comes from %s, connected to %v", from, w.connected(t))
	}
	// And the radio that carries it is pulled out: the next packet goes by the other.
	in(t, w.a.black, func() error { return command("ip", "link", "del", "usb1") })
	if from := w.send(t, "data"); from.Addr() != netip.MustParseAddr("203.0.113.11") {
		t.Errorf("after the second radio it comes from %s", from)
	}
}

// What the network says about a packet ends neither the receiver nor the send.
func TestRefusedPortDoesNotEndTheTunnel(t *testing.T) {
	t.Parallel()
	w := answer(t, 0)
	w.send(t, "data")
	if err := w.gateway.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 50 { // each is answered by ICMP, and by turns the receiver or the sender hears of it
		if err := w.handset.Send([][]byte{[]byte("to nobody")}, w.e); err != nil {
			t.Fatalf("send %d: %v", i, err)
		}
		time.Sleep(time.Millisecond)
	}
	var receive []conn.ReceiveFunc
	in(t, w.b.black, func() (err error) { receive, _, err = w.gateway.Open(51820); return err })
	w.at = deliver(t, w.gateway, receive)
	w.turn(t)
	w.send(t, "data")
	if !w.connected(t).IsValid() {
		t.Error("not connected again")
	}
}

// A handset hears its gateway alone, connected or not.
func TestOnlyTheGatewayIsHeard(t *testing.T) {
	t.Parallel()
	for _, connected := range []bool{false, true} {
		w := answer(t, 0)
		if connected {
			w.send(t, "data")
		}
		if w.connected(t).IsValid() != connected {
			t.Fatal("not as wanted")
		}
		in(t, w.b.black, func() error {
			c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(203, 0, 113, 1), Port: 51821}, net.UDPAddrFromAddrPort(w.lastAddr()))
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("another port"))
			return err
		})
		if err := w.gateway.Send([][]byte{[]byte("gateway")}, w.lastHeard); err != nil {
			t.Fatal(err)
		}
		if r := take(t, w.back); string(r.packet) != "gateway" {
			t.Errorf("connected %v: heard %q from %s", connected, r.packet, r.from.DstToString())
		}
	}
}

func (w *answered) lastAddr() netip.AddrPort { return w.lastHeard.(*endpoint).dst }

// Once the namespace is closed, a connected socket sends nothing, however it was used
// at that moment; opened again, it goes on.
func TestClosedMeansConnectedToo(t *testing.T) {
	t.Parallel()
	w := answer(t, 0)
	classes := xfrm.Classes(egress.Policy{Classes: []egress.Class{{Addr: w.b.outer[0], Proto: egress.UDP, Port: 51820}}})
	for range 20 {
		in(t, w.a.black, func() error { return xfrm.Put(classes) })
		w.turn(t)
		w.send(t, "data")
		if !w.connected(t).IsValid() {
			t.Fatal("not connected")
		}
		var busy sync.WaitGroup
		stop := make(chan struct{})
		busy.Go(func() {
			for {
				select {
				case <-stop:
					return
				default: // refused or not: the route is looked up all the time
					w.handset.v4.control(func(fd int) error { _, err := unix.Write(fd, []byte("busy")); return err })
				}
			}
		})
		in(t, w.a.black, func() error { return xfrm.Put(nil) })
		err := w.handset.v4.control(func(fd int) error { _, err := unix.Write(fd, []byte("late")); return err })
		close(stop)
		busy.Wait()
		if !errors.Is(err, unix.EPERM) {
			t.Fatalf("a connected socket sends to a gateway that is closed: %v", err)
		}
		if err := w.handset.Send([][]byte{[]byte("late")}, w.e); !errors.Is(err, unix.EPERM) {
			t.Fatalf("it is sent: %v", err)
		}
		w.drain()
	}
}

// Senders with and without a path at once: each packet arrives, and in the end the
// socket is as the last one wanted it.
func TestManySenders(t *testing.T) {
	t.Parallel()
	w := answer(t, 0)
	const each = 200
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			e := &endpoint{dst: w.e.dst}
			if i%2 == 0 {
				e.src = w.e.src
			}
			for range each {
				if err := w.handset.Send([][]byte{{byte(i)}}, e); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	for range 4 * each {
		take(t, w.at)
	}
}

func FuzzOrigin(f *testing.F) {
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{1}, 28))
	f.Fuzz(func(t *testing.T, src []byte) {
		if device, source, ok := origin(src); ok && (device == 0 || source == [4]byte{}) {
			t.Fatal("no path, and taken for one")
		}
	})
}
