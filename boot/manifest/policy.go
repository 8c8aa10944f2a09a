package manifest

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Version is the one version of the policy document that this code reads.
const Version = 1

// MaxDocument is the largest policy document accepted, in bytes.
const MaxDocument = 64 << 10

// The files of an image's /etc/rempart.
const (
	PolicyFile   = "policy"
	AnchorFile   = "policy.pub"
	ApprovalFile = "approval"
)

// The roles an image can have.
const (
	RoleHandset = "handset"
	RoleGateway = "gateway"
)

// The purposes of a gateway's service, and with it of an admitted class of
// packets.
const (
	PurposeTunnel      = "tunnel"      // the WireGuard tunnel itself, UDP
	PurposeAttestation = "attestation" // quotes and enrolment before the tunnel, TCP
	PurposeIKE         = "ike"         // IKEv2 and ESP in UDP (RFC 7296, RFC 3948), UDP
)

// Serial numbers run from MinSerial to MaxSerial: each is one bit of the
// TPM's 64-bit rollback index, and bit 0 is not used.
const (
	MinSerial = 1
	MaxSerial = 63
)

// Policy is the policy document: everything that an integrator may decide.
// Init, egressd's table, the levels and the gateway list all come from it and
// from nowhere else.
type Policy struct {
	Version  int       `json:"version"`  // always [Version]
	Serial   int       `json:"serial"`   // MinSerial … MaxSerial; see [CheckFloor]
	Role     string    `json:"role"`     // RoleHandset or RoleGateway
	Name     string    `json:"name"`     // of this policy, for people
	Domain   string    `json:"domain"`   // SIP domain, lower-case ASCII
	Levels   []string  `json:"levels"`   // lowest first
	Apps     []App     `json:"apps"`     // apps not listed have no network
	Networks []Network `json:"networks"` // tunnel networks; no level permits any other
	Gateways []Gateway `json:"gateways"` // in role gateway: the one entry that is itself
	Keys     Keys      `json:"keys"`     // who may sign what
}

// App gives one app, which is a cgroup, its levels.
type App struct {
	Name   string `json:"name"`   // of the cgroup: voiced, gatewayd, or <name> of /apps/<name>
	Reads  string `json:"reads"`  // the highest level it may read (its clearance)
	Writes string `json:"writes"` // the level of what it writes; not below Reads
}

// Network is a tunnel network in red.
type Network struct {
	Name       string         `json:"name"`       // of the device, for example wg0 (at most 15 bytes)
	Accredited string         `json:"accredited"` // the level it is accredited for
	Inner      []netip.Prefix `json:"inner"`      // the addresses inside it, masked
}

// Gateway is one far end of the tunnel.
type Gateway struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`           // outer addresses, in black
	TunnelKey Key32        `json:"tunnel_key,omitzero"` // WireGuard public key; left out in role gateway, whose own key is in its TPM
	Inner     []netip.Addr `json:"inner"`               // its addresses inside the tunnel
	Services  []Service    `json:"services"`            // what handsets may reach on Addresses, and nothing else
}

// Service is one (protocol, port, purpose) of a gateway's outer addresses.
type Service struct {
	Protocol string `json:"protocol"` // udp or tcp
	Port     uint16 `json:"port"`
	Purpose  string `json:"purpose"`
}

// Keys are the public keys of each role, PEM, so that each role can be held
// by other people and rotated by itself. No key may have two roles.
type Keys struct {
	Image     []string `json:"image"`     // ECDSA P-256 public keys that approve boots
	Policy    []string `json:"policy"`    // ECDSA P-256 public keys that sign policies
	Authority []string `json:"authority"` // root certificates of the device authority
	Gateway   []string `json:"gateway"`   // ECDSA P-256 public keys of the gateways; may be empty
}

// Key32 is a 32-byte public key, base64 (RFC 4648 §4) in text, as wg(8)
// prints it.
type Key32 [32]byte

// IsZero reports whether the key was left out.
func (k Key32) IsZero() bool { return k == Key32{} }

// String returns the key as wg(8) prints it.
func (k Key32) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// MarshalText returns the key as wg(8) prints it.
func (k Key32) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads a key as wg(8) prints it: 44 characters of base64.
func (k *Key32) UnmarshalText(text []byte) error {
	raw, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil {
		return fmt.Errorf("cannot read key %q: %w", text, err)
	}
	if len(raw) != len(k) || len(text) != base64.StdEncoding.EncodedLen(len(k)) {
		return fmt.Errorf("cannot read key %q: want %d bytes in base64", text, len(k))
	}
	copy(k[:], raw)
	return nil
}

// Level returns the rank of a level, 0 for the lowest; false if the policy
// does not know it.
func (p *Policy) Level(name string) (rank int, ok bool) {
	rank = slices.Index(p.Levels, name)
	return rank, rank >= 0
}

// Network returns the network of that device name.
func (p *Policy) Network(name string) (Network, bool) {
	for _, n := range p.Networks {
		if n.Name == name {
			return n, true
		}
	}
	return Network{}, false
}

// CheckFloor refuses a serial whose bit is set in bits, the value of the
// TPM's rollback index. It is the same test that the TPM makes in PolicyNV
// BITCLEAR (TPM 2.0 Part 3 §23.9), so that init can say why a boot will open
// nothing instead of finding out later. The error wraps [ErrRevoked].
func CheckFloor(serial int, bits uint64) error {
	if serial < MinSerial || serial > MaxSerial {
		return fmt.Errorf("%w: serial %d is not between %d and %d", ErrInvalid, serial, MinSerial, MaxSerial)
	}
	if bits&(1<<serial) != 0 {
		return fmt.Errorf("%w: serial %d is revoked in this TPM", ErrRevoked, serial)
	}
	return nil
}

// The reasons for which a document is refused. Each error of this package
// about a document wraps exactly one of them; [Reason] gives its short name.
var (
	ErrMissing      = errors.New("missing")
	ErrTooLarge     = errors.New("oversized")
	ErrUnsigned     = errors.New("unsigned")
	ErrGarbled      = errors.New("garbled")
	ErrVersion      = errors.New("unknown version")
	ErrWrongKey     = errors.New("signed by a key that is not trusted")
	ErrBadSignature = errors.New("wrongly signed")
	ErrInvalid      = errors.New("invalid")
	ErrRevoked      = errors.New("older than the rollback floor")
)

// Reason returns the refusal that err wraps in a few words, or "" if it wraps
// none of this package's.
func Reason(err error) string {
	for _, reason := range []error{ErrMissing, ErrTooLarge, ErrUnsigned, ErrGarbled, ErrVersion,
		ErrWrongKey, ErrBadSignature, ErrInvalid, ErrRevoked} {
		if errors.Is(err, reason) {
			return reason.Error()
		}
	}
	return ""
}
