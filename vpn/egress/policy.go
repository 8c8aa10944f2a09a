package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Protocol numbers of the only two transports a class may have (IANA).
const (
	TCP uint8 = 6
	UDP uint8 = 17
)

// MaxClasses bounds a policy: 250 gateways with a few services each over both stacks. The
// gate's table has four times the slots.
const MaxClasses = 1024

// MaxName is the longest gateway name in bytes (one DNS label).
const MaxName = 63

// Purpose says what a class is for. The gate does not look at it: it is for
// people who read a policy in force.
type Purpose uint8

// Purposes of the signed policy's services.
const (
	Tunnel Purpose = iota + 1
	Attestation
	IKE
)

// ParsePurpose is the inverse of [Purpose.String].
func ParsePurpose(s string) (Purpose, error) {
	for p := Tunnel; p <= IKE; p++ {
		if s == p.String() {
			return p, nil
		}
	}
	return 0, fmt.Errorf("unknown purpose %q", s)
}

func (p Purpose) String() string {
	switch p {
	case Tunnel:
		return "tunnel"
	case Attestation:
		return "attestation"
	case IKE:
		return "ike"
	}
	return fmt.Sprintf("purpose(%d)", uint8(p))
}

// Class is one kind of frame that may cross a black device.
type Class struct {
	// Gateway is the name the signed policy gives the remote.
	Gateway string
	// Addr is the remote's address. The zero Addr means any remote: a responder's
	// class, known by its own local port.
	Addr netip.Addr
	// Proto is TCP or UDP.
	Proto uint8
	// Port is the remote's port, or the local one in a responder's class. Not 0.
	Port uint16
	// Purpose is what the class is for.
	Purpose Purpose
	// Cgroup is the id (inode number of the cgroup2 folder) of the only cgroup whose
	// sockets may send in this class. Not 0.
	Cgroup uint64
}

// Responder tells whether c admits any remote.
func (c Class) Responder() bool { return !c.Addr.IsValid() }

// Proto and port as in "udp/51820", for people.
func service(proto uint8, port uint16) string {
	switch proto {
	case TCP:
		return fmt.Sprintf("tcp/%d", port)
	case UDP:
		return fmt.Sprintf("udp/%d", port)
	}
	return fmt.Sprintf("protocol(%d)/%d", proto, port)
}

func (c Class) String() string {
	remote := "any"
	if !c.Responder() {
		remote = c.Addr.String()
	}
	return fmt.Sprintf("%s %s %s %s from cgroup %d", c.Gateway, remote, service(c.Proto, c.Port), c.Purpose, c.Cgroup)
}

// Check says what is wrong with c.
func (c Class) Check() error {
	var errs []error
	if !validName(c.Gateway) {
		errs = append(errs, fmt.Errorf("gateway name %q is not 1 to %d of a-z, 0-9, '-', '.'", c.Gateway, MaxName))
	}
	if c.Addr.IsValid() {
		errs = append(errs, checkAddr(c.Addr))
	}
	if c.Proto != TCP && c.Proto != UDP {
		errs = append(errs, fmt.Errorf("protocol %d is neither tcp (6) nor udp (17)", c.Proto))
	}
	if c.Port == 0 {
		errs = append(errs, errors.New("port is 0"))
	}
	if c.Purpose < Tunnel || c.Purpose > IKE {
		errs = append(errs, fmt.Errorf("unknown purpose %d", uint8(c.Purpose)))
	}
	if c.Cgroup == 0 {
		errs = append(errs, errors.New("cgroup id is 0, which is every frame without a socket"))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("class %v: %w", c, err)
	}
	return nil
}

// checkAddr refuses addresses that are no single host somewhere else.
func checkAddr(a netip.Addr) error {
	switch {
	case a.Zone() != "":
		return fmt.Errorf("address %v has a zone", a)
	case a.Is4In6():
		return fmt.Errorf("address %v is IPv4 written as IPv6", a)
	case !host(a):
		return fmt.Errorf("address %v is not the address of a host", a)
	}
	return nil
}

// host is the rule of reason [RemoteRefused]: no multicast, broadcast or reserved
// (class E), no loopback, no "this network", nothing in IPv6's low ::/64.
func host(a netip.Addr) bool {
	if a.Is4() {
		b := a.As4()
		return b[0] != 0 && b[0] != 127 && b[0] < 224
	}
	b := a.As16()
	return b[0] != 0xff && [8]byte(b[:8]) != [8]byte{}
}

func validName(s string) bool {
	return s != "" && len(s) <= MaxName && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-.") == ""
}

// Policy is what the gate admits. The zero value admits nothing.
type Policy struct {
	Classes []Class
}

// DenyAll returns the policy that admits nothing.
func DenyAll() Policy { return Policy{} }

// Check says what is wrong with p: a bad class, too many, or two classes that the
// gate could not tell apart (same remote, protocol and port).
func (p Policy) Check() error {
	if len(p.Classes) > MaxClasses {
		return fmt.Errorf("policy has %d classes, the limit is %d", len(p.Classes), MaxClasses)
	}
	var errs []error
	seen := make(map[Key]Class, len(p.Classes))
	for _, c := range p.Classes {
		if err := c.Check(); err != nil {
			errs = append(errs, err)
			continue
		}
		k := c.key()
		if other, ok := seen[k]; ok {
			errs = append(errs, fmt.Errorf("classes %v and %v are the same to the gate", other, c))
		}
		seen[k] = c
	}
	return errors.Join(errs...)
}

// For returns the part of p that belongs to gateway name.
func (p Policy) For(gateway string) Policy {
	var q Policy
	for _, c := range p.Classes {
		if c.Gateway == gateway {
			q.Classes = append(q.Classes, c)
		}
	}
	return q
}

// Equal tells whether p and q admit the same frames under the same names.
func (p Policy) Equal(q Policy) bool { return p.Digest() == q.Digest() }

// Within tells whether every frame that p admits is admitted by q too.
func (p Policy) Within(q Policy) bool {
	wider := q.Entries()
	for _, e := range p.Entries() {
		if !slices.Contains(wider, e) {
			return false
		}
	}
	return true
}

// Key is the key of one rule in the gate's table, as in internal/bpf/c/gate.c:
// 16 bytes of address (IPv4 in the first four), port in network order, protocol,
// kind (4 IPv4, 6 IPv6, 0 any remote).
type Key [20]byte

// Kinds of key.
const (
	kindAny uint8 = 0
	kindV4  uint8 = 4
	kindV6  uint8 = 6
)

// Entry is one rule of the gate's table: the key and the cgroup id that may send.
type Entry struct {
	Key    Key
	Cgroup uint64
}

func (c Class) key() Key {
	if c.Responder() {
		return makeKey(kindAny, nil, c.Proto, c.Port)
	}
	if c.Addr.Is4() {
		return makeKey(kindV4, c.Addr.AsSlice(), c.Proto, c.Port)
	}
	return makeKey(kindV6, c.Addr.AsSlice(), c.Proto, c.Port)
}

func makeKey(kind uint8, addr []byte, proto uint8, port uint16) (k Key) {
	copy(k[:16], addr)
	k[16], k[17] = byte(port>>8), byte(port)
	k[18], k[19] = proto, kind
	return k
}

// Entries compiles p to rules, in the order of their keys.
func (p Policy) Entries() []Entry {
	entries := make([]Entry, 0, len(p.Classes))
	for _, c := range p.Classes {
		entries = append(entries, Entry{c.key(), c.Cgroup})
	}
	sortEntries(entries)
	return entries
}

func sortEntries(entries []Entry) {
	slices.SortFunc(entries, func(a, b Entry) int { return slices.Compare(a.Key[:], b.Key[:]) })
}
