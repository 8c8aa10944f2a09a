package egress

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Bounds of a level table; they are the sizes of the level hooks' maps.
const (
	MaxLevelNetworks = 32
	MaxLevelRows     = 128
	MaxLevelPrefixes = 512
)

// LevelNetwork is what a process may be allowed to talk to: a tunnel network in red,
// or the gateways in black.
type LevelNetwork struct {
	Name string
	// Netns is the cookie of the network namespace that has it. Not 0.
	Netns uint64
	// Ifindex is the device that leads to it; 0: any device of the namespace.
	Ifindex int
	// Prefixes are the addresses in it, masked; one at least.
	Prefixes []netip.Prefix
}

// LevelRow is what one process of the handset may do: an app or a daemon, which is a
// cgroup with all cgroups below it.
type LevelRow struct {
	Name string
	// Cgroup is the id of its cgroup. Not 0.
	Cgroup uint64
	// Netns is the cookie of the one network namespace it may have sockets in. Not 0.
	Netns uint64
	// Raw says that it may have raw sockets. Others have UDP and TCP alone.
	Raw bool
	// Send and Receive have bit n set if it may send to, or receive from, network n.
	Send, Receive uint32
}

// LevelTable is what the level hooks have in force. The zero value refuses everything:
// no process may even make a socket.
type LevelTable struct {
	Networks []LevelNetwork
	Rows     []LevelRow
}

// Closed returns t without its rights: the same processes may have sockets, and
// nothing passes through them.
func (t LevelTable) Closed() LevelTable {
	c := LevelTable{Networks: t.Networks, Rows: slices.Clone(t.Rows)}
	for i := range c.Rows {
		c.Rows[i].Send, c.Rows[i].Receive = 0, 0
	}
	return c
}

// Check says what is wrong with t.
func (t LevelTable) Check() error {
	if len(t.Networks) > MaxLevelNetworks || len(t.Rows) > MaxLevelRows {
		return fmt.Errorf("level table has %d networks and %d rows, the limits are %d and %d", len(t.Networks), len(t.Rows), MaxLevelNetworks, MaxLevelRows)
	}
	var errs []error
	prefixes := map[levelKey]string{}
	names := map[string]bool{}
	for _, n := range t.Networks {
		if err := n.check(); err != nil {
			errs = append(errs, fmt.Errorf("network %q: %w", n.Name, err))
			continue
		}
		if names[n.Name] {
			errs = append(errs, fmt.Errorf("network %q is given twice", n.Name))
		}
		names[n.Name] = true
		for _, p := range n.Prefixes {
			k := makeLevelKey(n.Netns, p)
			if other, twice := prefixes[k]; twice {
				errs = append(errs, fmt.Errorf("%v is in network %q and in %q", p, other, n.Name))
			}
			prefixes[k] = n.Name
		}
	}
	if len(prefixes) > MaxLevelPrefixes {
		errs = append(errs, fmt.Errorf("level table has %d prefixes, the limit is %d", len(prefixes), MaxLevelPrefixes))
	}
	errs = append(errs, t.apart(prefixes))
	cgroups := map[uint64]string{}
	names = map[string]bool{}
	for _, r := range t.Rows {
		if err := r.check(len(t.Networks)); err != nil {
			errs = append(errs, fmt.Errorf("row %q: %w", r.Name, err))
		}
		if other, twice := cgroups[r.Cgroup]; twice || names[r.Name] {
			errs = append(errs, fmt.Errorf("rows %q and %q are the same to the hooks", other, r.Name))
		}
		cgroups[r.Cgroup], names[r.Name] = r.Name, true
	}
	return errors.Join(errs...)
}

// apart refuses an IPv6 prefix that holds the IPv4-mapped addresses (RFC 4291 §2.5.5.2), as which the hooks' map keeps IPv4:
// there every IPv4 address would be in it. Where the namespace also has all of IPv4 in a network, that longer prefix decides.
func (t LevelTable) apart(prefixes map[levelKey]string) error {
	var errs []error
	for _, n := range t.Networks {
		for _, p := range n.Prefixes {
			_, whole := prefixes[makeLevelKey(n.Netns, netip.PrefixFrom(netip.IPv4Unspecified(), 0))]
			if p.Addr().Is6() && p.Contains(netip.MustParseAddr("::ffff:0.0.0.0")) && !whole {
				errs = append(errs, fmt.Errorf("network %q: %v holds the IPv4-mapped addresses, and no network of its namespace is 0.0.0.0/0", n.Name, p))
			}
		}
	}
	return errors.Join(errs...)
}

func (n LevelNetwork) check() error {
	switch {
	case !validName(n.Name):
		return errors.New("bad name")
	case n.Netns == 0:
		return errors.New("no network namespace")
	case n.Ifindex < 0 || n.Ifindex > 1<<31-1:
		return fmt.Errorf("interface index %d", n.Ifindex)
	case len(n.Prefixes) == 0:
		return errors.New("no address")
	}
	for _, p := range n.Prefixes {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
			return fmt.Errorf("%v is no masked prefix", p)
		}
	}
	return nil
}

func (r LevelRow) check(networks int) error {
	switch {
	case !validName(r.Name):
		return errors.New("bad name")
	case r.Cgroup == 0 || r.Netns == 0:
		return errors.New("no cgroup or network namespace")
	case uint64(r.Send|r.Receive)>>networks != 0:
		return errors.New("rights to a network that is not there")
	}
	return nil
}

// The byte form of a level table: "RGL1", the number of networks (1) and the networks,
// the number of rows (1) and the rows, in the order of t:
//
//	network  name · namespace (8) · ifindex (4) · number of prefixes (2) · per prefix:
//	         length of the address (1: 4 or 16), the address, bits (1)
//	row      name · cgroup (8) · namespace (8) · raw (1) · send (4) · receive (4)
const (
	levelMagic = "RGL1"
	// MaxLevelMarshal is the longest byte form.
	MaxLevelMarshal = len(levelMagic) + 1 + MaxLevelNetworks*(1+MaxName+8+4+2) + MaxLevelPrefixes*18 + 1 + MaxLevelRows*(1+MaxName+8+8+1+4+4)
)

// Marshal returns t's byte form. A table that [LevelTable.Check] refuses has none.
func (t LevelTable) Marshal() ([]byte, error) {
	if err := t.Check(); err != nil {
		return nil, fmt.Errorf("cannot marshal a level table: %w", err)
	}
	return t.encode(), nil
}

func (t LevelTable) encode() []byte {
	b := append([]byte(levelMagic), byte(len(t.Networks)))
	for _, n := range t.Networks {
		b = appendText(b, n.Name)
		b = binary.BigEndian.AppendUint64(b, n.Netns)
		b = binary.BigEndian.AppendUint32(b, uint32(n.Ifindex))
		b = binary.BigEndian.AppendUint16(b, uint16(len(n.Prefixes)))
		for _, p := range n.Prefixes {
			addr := p.Addr().AsSlice()
			b = append(append(append(b, byte(len(addr))), addr...), byte(p.Bits()))
		}
	}
	b = append(b, byte(len(t.Rows)))
	for _, r := range t.Rows {
		b = appendText(b, r.Name)
		b = binary.BigEndian.AppendUint64(b, r.Cgroup)
		b = binary.BigEndian.AppendUint64(b, r.Netns)
		b = append(b, boolByte(r.Raw))
		b = binary.BigEndian.AppendUint32(b, r.Send)
		b = binary.BigEndian.AppendUint32(b, r.Receive)
	}
	return b
}

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// ParseLevelTable reads a byte form. It refuses what Marshal would not have written.
func ParseLevelTable(b []byte) (LevelTable, error) {
	d := decoder{b: b}
	t := d.levelTable()
	if err := d.end(); err != nil {
		return LevelTable{}, fmt.Errorf("cannot parse a level table: %w", err)
	}
	return t, nil
}

// levelTable reads to the end of the bytes.
func (d *decoder) levelTable() (t LevelTable) {
	if string(d.take(len(levelMagic))) != levelMagic {
		d.fail(errors.New("not a level table"))
		return t
	}
	for range d.u8() {
		n := LevelNetwork{Name: d.name(MaxName), Netns: d.u64()}
		index := d.u32()
		if n.Ifindex = int(index); index > 1<<31-1 {
			d.fail(fmt.Errorf("interface index %d", index))
		}
		for range d.u16() {
			n.Prefixes = append(n.Prefixes, d.prefix())
			if d.err != nil {
				return t
			}
		}
		if d.err != nil {
			return t
		}
		t.Networks = append(t.Networks, n)
	}
	for range d.u8() {
		r := LevelRow{Name: d.name(MaxName), Cgroup: d.u64(), Netns: d.u64()}
		raw := d.u8()
		if r.Raw = raw == 1; raw > 1 {
			d.fail(fmt.Errorf("raw is %d", raw))
		}
		r.Send, r.Receive = d.u32(), d.u32()
		if d.err != nil {
			return t
		}
		t.Rows = append(t.Rows, r)
	}
	if d.err == nil {
		if err := t.Check(); err != nil {
			d.fail(err)
		}
	}
	return t
}

func (d *decoder) prefix() netip.Prefix {
	n := d.u8()
	if n != 4 && n != 16 {
		d.fail(fmt.Errorf("address of %d bytes", n))
		return netip.Prefix{}
	}
	addr, _ := netip.AddrFromSlice(d.take(int(n)))
	return netip.PrefixFrom(addr, int(d.u8()))
}

// Digest names t: SHA-256 over a label and the byte form.
func (t LevelTable) Digest() [32]byte {
	return sha256.Sum256(append([]byte("rempart level table\n"), t.encode()...))
}

// Rights names what t allows to whom, without the numbers that only the running kernel
// knows: cgroups, namespaces and devices. It is what a signed policy alone leads to.
func (t LevelTable) Rights() [32]byte {
	n := LevelTable{Networks: slices.Clone(t.Networks), Rows: slices.Clone(t.Rows)}
	for i := range n.Networks {
		n.Networks[i].Netns, n.Networks[i].Ifindex = 0, 0
	}
	for i := range n.Rows {
		n.Rows[i].Cgroup, n.Rows[i].Netns = 0, 0
	}
	return sha256.Sum256(append([]byte("rempart level rights\n"), n.encode()...))
}

// Within tells whether every packet that t lets pass is let pass by u too.
func (t LevelTable) Within(u LevelTable) bool {
	if len(t.Rows) == 0 {
		return true
	}
	// Tables of different networks are not compared: they count as different.
	same := slices.EqualFunc(t.Networks, u.Networks, func(a, b LevelNetwork) bool {
		return a.Name == b.Name && a.Netns == b.Netns && a.Ifindex == b.Ifindex && slices.Equal(a.Prefixes, b.Prefixes)
	})
	for _, r := range t.Rows {
		i := slices.IndexFunc(u.Rows, func(o LevelRow) bool { return o.Cgroup == r.Cgroup && o.Netns == r.Netns })
		if !same || i < 0 || r.Send&^u.Rows[i].Send != 0 || r.Receive&^u.Rows[i].Receive != 0 || r.Raw && !u.Rows[i].Raw {
			return false
		}
	}
	return true
}

// levelKey is the key of a prefix in the hooks' map, as in internal/bpf/c/level.c: the
// number of bits that count (4 bytes), the namespace's cookie (8), the address (16;
// IPv4 as ::ffff:a.b.c.d). Numbers are the machine's, which is little endian.
type levelKey [28]byte

func makeLevelKey(netns uint64, p netip.Prefix) (k levelKey) {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	addr := p.Addr().As16()
	binary.LittleEndian.PutUint32(k[:], uint32(64+bits))
	binary.LittleEndian.PutUint64(k[4:], netns)
	copy(k[12:], addr[:])
	return k
}

// LevelPrefix is one entry of the hooks' map of networks: a key, and the network's
// number and device.
type LevelPrefix struct {
	Key   [28]byte
	Value [8]byte
}

// LevelEntry is one entry of the hooks' map of processes.
type LevelEntry struct {
	Cgroup uint64
	Value  [24]byte // namespace (8), send (4), receive (4), raw (4), number of the row from 1 (4)
}

// Entries compiles t to the entries of both maps.
func (t LevelTable) Entries() (networks []LevelPrefix, rows []LevelEntry) {
	for i, n := range t.Networks {
		for _, p := range n.Prefixes {
			e := LevelPrefix{Key: makeLevelKey(n.Netns, p)}
			binary.LittleEndian.PutUint32(e.Value[:], uint32(i))
			binary.LittleEndian.PutUint32(e.Value[4:], uint32(n.Ifindex))
			networks = append(networks, e)
		}
	}
	for i, r := range t.Rows {
		e := LevelEntry{Cgroup: r.Cgroup}
		binary.LittleEndian.PutUint64(e.Value[:], r.Netns)
		binary.LittleEndian.PutUint32(e.Value[8:], r.Send)
		binary.LittleEndian.PutUint32(e.Value[12:], r.Receive)
		binary.LittleEndian.PutUint32(e.Value[16:], uint32(boolByte(r.Raw)))
		binary.LittleEndian.PutUint32(e.Value[20:], uint32(i+1))
		rows = append(rows, e)
	}
	return networks, rows
}
