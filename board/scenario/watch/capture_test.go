package watch

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// The crafted captures are written by an independent pcapng writer.

var start = time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC)

type shot struct {
	link int
	at   time.Duration
	data []byte
}

func capture(t testing.TB, names []string, drops map[int]uint64, shots ...shot) []byte {
	t.Helper()
	var b bytes.Buffer
	iface := func(name string) pcapgo.NgInterface {
		return pcapgo.NgInterface{Name: name, LinkType: layers.LinkTypeEthernet, TimestampResolution: 9, SnapLength: 0}
	}
	w, err := pcapgo.NewNgWriterInterface(&b, iface(names[0]), pcapgo.DefaultNgWriterOptions)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names[1:] {
		if _, err := w.AddInterface(iface(n)); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range shots {
		ci := gopacket.CaptureInfo{Timestamp: start.Add(s.at), CaptureLength: len(s.data), Length: len(s.data), InterfaceIndex: s.link}
		if err := w.WritePacket(ci, s.data); err != nil {
			t.Fatal(err)
		}
	}
	for i, n := range drops {
		if err := w.WriteInterfaceStats(i, pcapgo.NgInterfaceStatistics{LastUpdate: start, PacketsReceived: 1, PacketsDropped: n}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func serialize(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

// wgMessage is a WireGuard message of the given type and length.
func wgMessage(typ byte, n int) []byte {
	b := make([]byte, n)
	b[0] = typ
	for i := 4; i < n; i++ {
		b[i] = byte(i * 7)
	}
	return b
}

// reader's shorthand for hand-made blocks, little endian.
func block(typ uint32, body []byte) []byte {
	n := uint32(12 + len(body))
	b := binary.LittleEndian.AppendUint32(nil, typ)
	b = binary.LittleEndian.AppendUint32(b, n)
	b = append(b, body...)
	return binary.LittleEndian.AppendUint32(b, n)
}

func le16(v ...uint16) (b []byte) {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint16(b, x)
	}
	return b
}

func le32(v ...uint32) (b []byte) {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, x)
	}
	return b
}

func sectionBlock() []byte {
	return block(blockSection, append(append(le32(byteOrderMagic), le16(1, 0)...), le32(0xFFFFFFFF, 0xFFFFFFFF)...))
}

func interfaceBlock(linkType uint16, options ...byte) []byte {
	return block(blockInterface, append(append(le16(linkType, 0), le32(0)...), options...))
}
