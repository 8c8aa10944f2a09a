// Package peers is who may use the tunnel and be called: the certificates in
// the gateway's enrolment folder, each verified against the device authority of
// the signed policy. The folder's files are written by people and copied by
// tools, so a bad one is reported and passed over, never fatal; what two files
// disagree about belongs to neither.
package peers

import (
	"cmp"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"rempart/keystore/client/identity"
)

// Bounds of the folder.
const (
	MaxPeers    = 256      // certificates taken
	maxEntries  = 2048     // directory entries looked at
	maxFileSize = 16 << 10 // bytes of one file
	maxChain    = 4        // certificates in one file
)

// Peer is one enrolled handset as tunneld's PUT /v1/peers takes it.
type Peer struct {
	Name string `json:"name"`
	// PublicKey is the handset's WireGuard key, base64 of 32 bytes.
	PublicKey string `json:"public_key"`
	// Inner is the addresses it may use inside the tunnel.
	Inner []netip.Addr `json:"inner"`
	// Level is the certified level; URI the certified SIP address. tunneld
	// needs neither.
	Level string `json:"-"`
	URI   string `json:"-"`
}

// Fault is one file that was passed over.
type Fault struct {
	File string
	Err  error
}

// Set is what the folder says, sorted by name.
type Set struct {
	Peers  []Peer
	Faults []Fault
}

// errTwice refuses what two certificates claim.
var errTwice = errors.New("cannot accept a name, tunnel key or inner address that another certificate carries too")

// Rules decide which certificates count.
type Rules struct {
	// Roots is the device authority of the signed policy.
	Roots *x509.CertPool
	// Domain is the SIP domain that names must be in.
	Domain string
	// Networks are the inner prefixes that addresses must be in.
	Networks []netip.Prefix
	// Own are the gateway's own inner addresses, which no handset may claim.
	Own []netip.Addr
}

// Load reads every *.pem of the folder. A folder that is not there is empty.
// The error is about the folder as a whole; then nothing in it counts.
func Load(dir string, rules Rules, now time.Time) (Set, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return Set{}, nil
	}
	if err != nil {
		return Set{}, fmt.Errorf("cannot read the enrolment folder: %w", err)
	}
	if len(entries) > maxEntries {
		return Set{}, fmt.Errorf("cannot use an enrolment folder of more than %d entries", maxEntries)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Set{}, fmt.Errorf("cannot read the enrolment folder: %w", err)
	}
	defer root.Close()
	var set Set
	from := map[string]string{} // name → file
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".pem") || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		p, err := load(root, e.Name(), rules, now)
		if err == nil && len(set.Peers) == MaxPeers {
			err = fmt.Errorf("cannot take more than %d peers", MaxPeers)
		}
		if err != nil {
			set.Faults = append(set.Faults, Fault{e.Name(), err})
			continue
		}
		set.Peers = append(set.Peers, p)
		from[p.Name] = e.Name()
	}
	set.dropTwice(from)
	slices.SortFunc(set.Peers, func(a, b Peer) int { return cmp.Compare(a.Name, b.Name) })
	return set, nil
}

func load(root *os.Root, name string, rules Rules, now time.Time) (Peer, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return Peer{}, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return Peer{}, errors.Join(errors.New("cannot use what is not a plain file"), err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return Peer{}, err
	}
	if len(data) > maxFileSize {
		return Peer{}, fmt.Errorf("cannot use a file of more than %d bytes", maxFileSize)
	}
	var chain [][]byte
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" || len(chain) == maxChain {
			return Peer{}, fmt.Errorf("cannot use a %.32q: want one to %d certificates, leaf first", block.Type, maxChain)
		}
		chain, data = append(chain, block.Bytes), rest
	}
	id, _, err := identity.Verify(chain, rules.Roots, now)
	if err != nil {
		return Peer{}, err
	}
	if id.IsGateway() || id.Domain() != rules.Domain {
		return Peer{}, fmt.Errorf("cannot take %q as a handset of %s", id.URI, rules.Domain)
	}
	for _, a := range id.Inner {
		in := slices.ContainsFunc(rules.Networks, func(p netip.Prefix) bool { return p.Contains(a) })
		if !in || slices.Contains(rules.Own, a) {
			return Peer{}, fmt.Errorf("cannot give inner address %s to a handset", a)
		}
	}
	return Peer{Name: id.Name, PublicKey: base64.StdEncoding.EncodeToString(id.TunnelKey[:]),
		Inner: id.Inner, Level: id.Level, URI: id.URI}, nil
}

// dropTwice removes every peer that shares its name, key or an address with
// another: there is no honest way to tell which of them is right.
func (s *Set) dropTwice(file map[string]string) {
	count := map[string]int{}
	claims := func(p Peer) []string {
		c := []string{"name " + p.Name, "key " + p.PublicKey}
		for _, a := range p.Inner {
			c = append(c, "inner "+a.String())
		}
		return c
	}
	for _, p := range s.Peers {
		for _, c := range claims(p) {
			count[c]++
		}
	}
	s.Peers = slices.DeleteFunc(s.Peers, func(p Peer) bool {
		for _, c := range claims(p) {
			if count[c] > 1 {
				s.Faults = append(s.Faults, Fault{file[p.Name], fmt.Errorf("%w: %s", errTwice, c)})
				return true
			}
		}
		return false
	})
}

// Equal tells whether two sets admit the same peers.
func (s Set) Equal(o Set) bool {
	return slices.EqualFunc(s.Peers, o.Peers, func(a, b Peer) bool {
		return a.Name == b.Name && a.PublicKey == b.PublicKey && a.Level == b.Level && a.URI == b.URI && slices.Equal(a.Inner, b.Inner)
	})
}
