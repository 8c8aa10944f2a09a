package wireguard

import (
	"crypto/ecdh"
	"crypto/rand"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"rempart/internal/journal"
	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/internal/secret"
)

// end is one machine: a red namespace with a TUN device, a black one with a
// radio, and a key.
type end struct {
	red, black *link.NS
	tun        *os.File
	private    []byte
	public     Key
	outer      []netip.Addr // v4, v6
	inner      []netip.Addr
}

func (e *end) key() *secret.Bytes { return secret.New(append([]byte(nil), e.private...)) }

func (e *end) prefixes() []netip.Prefix { return Hosts(e.inner) }

// endpoint is the end's outer address of family i (0 IPv4, 1 IPv6).
func (e *end) endpoint(i int) netip.AddrPort { return netip.AddrPortFrom(e.outer[i], 51820) }

// open builds the end's tunnel in its black namespace and closes it with the test.
func (e *end) open(t *testing.T, j *journal.Journal) *Tunnel {
	t.Helper()
	tunnel, err := Open(e.tun, e.key(), j)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tunnel.Close() })
	return tunnel
}

func in(t *testing.T, ns *link.NS, fn func() error) {
	t.Helper()
	if err := ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// world joins two ends by a veth between their black namespaces.
func world(t *testing.T) (a, b *end) {
	t.Helper()
	proof.NeedRoot(t)
	ends := []*end{
		{outer: addrs("203.0.113.11", "2001:db8:113::11"), inner: addrs("10.77.0.11", "fd77::11")},
		{outer: addrs("203.0.113.1", "2001:db8:113::1"), inner: addrs("10.77.0.1", "fd77::1")},
	}
	for _, e := range ends {
		for _, ns := range []**link.NS{&e.red, &e.black} {
			made, err := link.Create("")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { made.Close() })
			*ns = made
		}
		key, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		e.private, e.public = key.Bytes(), Key(key.PublicKey().Bytes())
		in(t, e.red, func() (err error) {
			if e.tun, err = link.OpenTUN("wg0"); err != nil {
				return err
			}
			if err := link.SetMTU("wg0", MTU); err != nil {
				return err
			}
			for i, a := range e.inner {
				if err := link.AddAddr("wg0", netip.PrefixFrom(a, []int{24, 64}[i])); err != nil {
					return err
				}
			}
			return link.SetUp("wg0")
		})
		t.Cleanup(func() { e.tun.Close() })
	}
	if err := link.AddVeth(link.Port{Name: "wwan0", NS: ends[0].black}, link.Port{Name: "wwan0", NS: ends[1].black}); err != nil {
		t.Fatal(err)
	}
	for _, e := range ends {
		in(t, e.black, func() error {
			for i, a := range e.outer {
				if err := link.AddAddr("wwan0", netip.PrefixFrom(a, []int{24, 64}[i])); err != nil {
					return err
				}
			}
			return link.SetUp("wwan0")
		})
	}
	for i := range 2 {
		carrier(t, ends[0], ends[1], i)
	}
	return ends[0], ends[1]
}

// carrier waits until a datagram passes: a veth that was just brought up has
// no carrier, no IPv6 route and no neighbour yet.
func carrier(t *testing.T, a, b *end, family int) {
	t.Helper()
	var server net.PacketConn
	in(t, b.black, func() (err error) {
		server, err = net.ListenPacket("udp", netip.AddrPortFrom(b.outer[family], 9).String())
		return err
	})
	defer server.Close()
	await(t, 5*time.Second, "carrier", func() bool {
		in(t, a.black, func() error {
			if c, err := net.Dial("udp", server.LocalAddr().String()); err == nil {
				c.Write([]byte("carrier"))
				c.Close()
			}
			return nil
		})
		server.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		_, _, err := server.ReadFrom(make([]byte, 8))
		return err == nil
	})
}

func addrs(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// listen makes b a listener for a.
func listen(t *testing.T, b *end, tunnel *Tunnel, peers ...Peer) {
	t.Helper()
	in(t, b.black, func() error { return tunnel.Listen(51820, peers) })
}

// await polls until ok or the time is up, and returns how long it took.
func await(t *testing.T, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > limit {
			t.Fatalf("no %s within %v", what, limit)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(start)
}

func shaken(t *testing.T, tunnel *Tunnel) bool {
	t.Helper()
	peers, err := tunnel.Peers()
	if err != nil {
		t.Fatal(err)
	}
	return len(peers) > 0 && !peers[0].Handshake.IsZero()
}

// transfer sends size bytes by TCP from a's red to b's red and returns how many arrived.
func transfer(t *testing.T, a, b *end, family int, size int64) int64 {
	t.Helper()
	var ln net.Listener
	in(t, b.red, func() (err error) {
		ln, err = net.Listen("tcp", net.JoinHostPort(b.inner[family].String(), "0"))
		return err
	})
	defer ln.Close()
	got := make(chan int64, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			got <- -1
			return
		}
		defer c.Close()
		n, _ := io.Copy(io.Discard, c)
		got <- n
	}()
	var c net.Conn
	in(t, a.red, func() (err error) {
		c, err = net.DialTimeout("tcp", ln.Addr().String(), 5*time.Second)
		return err
	})
	if _, err := io.CopyN(c, zeros{}, size); err != nil {
		t.Error(err)
	}
	c.Close()
	select {
	case n := <-got:
		return n
	case <-time.After(20 * time.Second):
		t.Fatal("the other end never saw the end of the stream")
		return 0
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
