package wireguard

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"rempart/internal/journal"
)

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestCheck(t *testing.T) {
	ok := Peer{Key: Key{1}, Inner: prefixes("10.77.0.11/32", "fd77::11/128")}
	for _, c := range []struct {
		name  string
		peers []Peer
		want  string // "" means taken
	}{
		{"none", nil, ""},
		{"one", []Peer{ok}, ""},
		{"two", []Peer{ok, {Key: Key{2}, Inner: prefixes("10.77.0.12/32")}}, ""},
		{"no key", []Peer{{Inner: ok.Inner}}, "has no key"},
		{"same key", []Peer{ok, {Key: Key{1}, Inner: prefixes("10.77.0.12/32")}}, "the key of peer 0"},
		{"no address", []Peer{{Key: Key{1}}}, "no inner address"},
		{"zero prefix", []Peer{{Key: Key{1}, Inner: []netip.Prefix{{}}}}, "malformed"},
		{"host bits", []Peer{{Key: Key{1}, Inner: prefixes("10.77.0.11/24")}}, "malformed"},
		{"mapped", []Peer{{Key: Key{1}, Inner: prefixes("::ffff:10.77.0.11/128")}}, "malformed"},
		{"same address", []Peer{ok, {Key: Key{2}, Inner: prefixes("fd77::11/128")}}, "overlaps"},
		{"twice in one", []Peer{{Key: Key{1}, Inner: prefixes("10.0.0.1/32", "10.0.0.1/32")}}, "overlaps"},
		{"hidden inside", []Peer{{Key: Key{1}, Inner: prefixes("10.0.0.0/8")}, {Key: Key{2}, Inner: prefixes("10.1.0.0/16")},
			{Key: Key{3}, Inner: prefixes("10.200.0.1/32")}}, "peer 2, 10.200.0.1/32 overlaps 10.0.0.0/8"},
		{"no port", []Peer{{Key: Key{1}, Inner: ok.Inner, Endpoint: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), 0)}}, "cannot be sent to"},
		{"unspecified", []Peer{{Key: Key{1}, Inner: ok.Inner, Endpoint: netip.MustParseAddrPort("0.0.0.0:1")}}, "cannot be sent to"},
		{"multicast", []Peer{{Key: Key{1}, Inner: ok.Inner, Endpoint: netip.MustParseAddrPort("[ff02::1]:1")}}, "cannot be sent to"},
		{"too many", make([]Peer, MaxPeers+1), "at most"},
	} {
		err := Check(c.peers)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

// The clever overlap search against the stupid one.
func FuzzCheckFindsEveryOverlap(f *testing.F) {
	f.Add([]byte{10, 0, 8, 10, 1, 16, 10, 200, 32})
	f.Add([]byte{10, 0, 32, 10, 0, 31, 11, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var peers []Peer
		for i := 0; i+2 < len(b) && len(peers) < 40; i += 3 {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{b[i], b[i+1], 0, 0}), int(b[i+2])%33).Masked()
			peers = append(peers, Peer{Key: Key{byte(len(peers)), 1}, Inner: []netip.Prefix{p}})
		}
		overlap := false
		for i, a := range peers {
			for _, b := range peers[:i] {
				overlap = overlap || a.Inner[0].Overlaps(b.Inner[0])
			}
		}
		if got := Check(peers) != nil; got != overlap {
			t.Fatalf("Check says %v, want %v for %v", got, overlap, peers)
		}
	})
}

func TestHosts(t *testing.T) {
	got := Hosts(addrs("10.77.0.11", "fd77::11", "::ffff:10.77.0.12", "fe80::1%eth0"))
	if want := prefixes("10.77.0.11/32", "fd77::11/128", "10.77.0.12/32", "fe80::1/128"); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestReplaceTextSaysOnlyWhatChanges(t *testing.T) {
	a := Peer{Key: Key{1}, Inner: prefixes("10.0.0.1/32")}
	b := Peer{Key: Key{2}, Inner: prefixes("10.0.0.2/32")}
	moved := Peer{Key: Key{2}, Inner: prefixes("10.0.0.1/32")}
	if text := replaceText([]Peer{a, b}, []Peer{b, a}); text != "" {
		t.Errorf("nothing changed: %q", text)
	}
	text := replaceText([]Peer{a, b}, []Peer{moved})
	remove, add := strings.Index(text, "remove=true"), strings.Index(text, "allowed_ip=10.0.0.1/32")
	if remove < 0 || add < remove || !strings.Contains(text, "replace_allowed_ips=true") || strings.Contains(text, "keepalive") {
		t.Errorf("an address that changes hands: %q", text)
	}
}

func TestParse(t *testing.T) {
	key := strings.Repeat("ab", 32)
	text := "private_key=" + key + "\nlisten_port=1\npublic_key=" + key + "\nendpoint=[2001:db8::1]:5\nlast_handshake_time_sec=7\n" +
		"last_handshake_time_nsec=8\ntx_bytes=9\nrx_bytes=10\nallowed_ip=10.0.0.1/32\npublic_key=" + strings.Repeat("01", 32) +
		"\nlast_handshake_time_sec=0\nlast_handshake_time_nsec=0\n"
	peers, err := parse([]byte(text))
	if err != nil || len(peers) != 2 {
		t.Fatal(peers, err)
	}
	if p := peers[0]; !p.Handshake.Equal(time.Unix(7, 8)) || p.Sent != 9 || p.Received != 10 || p.Endpoint.Port() != 5 || p.Key[0] != 0xab {
		t.Errorf("first peer is %+v", p)
	}
	if !peers[1].Handshake.IsZero() {
		t.Errorf("a peer without a handshake has %v", peers[1].Handshake)
	}
	for _, bad := range []string{"x", "public_key=ab", "public_key=" + strings.Repeat("zz", 32), "public_key=" + key + "00",
		"public_key=" + key + "\ntx_bytes=-1", "public_key=" + key + "\nendpoint=x", "public_key=" + key + "\nlast_handshake_time_sec=x"} {
		peers, err := parse([]byte(bad))
		if err == nil || peers != nil {
			t.Errorf("%.20q: %v, %v", bad, peers, err)
		}
		if err != nil && strings.Contains(err.Error(), key) {
			t.Errorf("%.20q: the error repeats the line", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("private_key=00\npublic_key=" + strings.Repeat("ab", 32) + "\nrx_bytes=1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if peers, err := parse(b); err != nil && peers != nil {
			t.Fatal("a value and an error")
		}
	})
}

func TestLogIsBoundedAndNamesNoPeer(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(1000, 0)
	l := &bounded{journal: journal.New(&out, "tunneld"), now: func() time.Time { return now }}
	for range 100 {
		l.logger().Errorf("%v - Failed to send handshake initiation: %v", "peer(abcd…wxyz)", fmt.Errorf("x: %w", syscall.EPERM))
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != logBurst {
		t.Fatalf("%d lines of 100 complaints, want %d", len(lines), logBurst)
	}
	for _, want := range []string{"event=wireguard.trouble", `what="Failed to send handshake initiation"`, `why="operation not permitted"`} {
		if !strings.Contains(lines[0], want) {
			t.Errorf("%s lacks %s", lines[0], want)
		}
	}
	if strings.Contains(out.String(), "peer(") {
		t.Error("a peer is named")
	}
	now = now.Add(time.Minute)
	out.Reset()
	l.errorf("%s: %w", "203.0.113.1", errors.New("secret"))
	if !strings.Contains(out.String(), "unreported=94") || strings.Contains(out.String(), "203.0.113.1") || strings.Contains(out.String(), "secret") {
		t.Errorf("got %s", out.String())
	}
}
