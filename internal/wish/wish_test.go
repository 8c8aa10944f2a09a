package wish

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"rempart/internal/frame"
)

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// serve answers one connection at a fresh path and delivers what Serve returned.
func serveAt(t *testing.T, handle func(net.Conn) error) (path string, result <-chan error) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "init.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	done := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err == nil {
			err = handle(c)
			c.Close()
		}
		done <- err
	}()
	return path, done
}

func TestGranted(t *testing.T) {
	want := prefixes("10.77.0.11/24", "fd77::11/64")
	var got []netip.Prefix
	path, done := serveAt(t, func(c net.Conn) error {
		return Serve(c, func(p []netip.Prefix) error { got = p; return nil })
	})
	if err := Send(t.Context(), path, want); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || !slices.Equal(got, want) {
		t.Fatalf("init got %v, %v", got, err)
	}
}

func TestRefused(t *testing.T) {
	reason := errors.New("10.78.0.1 is in no network of the policy " + strings.Repeat("é", 200))
	path, done := serveAt(t, func(c net.Conn) error {
		return Serve(c, func([]netip.Prefix) error { return reason })
	})
	err := Send(t.Context(), path, prefixes("10.78.0.1/24"))
	var refused *RefusedError
	if !errors.As(err, &refused) || !strings.HasPrefix(refused.Text, "10.78.0.1 is in no network") || !utf8.ValidString(refused.Text) {
		t.Fatalf("got %v, want the refusal", err)
	}
	if err := <-done; !errors.Is(err, reason) {
		t.Errorf("init's journal gets %v", err)
	}
	if err := parseReply(marshalReply(errors.New(""))); !errors.As(err, &refused) {
		t.Errorf("a refusal without words became %v", err)
	}
}

func TestAnswerNotKnown(t *testing.T) {
	if err := Send(t.Context(), filepath.Join(t.TempDir(), "none"), prefixes("10.77.0.11/24")); err == nil {
		t.Error("nobody listened")
	}
	var refused *RefusedError
	for _, reply := range [][]byte{{}, {0}, {1, 1}, {2}, {0, 0xff}} {
		path, _ := serveAt(t, func(c net.Conn) error { return frame.Write(c, reply) })
		if err := Send(t.Context(), path, prefixes("10.77.0.11/24")); err == nil || errors.As(err, &refused) {
			t.Errorf("reply %v: got %v", reply, err)
		}
	}
	path, _ := serveAt(t, func(c net.Conn) error { return nil })
	if err := Send(t.Context(), path, prefixes("10.77.0.11/24")); err == nil || errors.As(err, &refused) {
		t.Errorf("init hung up: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	path, _ = serveAt(t, func(c net.Conn) error { cancel(); <-t.Context().Done(); return nil })
	start := time.Now()
	if err := Send(ctx, path, prefixes("10.77.0.11/24")); !errors.Is(err, context.Canceled) || time.Since(start) > time.Second {
		t.Errorf("cancelled: got %v after %v", err, time.Since(start))
	}
}

func TestServeAnswersGarbage(t *testing.T) {
	for _, request := range [][]byte{{}, {1}, {2, 1}, {1, 0}, {1, 1, 5}} {
		path, done := serveAt(t, func(c net.Conn) error {
			return Serve(c, func([]netip.Prefix) error { t.Error("garbage was granted"); return nil })
		})
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if err := frame.Write(c, request); err != nil {
			t.Fatal(err)
		}
		reply, err := frame.Read(c, maxReply)
		var refused *RefusedError
		if err != nil || !errors.As(parseReply(reply), &refused) {
			t.Errorf("%v: got %q, %v", request, reply, err)
		}
		c.Close()
		if err := <-done; err == nil {
			t.Errorf("%v: nothing for the journal", request)
		}
	}
}

func TestRefusedWishes(t *testing.T) {
	many := make([]netip.Prefix, MaxPrefixes+1)
	for i := range many {
		many[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 24)
	}
	for name, p := range map[string][]netip.Prefix{
		"none": nil, "many": many, "zero": {{}}, "twice": prefixes("10.0.0.1/24", "10.0.0.1/32"),
		"everything": prefixes("10.0.0.1/0"), "any": prefixes("0.0.0.0/8"), "multicast": prefixes("ff02::1/128"),
		"loopback": prefixes("127.0.0.1/8"), "link local": prefixes("fe80::1/64"), "mapped": prefixes("::ffff:10.0.0.1/128"),
	} {
		if b, err := Marshal(p); err == nil || b != nil {
			t.Errorf("%s: %v, %v", name, b, err)
		}
	}
	if _, err := Marshal(many[:MaxPrefixes]); err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	good, err := Marshal(prefixes("10.77.0.11/24", "fd77::11/64"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(append(good, 0))
	f.Add([]byte{1, 1, 4, 127, 0, 0, 1, 8})
	f.Add([]byte{1, 1, 4, 10, 0, 0, 1, 33})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b)
		if err != nil {
			if p != nil {
				t.Fatal("a value and an error")
			}
			return
		}
		again, err := Marshal(p)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%v became %v, %v", b, again, err)
		}
	})
}
