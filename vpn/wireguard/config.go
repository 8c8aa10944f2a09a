package wireguard

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// MTU is the inner MTU in bytes: 1500 less the outer IPv6 and UDP headers and
// WireGuard's own (40 + 8 + 32).
const MTU = 1420

// Keepalive is how often an initiator sends when there is nothing to send, so
// that a NAT on the way keeps its mapping (wireguard.com/quickstart).
const Keepalive = 25 * time.Second

// MaxPeers bounds a gateway's peers.
const MaxPeers = 4096

// Key is an X25519 public key.
type Key [32]byte

// Peer is one other end.
type Peer struct {
	// Key is its public key. Required, unique among the peers.
	Key Key
	// Endpoint is its outer address. Required to connect; a listener learns it.
	Endpoint netip.AddrPort
	// Inner are the addresses that may be behind it, masked, and no one else's.
	// Required.
	Inner []netip.Prefix
}

// Hosts gives each address a prefix of its own: /32 or /128.
func Hosts(addresses []netip.Addr) []netip.Prefix {
	prefixes := make([]netip.Prefix, len(addresses))
	for i, a := range addresses {
		a = a.Unmap().WithZone("")
		prefixes[i] = netip.PrefixFrom(a, a.BitLen())
	}
	return prefixes
}

// Check refuses a set of peers in which one could speak for another.
func Check(peers []Peer) error {
	if len(peers) > MaxPeers {
		return fmt.Errorf("cannot set %d peers, at most %d", len(peers), MaxPeers)
	}
	var errs []error
	keys := make(map[Key]int, len(peers))
	type claim struct {
		prefix netip.Prefix
		peer   int
	}
	var claims []claim
	for i, p := range peers {
		if p.Key == (Key{}) {
			errs = append(errs, fmt.Errorf("cannot set peer %d, it has no key", i))
		} else if first, ok := keys[p.Key]; ok {
			errs = append(errs, fmt.Errorf("cannot set peer %d, it has the key of peer %d", i, first))
		}
		keys[p.Key] = i
		if len(p.Inner) == 0 {
			errs = append(errs, fmt.Errorf("cannot set peer %d, it has no inner address", i))
		}
		for _, prefix := range p.Inner {
			if !prefix.IsValid() || prefix != prefix.Masked() || prefix.Addr().Is4In6() || prefix.Addr().Zone() != "" {
				errs = append(errs, fmt.Errorf("cannot set peer %d, inner address %v is malformed", i, prefix))
				continue
			}
			claims = append(claims, claim{prefix, i})
		}
		if ep := p.Endpoint; ep.IsValid() && (ep.Port() == 0 || ep.Addr().IsUnspecified() || ep.Addr().IsMulticast()) {
			errs = append(errs, fmt.Errorf("cannot set peer %d, endpoint %v cannot be sent to", i, ep))
		}
	}
	// Sorted by address and then by length, a prefix that overlaps another
	// stands after one that contains it: one look back at the widest so far.
	slices.SortFunc(claims, func(a, b claim) int {
		return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()))
	})
	for i := 1; i < len(claims); i++ {
		if claims[i].prefix.Overlaps(claims[i-1].prefix) {
			errs = append(errs, fmt.Errorf("cannot set peer %d, %v overlaps %v of peer %d",
				claims[i].peer, claims[i].prefix, claims[i-1].prefix, claims[i-1].peer))
			claims[i] = claims[i-1]
		}
	}
	return errors.Join(errs...)
}

// The peers' part of WireGuard's configuration protocol
// (wireguard.com/xplatform). Only public values pass through it: the private
// key is set by a call, never as text.

// peerText is one peer in full; known means that the device has it already.
func peerText(p Peer, known bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "public_key=%s\n", hex.EncodeToString(p.Key[:]))
	if p.Endpoint.IsValid() {
		fmt.Fprintf(&b, "endpoint=%s\n", p.Endpoint)
		fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", Keepalive/time.Second)
	}
	if known {
		b.WriteString("replace_allowed_ips=true\n")
	}
	for _, prefix := range p.Inner {
		fmt.Fprintf(&b, "allowed_ip=%s\n", prefix)
	}
	return b.String()
}

// replaceText leads from the old set of a listener to the new one. A peer in
// both, with the same addresses, is not mentioned and keeps its session.
func replaceText(old, wanted []Peer) string {
	var b strings.Builder
	is := make(map[Key]Peer, len(old))
	for _, p := range old {
		is[p.Key] = p
	}
	keep := make(map[Key]bool, len(wanted))
	for _, p := range wanted {
		keep[p.Key] = true
	}
	// First what goes, so that an address that changes hands is never refused
	// to its new owner by the old one's removal.
	for _, p := range old {
		if !keep[p.Key] {
			fmt.Fprintf(&b, "public_key=%s\nremove=true\n", hex.EncodeToString(p.Key[:]))
		}
	}
	for _, p := range wanted {
		before, known := is[p.Key]
		if known && slices.Equal(before.Inner, p.Inner) {
			continue
		}
		b.WriteString(peerText(p, known))
	}
	return b.String()
}
