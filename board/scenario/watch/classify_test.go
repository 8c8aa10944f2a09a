package watch

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

var (
	handset4 = netip.MustParseAddr("203.0.113.11")
	handset6 = netip.MustParseAddr("2001:db8:113::11")
	gateway4 = netip.MustParseAddr("203.0.113.1")
	gateway6 = netip.MustParseAddr("2001:db8:113::1")
	host4    = netip.MustParseAddr("198.51.100.7")
)

func testRules() Rules {
	return Rules{Handsets: []netip.Addr{handset4, handset6}, Classes: []Class{
		{Name: "tunnel", Gateway: gateway4, Protocol: 17, Port: 51820, WireGuard: true},
		{Name: "tunnel", Gateway: gateway6, Protocol: 17, Port: 51820, WireGuard: true},
		{Name: "attestation", Gateway: gateway4, Protocol: 6, Port: 8443},
	}}
}

func addrLayers(src, dst netip.Addr, proto layers.IPProtocol) (*layers.Ethernet, gopacket.SerializableLayer, gopacket.NetworkLayer) {
	eth := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4}
	if src.Is6() {
		eth.EthernetType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		return eth, ip, ip
	}
	ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice(), Flags: layers.IPv4DontFragment}
	return eth, ip, ip
}

func udpFrame(t testing.TB, src netip.Addr, sport uint16, dst netip.Addr, dport uint16, payload []byte) []byte {
	t.Helper()
	eth, ip, network := addrLayers(src, dst, layers.IPProtocolUDP)
	udp := &layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(dport)}
	udp.SetNetworkLayerForChecksum(network)
	return serialize(t, eth, ip, udp, gopacket.Payload(payload))
}

func tunnelFrame(t testing.TB, src, dst netip.Addr, dport uint16, payload []byte) []byte {
	t.Helper()
	return udpFrame(t, src, 40000, dst, dport, payload)
}

func TestAdmittedFrames(t *testing.T) {
	r := testRules()
	tcp := func(src, dst netip.Addr, sport, dport uint16) []byte {
		eth, ip, network := addrLayers(src, dst, layers.IPProtocolTCP)
		h := &layers.TCP{SrcPort: layers.TCPPort(sport), DstPort: layers.TCPPort(dport), SYN: true}
		h.SetNetworkLayerForChecksum(network)
		return serialize(t, eth, ip, h)
	}
	short := udpFrame(t, handset4, 1, gateway4, 51820, wgMessage(4, 32))
	for name, c := range map[string]struct {
		frame []byte
		class string
		dir   Direction
	}{
		"handshake initiation":     {tunnelFrame(t, handset4, gateway4, 51820, wgMessage(1, 148)), "tunnel", Out},
		"handshake response":       {udpFrame(t, gateway4, 51820, handset4, 40000, wgMessage(2, 92)), "tunnel", In},
		"cookie":                   {udpFrame(t, gateway4, 51820, handset4, 40000, wgMessage(3, 64)), "tunnel", In},
		"keepalive":                {short, "tunnel", Out},
		"data of the tunnel's MTU": {tunnelFrame(t, handset4, gateway4, 51820, wgMessage(4, 1452)), "tunnel", Out},
		"data over IPv6":           {tunnelFrame(t, handset6, gateway6, 51820, wgMessage(4, 1452-1452%16)), "tunnel", Out},
		"attestation":              {tcp(handset4, gateway4, 39000, 8443), "attestation", Out},
		"attestation's answer":     {tcp(gateway4, handset4, 8443, 39000), "attestation", In},
	} {
		if v := r.Classify(c.frame); v.Class != c.class || v.Direction != c.dir || v.Why != "" {
			t.Errorf("%s: %+v, want %s %s", name, v, c.class, c.dir)
		}
	}
}

func TestFramesOutside(t *testing.T) {
	r := testRules()
	good := tunnelFrame(t, handset4, gateway4, 51820, wgMessage(4, 96))
	good6 := tunnelFrame(t, handset6, gateway6, 51820, wgMessage(4, 96))
	change := func(frame []byte, at int, to ...byte) []byte {
		b := append([]byte(nil), frame...)
		copy(b[at:], to)
		return b
	}
	eth, ip, _ := addrLayers(handset4, host4, layers.IPProtocolICMPv4)
	ping := serialize(t, eth, ip, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0)}, gopacket.Payload("hello there"))
	eth6, ip6, n6 := addrLayers(handset6, netip.MustParseAddr("ff02::16"), layers.IPProtocolICMPv6)
	mld := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(143, 0)}
	mld.SetNetworkLayerForChecksum(n6)
	for name, c := range map[string]struct {
		frame []byte
		why   string
	}{
		"UDP to an internet host":      {tunnelFrame(t, handset4, host4, 9, []byte("x")), "UDP, 203.0.113.11:40000 to 198.51.100.7:9"},
		"the gateway on another port":  {tunnelFrame(t, handset4, gateway4, 51821, wgMessage(4, 96)), "51821"},
		"the right port, another host": {tunnelFrame(t, handset4, host4, 51820, wgMessage(4, 96)), "198.51.100.7:51820"},
		"a source that is no handset":  {tunnelFrame(t, host4, gateway4, 51820, wgMessage(4, 96)), "198.51.100.7:40000"},
		"the gateway to a stranger":    {udpFrame(t, gateway4, 51820, host4, 40000, wgMessage(4, 96)), "198.51.100.7:40000"},
		"reversed ports":               {udpFrame(t, handset4, 51820, gateway4, 40000, wgMessage(4, 96)), "40000"},
		"clear text to the tunnel":     {tunnelFrame(t, handset4, gateway4, 51820, []byte("clear text, padded to more than 32")), "no WireGuard"},
		"a message of a wrong length":  {tunnelFrame(t, handset4, gateway4, 51820, wgMessage(1, 149)), "no WireGuard"},
		"an unpadded data message":     {tunnelFrame(t, handset4, gateway4, 51820, wgMessage(4, 97)), "no WireGuard"},
		"reserved bytes used":          {change(good, 14+20+8+1, 0x41), "no WireGuard"},
		"unknown message type":         {change(good, 14+20+8, 9), "no WireGuard"},
		"TCP to the tunnel's port":     {change(good, 14+9, 6), "TCP"},
		"a fragment":                   {change(good, 14+6, 0x20, 0), "fragment"},
		"a later fragment":             {change(good, 14+6, 0, 5), "fragment"},
		"the reserved IP flag":         {change(good, 14+6, 0x80, 0), "fragment"},
		"IP options":                   {change(good, 14, 0x46), "options"},
		"IP length over the frame":     {change(good, 14+2, 0xff, 0xff), "wrong length"},
		"IP length of nothing":         {change(good, 14+2, 0, 3), "wrong length"},
		"IPv6 length over the frame":   {change(good6, 14+4, 0xff, 0xff), "wrong length"},
		"UDP length short":             {change(good, 14+20+4, 0, 9), "wrong UDP length"},
		"bytes behind the packet":      {append(append([]byte(nil), good...), "hidden"...), "behind"},
		"zeros behind a long packet":   {append(append([]byte(nil), good...), 0, 0), "behind"},
		"bytes behind IPv6":            {append(append([]byte(nil), good6...), 1), "behind"},
		"an IPv6 extension header":     {change(good6, 14+6, 0), "IP protocol 0"},
		"ICMP":                         {ping, "ICMP"},
		"MLD":                          {serialize(t, eth6, ip6, mld), "ICMPv6"},
		"ARP":                          {change(good, 12, 0x08, 0x06), "ARP"},
		"VLAN":                         {change(good, 12, 0x81, 0x00), "EtherType 0x8100"},
		"ESP":                          {change(good, 14+9, 50), "IP protocol 50"},
		"IPv4 of version 6":            {change(good, 14, 0x65), "broken"},
		"a cut IPv4 header":            {good[:20], "broken"},
		"a cut IPv6 header":            {good6[:40], "broken"},
		"a cut UDP header":             {change(good[:14+20+4], 14+2, 0, 24), "cut UDP"},
		"half an Ethernet header":      {good[:9], "9 bytes"},
		"nothing":                      {nil, "0 bytes"},
	} {
		v := r.Classify(c.frame)
		if v.Admitted() || !strings.Contains(v.Why, c.why) {
			t.Errorf("%s: %+v, want outside with %q", name, v, c.why)
		}
	}
}

func TestMinimumPaddingIsNoLeak(t *testing.T) {
	r := Rules{Handsets: []netip.Addr{handset4}, Classes: []Class{{Name: "ike", Gateway: gateway4, Protocol: 17, Port: 4500}}}
	small := tunnelFrame(t, handset4, gateway4, 4500, []byte{0xff})
	padded := append(append([]byte(nil), small...), make([]byte, 60-len(small))...)
	if v := r.Classify(padded); v.Class != "ike" {
		t.Errorf("padded with zeros to 60 bytes: %+v", v)
	}
	padded[59] = 1
	if v := r.Classify(padded); v.Admitted() {
		t.Error("padding that is not zero was admitted")
	}
}

func TestRulesAreChecked(t *testing.T) {
	for name, r := range map[string]Rules{
		"no gateway":         {Classes: []Class{{Name: "tunnel", Protocol: 17, Port: 1}}},
		"no port":            {Classes: []Class{{Name: "tunnel", Gateway: gateway4, Protocol: 17}}},
		"no name":            {Classes: []Class{{Gateway: gateway4, Protocol: 17, Port: 1}}},
		"another protocol":   {Classes: []Class{{Name: "esp", Gateway: gateway4, Protocol: 50, Port: 1}}},
		"WireGuard over TCP": {Classes: []Class{{Name: "t", Gateway: gateway4, Protocol: 6, Port: 1, WireGuard: true}}},
		"no handset address": {Handsets: []netip.Addr{{}}},
	} {
		if _, err := New(r); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
