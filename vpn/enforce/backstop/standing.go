package backstop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"rempart/vpn/egress"
	"rempart/vpn/enforce/nft"
)

// Standing is what both layers should be, for a process that did not lay them.
type Standing struct {
	Wanted Wanted
	Owners map[Place]uint32 // netlink ports that own the tables, of black and red
	Layers []Layer          // that this kernel has
}

// Standing returns what should be in force now.
func (b *Backstop) Standing() Standing {
	s := Standing{Wanted: b.wanted, Owners: map[Place]uint32{}, Layers: b.There()}
	for name, space := range b.spaces {
		if port := b.Owner(name); port != 0 {
			s.Owners[space.Place] = port
		}
	}
	return s
}

// ReadBack compares the layers of the calling thread's network namespace, which is a p.
func (s Standing) ReadBack(p Place) error { return ReadBack(p, s.Wanted, s.Owners[p], s.Layers...) }

// Bounds of the byte form.
const (
	maxDevices  = 16
	maxNetworks = 64
	maxPorts    = 16
	maxOwn      = 8
	maxName     = 15
	// MaxStanding is the longest byte form.
	MaxStanding = 1 + 2*4 + 4 + 2 + egress.MaxMarshal + 1 + maxDevices*(1+maxName+1+maxOwn*17+1+4+egress.LinkFactsLen) + 1 + maxName + 1 + maxNetworks*18 + 2*(1+maxPorts*3)
)

// Marshal returns the byte form: layers (1), owners of black and red (4 each), uid (4), the
// classes behind their length (2), then each list behind its length (1): devices with
// their own addresses and their link, if they have one; the tunnel's name; its networks; input and forward.
// Numbers are big endian.
func (s Standing) Marshal() ([]byte, error) {
	w := s.Wanted
	if len(w.Devices) > maxDevices || len(w.Networks) > maxNetworks || len(w.Input) > maxPorts || len(w.Forward) > maxPorts || len(w.Tunnel) > maxName {
		return nil, errors.New("cannot marshal a backstop: too much of something")
	}
	for name := range w.Links {
		if !slices.Contains(w.Devices, name) {
			return nil, fmt.Errorf("cannot marshal a backstop: the link of %s, which is no device", name)
		}
	}
	for name, own := range w.Own {
		if !slices.Contains(w.Devices, name) || len(own) == 0 || len(own) > maxOwn {
			return nil, fmt.Errorf("cannot marshal a backstop: %d addresses of %s", len(own), name)
		}
	}
	var layers byte
	for i, l := range []Layer{NFT, XFRM} {
		if slices.Contains(s.Layers, l) {
			layers |= 1 << i
		}
	}
	b := []byte{layers}
	for _, n := range []uint32{s.Owners[Black], s.Owners[Red], w.UID} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	classes, err := w.Admitted.Marshal()
	if err != nil {
		return nil, err
	}
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(classes))), classes...)
	b = append(b, byte(len(w.Devices)))
	for _, d := range w.Devices {
		if d == "" || len(d) > maxName {
			return nil, fmt.Errorf("cannot marshal a backstop: device %q", d)
		}
		b = append(append(b, byte(len(d))), d...)
		b = append(b, byte(len(w.Own[d])))
		for _, a := range w.Own[d] {
			addr := a.AsSlice()
			b = append(append(b, byte(len(addr))), addr...)
		}
		link, there := w.Links[d]
		if !there {
			b = append(b, 0)
			continue
		}
		facts := link.Facts.Bytes()
		b = append(binary.BigEndian.AppendUint32(append(b, 1), link.UID), facts[:]...)
	}
	b = append(append(b, byte(len(w.Tunnel))), w.Tunnel...)
	b = append(b, byte(len(w.Networks)))
	for _, n := range w.Networks {
		addr := n.Addr().AsSlice()
		b = append(append(append(b, byte(len(addr))), addr...), byte(n.Bits()))
	}
	for _, ports := range [][]nft.Port{w.Input, w.Forward} {
		b = append(b, byte(len(ports)))
		for _, p := range ports {
			b = binary.BigEndian.AppendUint16(append(b, p.Protocol), p.Number)
		}
	}
	return b, nil
}

// ParseStanding reads a byte form. It accepts only what [Standing.Marshal] writes.
func ParseStanding(b []byte) (Standing, error) {
	r := reader{b: b}
	s := Standing{Owners: map[Place]uint32{}}
	layers := r.u8()
	for i, l := range []Layer{NFT, XFRM} {
		if layers&(1<<i) != 0 {
			s.Layers = append(s.Layers, l)
		}
	}
	for _, p := range []Place{Black, Red} {
		if n := r.u32(); n != 0 {
			s.Owners[p] = n
		}
	}
	w := &s.Wanted
	w.UID = r.u32()
	var err error
	if w.Admitted, err = egress.Parse(r.take(int(r.u16()))); err != nil {
		return Standing{}, fmt.Errorf("cannot parse a backstop: %w", err)
	}
	for range r.count(maxDevices) {
		name := string(r.take(r.count(maxName)))
		w.Devices = append(w.Devices, name)
		var own []netip.Addr
		for range r.count(maxOwn) {
			addr, _ := netip.AddrFromSlice(r.take(int(r.u8())))
			own = append(own, addr)
		}
		if len(own) > 0 {
			if w.Own == nil {
				w.Own = map[string][]netip.Addr{}
			}
			w.Own[name] = own
		}
		if r.u8() == 0 {
			continue
		}
		l := nft.Link{UID: r.u32()}
		if l.Facts, err = egress.ParseLinkFacts([egress.LinkFactsLen]byte(r.take(egress.LinkFactsLen))); err != nil {
			return Standing{}, fmt.Errorf("cannot parse a backstop: %w", err)
		}
		if w.Links == nil {
			w.Links = map[string]nft.Link{}
		}
		w.Links[name] = l
	}
	w.Tunnel = string(r.take(r.count(maxName)))
	for range r.count(maxNetworks) {
		addr, _ := netip.AddrFromSlice(r.take(int(r.u8())))
		w.Networks = append(w.Networks, netip.PrefixFrom(addr, int(r.u8())))
	}
	for _, ports := range []*[]nft.Port{&w.Input, &w.Forward} {
		for range r.count(maxPorts) {
			*ports = append(*ports, nft.Port{Protocol: r.u8(), Number: r.u16()})
		}
	}
	// One form for one backstop: whatever else the bytes said would be missing here.
	if again, err := s.Marshal(); r.short || len(r.b) != 0 || err != nil || !slices.Equal(again, b) {
		return Standing{}, errors.New("cannot parse a backstop: not the one byte form")
	}
	return s, nil
}

// reader takes fields off the front; past the end it gives zeroes and remembers.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.b, r.short = nil, true
		return make([]byte, n)
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u8() byte    { return r.take(1)[0] }
func (r *reader) u16() uint16 { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }

func (r *reader) count(max int) int {
	n := int(r.u8())
	if n > max {
		r.b, r.short = nil, true
		return 0
	}
	return n
}
