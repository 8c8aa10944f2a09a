package nft

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/proof"
	"rempart/vpn/egress"
)

// attestation is the class of a TCP service of the gateway's.
var attestation = egress.Policy{Classes: []egress.Class{
	{Gateway: "g", Addr: gateway4, Proto: egress.TCP, Port: 8443, Purpose: egress.Attestation, Cgroup: 1},
	{Gateway: "g", Addr: gateway6, Proto: egress.TCP, Port: 8443, Purpose: egress.Attestation, Cgroup: 1},
}}

// States of a TCP socket in /proc/net/tcp.
const (
	timeWait = "06"
	lastACK  = "09"
)

// states are those of the sockets of port 8443 that the gateway has.
func (w *world) states() (all string) {
	w.t.Helper()
	w.in(w.air, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/tcp")
		for l := range strings.Lines(string(b)) {
			if f := strings.Fields(l); strings.HasSuffix(f[1], fmt.Sprintf(":%04X", 8443)) {
				all += f[3]
			}
		}
		return err
	})
	return all
}

// A connection of an admitted TCP class ends without waiting for anyone, whoever ends it and how. What the kernel says for a
// socket that nobody holds any more has no owner, and is dropped: a gateway that was left by a close alone waits for an answer.
func TestConnectionsOfAClassEnd(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the same before any table is there")
	for name, c := range map[string]struct {
		end   func(inside, outside *net.TCPConn) error
		waits []string // the gateway's sockets then: released, and without a table
	}{
		"the gateway ends first": {func(in, out *net.TCPConn) error { return errors.Join(out.Close(), eof(in), in.Close()) }, []string{timeWait, timeWait}},
		"the handset ends its half and waits": {func(in, out *net.TCPConn) error {
			return errors.Join(in.CloseWrite(), eof(out), out.Close(), eof(in), in.Close())
		}, []string{"", ""}},
		"the handset closes": {func(in, out *net.TCPConn) error { return errors.Join(in.Close(), eof(out), out.Close()) }, []string{lastACK, ""}},
		"the handset resets": {func(in, out *net.TCPConn) error {
			if err := errors.Join(in.SetLinger(0), in.Close()); err != nil {
				return err
			}
			if _, err := out.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				return fmt.Errorf("want a reset: %w", err)
			}
			return out.Close()
		}, []string{"", ""}},
	} {
		for i, tables := range [][]Table{{Released("bl0", attestation, tunneld, own...)}, nil} {
			w := newWorld(t)
			w.put(tables...)
			in, out := w.connect()
			began := time.Now()
			if err := c.end(in, out); err != nil {
				t.Errorf("%s, %d tables: %v", name, len(tables), err)
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("%s, %d tables: it took %v", name, len(tables), took)
			}
			var states string
			for until := time.Now().Add(100 * time.Millisecond); time.Now().Before(until); time.Sleep(time.Millisecond) {
				if states = w.states(); states == c.waits[i] && states != lastACK {
					break
				}
			}
			if states != c.waits[i] {
				t.Errorf("%s, %d tables: the gateway's sockets are in state %q, want %q", name, len(tables), states, c.waits[i])
			}
		}
	}
}

// What was not acknowledged before the close is lost with it, and the close does not wait for it: who has something to say ends
// its half and waits for the other's end.
func TestACloseLosesWhatIsUnderWay(t *testing.T) {
	for _, tables := range [][]Table{{Released("bl0", attestation, tunneld, own...)}, nil} {
		w := newWorld(t)
		w.put(tables...)
		in, out := w.connect()
		much := make([]byte, 64<<20) // more than both sides hold
		if err := in.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		sent, err := in.Write(much)
		if sent == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%d bytes: %v", sent, err)
		}
		began := time.Now()
		if err := in.Close(); err != nil || time.Since(began) > time.Second {
			t.Errorf("the close took %v: %v", time.Since(began), err)
		}
		if err := out.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		got, err := io.Copy(io.Discard, out)
		if tables == nil && (err != nil || got != int64(sent)) || tables != nil && (!errors.Is(err, os.ErrDeadlineExceeded) || got >= int64(sent)) {
			t.Errorf("%d tables: %d bytes of %d came: %v", len(tables), got, sent, err)
		}
		if err := out.Close(); err != nil {
			t.Error(err)
		}
	}
}

// eof waits for the other side's end.
func eof(c *net.TCPConn) error {
	if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if b, err := io.ReadAll(c); err != nil || len(b) != 0 {
		return fmt.Errorf("want the end of the connection: %q, %w", b, err)
	}
	return nil
}

// connect is a connection from a socket of tunneld's to the gateway that has carried something both ways.
func (w *world) connect() (inside, outside *net.TCPConn) {
	w.t.Helper()
	var l net.Listener
	w.in(w.air, func() (err error) { l, err = net.Listen("tcp", at(gateway4, 8443).String()); return err })
	defer l.Close()
	w.in(w.black, as(tunneld, func() error {
		c, err := (&net.Dialer{Timeout: time.Second}).Dial("tcp", at(gateway4, 8443).String())
		if err == nil {
			inside = c.(*net.TCPConn)
		}
		return err
	}))
	c, err := l.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	outside = c.(*net.TCPConn)
	for from, to := range map[*net.TCPConn]*net.TCPConn{inside: outside, outside: inside} {
		b := make([]byte, 4)
		if _, err := from.Write([]byte("good")); err != nil {
			w.t.Fatal(err)
		}
		if _, err := io.ReadFull(to, b); err != nil {
			w.t.Fatal(err)
		}
	}
	return inside, outside
}
