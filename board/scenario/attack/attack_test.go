package attack

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"
)

var testMarker = Marker{0xde, 0xad, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}

func TestJobArgsAndParseAreInverse(t *testing.T) {
	full := Job{Kind: Packet, Family: IPv6, Marker: testMarker, Target: netip.MustParseAddr("2001:db8:51::7"), Port: 53,
		Device: "wwan0", Source: netip.MustParseAddr("2001:db8:113::11"), NextHop: net.HardwareAddr{2, 0, 0, 0, 0, 9},
		SourcePort: 51820, Mark: 7, Count: 5, For: 3 * time.Second, NoPacket: true, SetUp: true, User: true}
	jobs := []Job{full}
	for k, row := range kinds() {
		j := Job{Kind: k, Family: IPv4, Marker: testMarker}
		if row.target {
			j.Target = netip.MustParseAddr("198.51.100.7")
		}
		if row.device {
			j.Device = "wwan0"
		}
		if k == Passed {
			j.FD = 3
		}
		jobs = append(jobs, j)
	}
	for _, j := range jobs {
		got, err := Parse(j.Args())
		if err != nil || !reflect.DeepEqual(got, j) {
			t.Errorf("Parse(%q) = %+v, %v; want %+v", j.Args(), got, err, j)
		}
	}
}

func TestParseRefusesWhatItCannotDo(t *testing.T) {
	ok := Job{Kind: UDP, Family: IPv4, Marker: testMarker, Target: netip.MustParseAddr("198.51.100.7")}.Args()
	with := func(more ...string) []string { return append(append([]string(nil), ok...), more...) }
	for name, args := range map[string][]string{
		"nothing":            nil,
		"unknown kind":       append([]string{"smoke"}, ok[1:]...),
		"no marker":          {"udp", "-target", "198.51.100.7"},
		"short marker":       with("-marker", "dead"),
		"zero marker":        with("-marker", strings.Repeat("0", 32)),
		"no target":          {"udp", "-marker", testMarker.String()},
		"wrong family":       with("-family", "6"),
		"no such family":     with("-family", "5"),
		"mapped target":      with("-family", "6", "-target", "::ffff:1.2.3.4"),
		"source's family":    with("-source", "2001:db8::1"),
		"port out of range":  with("-port", "65536"),
		"count out of range": with("-count", "100000"),
		"long next hop":      with("-next-hop", "02:00:00:00:00:00:00:01"),
		"fd of no kind":      with("-fd", "3"),
		"no device to set":   with("-set-up"),
		"stray argument":     with("more"),
		"unknown flag":       with("-loud"),
		"packet, no device":  append([]string{"packet"}, ok[1:]...),
		"device too long":    append([]string{"packet"}, with("-device", "a-name-that-is-too-long")[1:]...),
	} {
		if j, err := Parse(args); err == nil {
			t.Errorf("%s: parsed as %+v", name, j)
		}
	}
}

func TestCraftedPacketsAreWhatAnIndependentDecoderReads(t *testing.T) {
	for _, c := range []struct {
		f        Family
		src, dst string
	}{{IPv4, "203.0.113.11", "198.51.100.7"}, {IPv6, "2001:db8:113::11", "2001:db8:51::7"}} {
		j := Job{Family: c.f, Marker: testMarker, Source: netip.MustParseAddr(c.src), Target: netip.MustParseAddr(c.dst),
			SourcePort: 51820, Port: 9, NextHop: net.HardwareAddr{2, 0, 0, 0, 0, 9}}
		p := gopacket.NewPacket(j.frame(1, nil), layers.LayerTypeEthernet, gopacket.Default)
		if e := p.ErrorLayer(); e != nil {
			t.Fatal(e.Error())
		}
		udp, ok := p.TransportLayer().(*layers.UDP)
		if !ok || udp.SrcPort != 51820 || udp.DstPort != 9 || !bytes.Equal(udp.Payload, testMarker[:]) {
			t.Fatalf("IPv%d: decoded %v", c.f, p)
		}
		if s, d := p.NetworkLayer().NetworkFlow().Endpoints(); s.String() != c.src || d.String() != c.dst {
			t.Errorf("IPv%d: %s to %s", c.f, s, d)
		}
		// Checksums must be right, or a router in the twin would drop what a test expects to see.
		got := udp.Checksum
		if err := udp.SetNetworkLayerForChecksum(p.NetworkLayer()); err != nil {
			t.Fatal(err)
		}
		buf := gopacket.NewSerializeBuffer()
		if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{ComputeChecksums: true}, udp, gopacket.Payload(udp.Payload)); err != nil {
			t.Fatal(err)
		}
		if want := binary.BigEndian.Uint16(buf.Bytes()[6:]); got != want {
			t.Errorf("IPv%d: UDP checksum %#x, want %#x", c.f, got, want)
		}
		if ip, ok := p.NetworkLayer().(*layers.IPv4); ok && checksum(ip.Contents) != 0 {
			t.Errorf("IPv4 header checksum %#x is wrong", ip.Checksum)
		}
	}
}

func TestQueryHoldsTheMarkerInItsName(t *testing.T) {
	p := gopacket.NewPacket(query(testMarker), layers.LayerTypeDNS, gopacket.Default)
	dns, ok := p.ApplicationLayer().(*layers.DNS)
	if !ok || len(dns.Questions) != 1 || dns.QR {
		t.Fatalf("decoded %v", p)
	}
	if got := string(dns.Questions[0].Name); got != testMarker.String()+".example.net" || dns.Questions[0].Type != layers.DNSTypeA {
		t.Errorf("asked for %s %s", dns.Questions[0].Type, got)
	}
}

func TestEchoHasARightChecksum(t *testing.T) {
	if b := echo(8, testMarker[:]); checksum(b) != 0 || !bytes.Contains(b, testMarker[:]) || b[0] != 8 {
		t.Errorf("echo request % x", b)
	}
	if checksum([]byte{1}) != ^uint16(0x0100) {
		t.Error("an odd last byte is not padded on its right")
	}
}

func TestTallyNamesTheErrno(t *testing.T) {
	var c tally
	c.did("send", nil)
	c.did("send", unix.ENETUNREACH)
	if c.Sent != 1 || c.Errno != "ENETUNREACH" || !strings.HasPrefix(c.Note, "send: ") {
		t.Errorf("%+v", c.Result)
	}
	c.refused("x", errors.New("no errno"))
	if c.Errno != "EUNKNOWN" {
		t.Errorf("a refusal without errno reads %q, which is no refusal", c.Errno)
	}
}

func TestResultLineIsReadBack(t *testing.T) {
	var out bytes.Buffer
	want := Result{Kind: UDP, Family: IPv6, Errno: "EPERM", Sent: 2, Note: "udp: no"}
	if err := writeLine(&out, want); err != nil {
		t.Fatal(err)
	}
	got, err := ParseResult(bytes.TrimSpace(out.Bytes()))
	if err != nil || got != want {
		t.Errorf("read %+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{"", "{}", `{"kind":"smoke"}`, `{"kind":"udp","sent":-1}`, `{"kind":"udp","note":"` + strings.Repeat("x", 5000) + `"}`} {
		if r, err := ParseResult([]byte(bad)); err == nil {
			t.Errorf("%.20q read as %+v", bad, r)
		}
	}
}

func TestRunRefusesAnUncheckedJob(t *testing.T) {
	var out bytes.Buffer
	if _, err := Run(context.Background(), Job{Kind: UDP, Family: IPv4}, &out); err == nil || out.Len() > 0 {
		t.Errorf("ran without marker and target: %v, %q", err, out.String())
	}
}
