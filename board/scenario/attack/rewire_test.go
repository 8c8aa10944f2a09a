package attack

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestShowsKnowsWhatIsEncrypted: by the marker where it is there, else by what the sender made of it, and only for its own kind.
func TestShowsKnowsWhatIsEncrypted(t *testing.T) {
	for _, f := range []Family{IPv4, IPv6} {
		src, dst := netip.MustParseAddr("203.0.113.11"), netip.MustParseAddr("203.0.113.1")
		if f == IPv6 {
			src, dst = netip.MustParseAddr("2001:db8:113::11"), netip.MustParseAddr("2001:db8:113::1")
		}
		j := Job{Kind: UDP, Family: f, Marker: testMarker}
		spi := []byte{byte(j.ownSPI() >> 24), byte(j.ownSPI() >> 16), byte(j.ownSPI() >> 8), byte(j.ownSPI()), 0, 0, 0, 1}
		frame := func(sport uint16, payload []byte) []byte {
			return ethernet(nil, nil, f, ipPacket(f, src, dst, sport, tunnelPort, payload))
		}
		esp := frame(1, nil)
		header := 14 + map[Family]int{IPv4: 20, IPv6: 40}[f]
		esp = append(esp[:header:header], spi...)
		esp[14+map[Family]int{IPv4: 9, IPv6: 6}[f]] = unix.IPPROTO_ESP
		other := testMarker
		other[0]++
		for name, c := range map[string]struct {
			kind  Kind
			frame []byte
			want  bool
		}{
			"marker":            {UDP, frame(1, testMarker[:]), true},
			"another's marker":  {UDP, frame(1, other[:]), false},
			"own port":          {OwnWireGuard, frame(j.ownPort(), []byte("handshake")), true},
			"another's port":    {OwnWireGuard, frame(j.ownPort()+1, []byte("handshake")), false},
			"a port is no sign": {UDP, frame(j.ownPort(), []byte("handshake")), false},
			"ESP":               {OwnESP, esp, true},
			"ESP in UDP":        {OwnESPinUDP, frame(tunnelPort, spi), true},
			"the tunnel":        {OwnESPinUDP, frame(tunnelPort, []byte("wireguard data")), false},
			"a short frame":     {OwnESP, esp[:20], false},
			"nothing":           {OwnWireGuard, nil, false},
		} {
			j.Kind = c.kind
			if got := j.Shows(c.frame); got != c.want {
				t.Errorf("IPv%d, %s: %v", f, name, got)
			}
		}
	}
}

func TestToolErrorIsTheLongestErrno(t *testing.T) {
	exit := errors.New("exit status 2")
	for out, want := range map[string]unix.Errno{
		"RTNETLINK answers: Operation not permitted\n":              unix.EPERM,
		"RTNETLINK answers: Operation not supported\n":              unix.EOPNOTSUPP,
		"Error: Could not process rule: No such file or directory":  unix.ENOENT,
		"Error: Could not process rule: No such device or address:": unix.ENXIO,
	} {
		if err := toolError(out, exit); !errors.Is(err, want) {
			t.Errorf("%q is %v, want %v", out, err, want)
		}
	}
	if err := toolError("Error: Unknown device type.", exit); !errors.Is(err, exit) {
		t.Errorf("%v", err)
	}
	var c tally
	if c.tool("/no/such/tool") || c.Errno != "ENOENT" {
		t.Errorf("%+v", c.Result)
	}
	if c.each("true", "false", "touch /no/such/folder/file") || !strings.HasPrefix(c.Note, "false") {
		t.Errorf("%+v", c.Result)
	}
}

// TestScriptIsAShells: what a shell of the sender's own runs is what it can read, and holds the marker.
func TestScriptIsAShells(t *testing.T) {
	j := Job{Kind: Moved, Family: IPv6, Marker: testMarker, Source: netip.MustParseAddr("2001:db8::1"), NextHop: net.HardwareAddr{2, 0, 0, 0, 0, 9}}
	var c tally
	if !c.toolIn(j.script("wwan0"), "bash", "-n") {
		t.Error(c.Note)
	}
	if s := j.script("wwan0"); !strings.Contains(s, `\xde\xad\x01`) || !strings.Contains(s, "nodad") || !strings.Contains(s, "2001:db8:99::99/9") {
		t.Error(s)
	}
}
