package wireguard

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// openBind opens a bind and delivers all that it receives.
func openBind(t *testing.T) (*bind, uint16, <-chan received) {
	t.Helper()
	b := newBind()
	receive, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	return b, port, deliver(t, b, receive)
}

func deliver(t *testing.T, b conn.Bind, receive []conn.ReceiveFunc) <-chan received {
	t.Cleanup(func() { b.Close() })
	out := make(chan received, 4096)
	for _, f := range receive {
		go func() {
			packets, sizes, from := make([][]byte, conn.IdealBatchSize), make([]int, conn.IdealBatchSize), make([]conn.Endpoint, conn.IdealBatchSize)
			for i := range packets {
				packets[i] = make([]byte, device.MaxMessageSize)
			}
			for {
				n, err := f(packets, sizes, from)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				for i := range n {
					out <- received{bytes.Clone(packets[i][:sizes[i]]), from[i]}
				}
			}
		}()
	}
	return out
}

type received struct {
	packet []byte
	from   conn.Endpoint
}

func take(t *testing.T, c <-chan received) received {
	t.Helper()
	select {
	case r := <-c:
		return r
	case <-time.After(5 * time.Second):
		t.Fatal("nothing arrived")
		return received{}
	}
}

// A gateway speaks to peers of both families in turn. This is what
// conn.StdNetBind gets wrong; the failing twin is TestStdNetBindMixesFamilies.
func TestFamiliesInTurn(t *testing.T) {
	if err := inTurn(t, newBind()); err != nil {
		t.Error(err)
	}
}

// The twin: the day it fails, wireguard-go is mended and our bind can go.
func TestStdNetBindMixesFamilies(t *testing.T) {
	for range 5 { // its pool may be empty by chance, under the race detector often
		if err := inTurn(t, conn.NewStdNetBind()); err != nil {
			t.Log(err)
			return
		}
	}
	t.Error("conn.StdNetBind sends right: bind is no longer needed for that")
}

// inTurn sends from one end of a world to the other's two addresses in turn.
// Not on loopback: half an address is zeros, and those lead to it as well.
func inTurn(t *testing.T, sender conn.Bind) error {
	t.Helper()
	a, b := world(t)
	in(t, a.black, func() error { _, _, err := sender.Open(0); return err })
	defer sender.Close()
	listener := newBind()
	var receive []conn.ReceiveFunc
	in(t, b.black, func() (err error) { receive, _, err = listener.Open(51820); return err })
	got := deliver(t, listener, receive)
	for i := range 20 {
		e, err := sender.ParseEndpoint(b.endpoint(i % 2).String())
		if err != nil {
			return err
		}
		want := fmt.Sprintf("packet %d to %s", i, e.DstToString())
		if err := sender.Send([][]byte{[]byte(want)}, e); err != nil {
			return fmt.Errorf("%s: %w", want, err)
		}
		select {
		case r := <-got:
			if string(r.packet) != want {
				return fmt.Errorf("got %q, want %q", r.packet, want)
			}
		case <-time.After(time.Second):
			return fmt.Errorf("%s went elsewhere", want)
		}
	}
	return nil
}

// Packets of any lengths arrive whole, in order and alone, offloads or not, and
// the answer goes to where they came from.
func TestBatchesArriveAsTheyWere(t *testing.T) {
	for _, gso := range []bool{true, false} {
		for _, to := range []string{"127.0.0.1", "::1"} {
			t.Run(fmt.Sprintf("%s gso %v", to, gso), func(t *testing.T) {
				a, aPort, back := openBind(t)
				b, bPort, got := openBind(t)
				if !gso {
					a.v4.gso.Store(false)
					a.v6.gso.Store(false)
				}
				var batch [][]byte
				for i := range conn.IdealBatchSize {
					size := 1452
					switch {
					case i%40 == 39:
						size = 100 + i
					case i > 100:
						size = 1 + i*3%300
					}
					batch = append(batch, bytes.Repeat([]byte{byte(i)}, size))
				}
				e, err := a.ParseEndpoint(netip.AddrPortFrom(netip.MustParseAddr(to), bPort).String())
				if err != nil {
					t.Fatal(err)
				}
				if err := a.Send(batch, e); err != nil {
					t.Fatal(err)
				}
				var from conn.Endpoint
				for i, want := range batch {
					r := take(t, got)
					if from = r.from; !bytes.Equal(r.packet, want) {
						t.Fatalf("packet %d: %d bytes of %d, want %d of %d", i, len(r.packet), r.packet[0], len(want), i)
					}
				}
				if from.DstToString() != netip.AddrPortFrom(netip.MustParseAddr(to), aPort).String() {
					t.Errorf("it came from %s", from.DstToString())
				}
				if err := b.Send([][]byte{[]byte("answer")}, from); err != nil {
					t.Fatal(err)
				}
				if r := take(t, back); string(r.packet) != "answer" {
					t.Errorf("the answer is %q", r.packet)
				}
			})
		}
	}
}

// The answer leaves from the address that was spoken to, not from the route's.
func TestAnswerComesFromTheAddressAsked(t *testing.T) {
	b, port, got := openBind(t)
	c, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.77"), port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("ask")); err != nil {
		t.Fatal(err)
	}
	if err := b.Send([][]byte{[]byte("answer")}, take(t, got).from); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	p := make([]byte, 16)
	if n, err := c.Read(p); err != nil || string(p[:n]) != "answer" { // a connected socket hears 127.0.0.77 only
		t.Fatalf("got %q, %v", p[:n], err)
	}
}

func TestBindCountsDataAndFailures(t *testing.T) {
	b, _, _ := openBind(t)
	e, err := b.ParseEndpoint("[::ffff:127.0.0.1]:9")
	if err != nil || e.DstToString() != "127.0.0.1:9" {
		t.Fatal(e, err)
	}
	keepalive, data, handshake := make([]byte, 32), make([]byte, 48), make([]byte, 148)
	keepalive[0], data[0], handshake[0] = 4, 4, 1
	b.Send([][]byte{keepalive, data, handshake, data}, e)
	if n := b.data.Load(); n != 2 {
		t.Errorf("%d data packets, want 2", n)
	}
	b.failed.Store(nil)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Send([][]byte{data}, e); !errors.Is(err, net.ErrClosed) || b.failed.Load() == nil {
		t.Errorf("closed: %v", err)
	}
	if err := b.Send([][]byte{data}, &conn.StdNetEndpoint{}); !errors.Is(err, conn.ErrWrongEndpointType) {
		t.Errorf("another bind's endpoint: %v", err)
	}
	if b.SetMark(1) == nil || b.SetMark(0) != nil {
		t.Error("a mark was taken")
	}
}

func TestPortTaken(t *testing.T) {
	b, port, _ := openBind(t)
	if _, _, err := b.Open(0); !errors.Is(err, conn.ErrBindAlreadyOpen) {
		t.Errorf("opened twice: %v", err)
	}
	other := newBind()
	if _, _, err := other.Open(port); !errors.Is(err, unix.EADDRINUSE) || other.v4 != nil {
		t.Errorf("a taken port: %v", err)
	}
	// Free in IPv4, taken in IPv6: nothing may stay open.
	v6, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6unspecified})
	if err != nil {
		t.Fatal(err)
	}
	defer v6.Close()
	half := uint16(v6.LocalAddr().(*net.UDPAddr).Port)
	if _, _, err := other.Open(half); !errors.Is(err, unix.EADDRINUSE) || other.v4 != nil || other.v6 != nil {
		t.Errorf("a port taken in one family: %v", err)
	}
}

// pack against what it means: in order, whole, and each message cut by the
// kernel's rule gives the packets back.
func FuzzPack(f *testing.F) {
	f.Add([]byte{10, 10, 10, 5, 10, 20, 20}, true)
	f.Add(bytes.Repeat([]byte{255}, 200), true)
	f.Add([]byte{1, 2, 3}, false)
	f.Fuzz(func(t *testing.T, sizes []byte, gso bool) {
		var packets [][]byte
		for i, s := range sizes {
			packets = append(packets, bytes.Repeat([]byte{byte(i)}, 1+int(s)*8))
		}
		msgs := make([]ipv6.Message, conn.IdealBatchSize)
		rest := packets
		for len(rest) > 0 {
			n := pack(msgs, rest, nil, nil, gso)
			if n == 0 {
				t.Fatal("no progress")
			}
			for _, m := range msgs[:n] {
				total, size := 0, len(m.Buffers[0])
				for i, p := range m.Buffers {
					if !bytes.Equal(p, rest[0]) {
						t.Fatal("out of order")
					}
					if len(p) > size || len(p) < size && i != len(m.Buffers)-1 {
						t.Fatalf("a packet of %d among %d", len(p), size)
					}
					total += len(p)
					rest = rest[1:]
				}
				if len(m.Buffers) > maxSegments || total > maxPayload || !gso && len(m.Buffers) != 1 {
					t.Fatalf("%d packets of %d bytes in a message", len(m.Buffers), total)
				}
				if (len(m.OOB) > 0) != (len(m.Buffers) > 1) {
					t.Fatal("the segment size is missing, or there for nothing")
				}
			}
		}
	})
}

func FuzzControl(f *testing.F) {
	f.Add(appendSegment(nil, 1400))
	f.Fuzz(func(t *testing.T, oob []byte) {
		var e endpoint
		control(oob, &e) // the kernel's word, but no reason to crash
	})
}

func TestSplitRefusesWhatDoesNotFit(t *testing.T) {
	packets := [][]byte{make([]byte, 100), make([]byte, 100)}
	m := ipv6.Message{Buffers: [][]byte{make([]byte, 30)}, N: 30, Addr: &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}}
	oob := appendSegment(nil, 10)
	// The kernel's GRO message has the same level and number, and four bytes.
	m.OOB = make([]byte, unix.CmsgSpace(4))
	copy(m.OOB, oob)
	m.OOB[0] = byte(unix.CmsgLen(4))
	m.OOB[unix.SizeofCmsghdr-4] = unix.UDP_GRO
	m.NN = len(m.OOB)
	if _, err := split(&m, packets, make([]int, 2), make([]conn.Endpoint, 2), 0); err == nil {
		t.Error("three packets went into two buffers")
	}
	m.Addr = nil
	if _, err := split(&m, packets, make([]int, 2), make([]conn.Endpoint, 2), 0); err == nil {
		t.Error("a packet without a sender was taken")
	}
}
