package wireguard

import (
	"bytes"
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/journal"
	"rempart/internal/link"
	"rempart/internal/secret"
)

func TestHandshakeAndTraffic(t *testing.T) {
	for family, name := range []string{"IPv4", "IPv6"} {
		t.Run(name, func(t *testing.T) {
			a, b := world(t)
			var log bytes.Buffer
			ta, tb := a.open(t, journal.New(&log, "tunneld")), b.open(t, nil)
			listen(t, b, tb, Peer{Key: a.public, Inner: a.prefixes()})
			in(t, a.black, func() error {
				return ta.Connect(Peer{Key: b.public, Endpoint: b.endpoint(family), Inner: b.prefixes()})
			})
			took := await(t, time.Second, "handshake", func() bool { return shaken(t, ta) })
			t.Logf("handshake after %v", took)
			const size = 8 << 20
			for inner := range 2 {
				if n := transfer(t, a, b, inner, size); n != size {
					t.Errorf("family %d: %d of %d bytes arrived", inner, n, size)
				}
			}
			peers, err := ta.Peers()
			if err != nil || len(peers) != 1 || peers[0].Sent < size || peers[0].Key != b.public || peers[0].Endpoint != b.endpoint(family) {
				t.Fatalf("status is %+v, %v", peers, err)
			}
			ta.bind.v4.lead.RLock()
			if connected := ta.bind.v4.path != nil; connected != (family == 0) || tb.bind.v4.path != nil || tb.bind.v6.path != nil {
				t.Errorf("the IPv4 socket of the handset is connected: %v", connected)
			}
			ta.bind.v4.lead.RUnlock()
			if tr := ta.Traffic(); tr.Data == 0 || tr.Failed != nil {
				t.Errorf("traffic is %+v", tr)
			}
			if log.Len() != 0 {
				t.Errorf("a good day is in the journal: %s", log.String())
			}
		})
	}
}

// A second attempt must not wait for the five seconds that WireGuard leaves
// between two initiations to one peer.
func TestAnAttemptOwesNothingToTheOneBefore(t *testing.T) {
	a, b := world(t)
	ta, tb := a.open(t, nil), b.open(t, nil)
	dead := netip.AddrPortFrom(netip.MustParseAddr("203.0.113.99"), 51820)
	peer := Peer{Key: b.public, Endpoint: dead, Inner: b.prefixes()}
	in(t, a.black, func() error { return ta.Connect(peer) })
	listen(t, b, tb, Peer{Key: a.public, Inner: a.prefixes()})
	peer.Endpoint = b.endpoint(1)
	in(t, a.black, func() error { return ta.Connect(peer) })
	await(t, time.Second, "handshake at the second address", func() bool { return shaken(t, ta) })
	// And a whole new device on the same inherited descriptor, as after a crash.
	if err := ta.Close(); err != nil {
		t.Fatal(err)
	}
	ta = a.open(t, nil)
	// The other end takes one initiation in 20 ms (wireguard-go's
	// HandshakeInitationRate), by its own clock.
	time.Sleep(25 * time.Millisecond)
	in(t, a.black, func() error { return ta.Connect(peer) })
	await(t, time.Second, "handshake of the rebuilt device", func() bool { return shaken(t, ta) })
	if n := transfer(t, a, b, 0, 1<<20); n != 1<<20 {
		t.Errorf("%d bytes arrived", n)
	}
}

func TestUnreachableIsSaidAtOnce(t *testing.T) {
	a, b := world(t)
	ta := a.open(t, nil)
	err := a.black.Do(func() error {
		return ta.Connect(Peer{Key: b.public, Endpoint: netip.MustParseAddrPort("198.51.100.7:51820"), Inner: b.prefixes()})
	})
	if err == nil || Reason(err) != "network is unreachable" {
		t.Fatalf("got %v, want network is unreachable", err)
	}
}

func TestOnlySetPeersConnect(t *testing.T) {
	a, b := world(t)
	ta, tb := a.open(t, nil), b.open(t, nil)
	listen(t, b, tb)
	peer := Peer{Key: b.public, Endpoint: b.endpoint(0), Inner: b.prefixes()}
	in(t, a.black, func() error { return ta.Connect(peer) })
	time.Sleep(100 * time.Millisecond)
	if shaken(t, ta) {
		t.Fatal("a stranger has a handshake")
	}
	mine := Peer{Key: a.public, Inner: a.prefixes()}
	if err := tb.SetPeers([]Peer{mine}); err != nil {
		t.Fatal(err)
	}
	in(t, a.black, func() error { return ta.Connect(peer) })
	await(t, time.Second, "handshake", func() bool { return shaken(t, ta) })
	session := func() Status {
		peers, err := tb.Peers()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range peers {
			if p.Key == a.public {
				return p
			}
		}
		return Status{}
	}
	await(t, time.Second, "confirmation at the listener", func() bool { return !session().Handshake.IsZero() })
	before := session()
	// Another peer comes: the session of the first one lives on.
	if err := tb.SetPeers([]Peer{{Key: Key{9}, Inner: Hosts(addrs("10.77.0.12"))}, mine}); err != nil {
		t.Fatal(err)
	}
	if after := session(); after.Handshake != before.Handshake || after.Endpoint != before.Endpoint {
		t.Errorf("the session was lost: %+v, then %+v", before, after)
	}
	// A refused set changes nothing.
	if err := tb.SetPeers([]Peer{{Key: Key{9}, Inner: a.prefixes()}, mine}); err == nil {
		t.Error("two peers with one address were taken")
	}
	if err := tb.SetPeers([]Peer{{Key: b.public, Inner: a.prefixes()}}); err == nil {
		t.Error("a peer with our own key was taken")
	}
	if session().Handshake != before.Handshake {
		t.Error("a refused set dropped a session")
	}
	if err := tb.SetPeers(nil); err != nil {
		t.Fatal(err)
	}
	if got := session(); got.Key != (Key{}) {
		t.Errorf("a removed peer is still there: %+v", got)
	}
}

// A peer may only speak with its own inner addresses (cryptokey routing).
func TestForeignInnerAddressIsDropped(t *testing.T) {
	a, b := world(t)
	ta, tb := a.open(t, nil), b.open(t, nil)
	listen(t, b, tb, Peer{Key: a.public, Inner: Hosts(addrs("10.77.0.12"))}) // not a's
	in(t, a.black, func() error {
		return ta.Connect(Peer{Key: b.public, Endpoint: b.endpoint(0), Inner: b.prefixes()})
	})
	await(t, time.Second, "handshake", func() bool { return shaken(t, ta) })
	var server net.PacketConn
	in(t, b.red, func() (err error) { server, err = net.ListenPacket("udp", "10.77.0.1:9"); return err })
	defer server.Close()
	in(t, a.red, func() error {
		c, err := net.Dial("udp", "10.77.0.1:9")
		if err == nil {
			_, err = c.Write([]byte("spoof"))
			c.Close()
		}
		return err
	})
	server.SetReadDeadline(time.Now().Add(150 * time.Millisecond))
	if n, from, err := server.ReadFrom(make([]byte, 16)); err == nil {
		t.Errorf("%d bytes came through from %v", n, from)
	}
}

func TestDownHasNoSocket(t *testing.T) {
	a, b := world(t)
	ta := a.open(t, nil)
	sockets := func() (n int) {
		in(t, a.black, func() error {
			for _, f := range []string{"udp", "udp6"} {
				text, err := os.ReadFile("/proc/thread-self/net/" + f)
				if err != nil {
					return err
				}
				n += strings.Count(string(text), "\n") - 1
			}
			return nil
		})
		return n
	}
	if n := sockets(); n != 0 {
		t.Fatalf("%d sockets before anything was asked", n)
	}
	peer := Peer{Key: b.public, Endpoint: b.endpoint(0), Inner: b.prefixes()}
	in(t, a.black, func() error { return ta.Connect(peer) })
	if n := sockets(); n != 2 {
		t.Errorf("%d sockets while connecting, want one of each family", n)
	}
	if err := ta.Down(); err != nil {
		t.Fatal(err)
	}
	if n := sockets(); n != 0 {
		t.Errorf("%d sockets when down", n)
	}
	in(t, a.black, func() error { return ta.Connect(peer) })
	if n := sockets(); n != 2 {
		t.Errorf("%d sockets when up again", n)
	}
}

func TestLostTUNEndsTheDevice(t *testing.T) {
	a, b := world(t)
	ta := a.open(t, nil)
	in(t, a.black, func() error {
		return ta.Connect(Peer{Key: b.public, Endpoint: b.endpoint(0), Inner: b.prefixes()})
	})
	in(t, a.red, func() error { return link.Remove("wg0") })
	select {
	case <-ta.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the device lives on without its TUN")
	}
	err := a.black.Do(func() error {
		return ta.Connect(Peer{Key: b.public, Endpoint: b.endpoint(0), Inner: b.prefixes()})
	})
	if err == nil {
		t.Error("a device that has ended connects")
	}
	if err := ta.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	a, _ := world(t)
	short := secret.New([]byte("short"))
	if _, err := Open(a.tun, short, nil); err == nil || short.Len() != 0 {
		t.Errorf("a short key: %v, %d bytes of it left", err, short.Len())
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer r.Close()
	before := descriptors(t)
	key := a.key()
	if _, err := Open(r, key, nil); err == nil || key.Len() != 0 {
		t.Errorf("a pipe for a TUN: %v, %d bytes of key left", err, key.Len())
	}
	runtime.GC()
	await(t, time.Second, "end of leaked descriptors", func() bool { return descriptors(t) <= before })
	tunnel := a.open(t, nil)
	if tunnel.Public() != a.public {
		t.Error("the public key is not the private key's")
	}
	if err := tunnel.Connect(Peer{Key: Key{1}, Inner: a.prefixes()}); err == nil {
		t.Error("connected to nowhere")
	}
	if err := tunnel.Listen(51820, []Peer{{Key: Key{1}, Endpoint: a.endpoint(0), Inner: a.prefixes()}}); err == nil {
		t.Error("listened for a peer with a fixed endpoint")
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// After a status was read, and after Close, no text of the private key is left
// in what wireguard-go hands out.
func TestStatusLeavesNoKey(t *testing.T) {
	a, _ := world(t)
	tunnel := a.open(t, nil)
	var d dump
	var seen []byte
	if err := tunnel.device.IpcGetOperation(writer(func(p []byte) (int, error) {
		seen = p
		if !bytes.Contains(p, []byte("private_key=")) {
			t.Error("wireguard-go no longer writes the key: the wiping is without a subject")
		}
		return d.Write(p)
	})); err != nil || d.err != nil {
		t.Fatal(err, d.err)
	}
	if bytes.Contains(seen, []byte(hex.EncodeToString(a.private)[2:60])) || !bytes.Equal(seen, make([]byte, len(seen))) {
		t.Error("the answer still has the key")
	}
	if err := tunnel.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := tunnel.device.IpcGet()
	if err != nil || strings.Contains(text, "private_key=") {
		t.Errorf("a closed device still has its key: %v", err)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func TestReason(t *testing.T) {
	if got := Reason(&net.OpError{Op: "write", Err: os.NewSyscallError("sendmmsg", unix.EPERM)}); got != "operation not permitted" {
		t.Errorf("got %q", got)
	}
	if got := Reason(os.ErrClosed); got != "file already closed" {
		t.Errorf("got %q", got)
	}
}
