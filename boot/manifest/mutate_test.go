package manifest

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	"rempart/internal/proof"
)

// TestEveryFlippedBitIsRefused walks both signed files: whichever bit an
// attacker turns, nothing is taken, and there is a reason to print.
func TestEveryFlippedBitIsRefused(t *testing.T) {
	proof.SFR(t, "FPT_TUD_EXT.2", "TestOpenReturnsWhatWasSigned")
	w := newWorld(t)
	policyKey, imageKey := []*ecdsa.PublicKey{&w.policy.PublicKey}, []*ecdsa.PublicKey{&w.image.PublicKey}
	files := map[string]struct {
		data []byte
		open func([]byte) error
	}{
		"policy": {w.bundle(t, w.document(t)), func(b []byte) error {
			p, err := Open(b, policyKey)
			if err != nil && p != nil {
				return fmt.Errorf("a policy and an error: %w", ErrGarbled)
			}
			return err
		}},
		"approval": {marshal(t, approval(t, w.image)), func(b []byte) error {
			_, err := OpenApproval(b, imageKey)
			return err
		}},
	}
	for name, f := range files {
		if err := f.open(f.data); err != nil {
			t.Fatalf("%s: unchanged: %v", name, err)
		}
		for at := range f.data {
			changed := bytes.Clone(f.data)
			changed[at] ^= 1 << (at % 8)
			err := f.open(changed)
			// The approval's version, serial and PCR values are not signed as
			// such: the TPM holds them against the digest (keystore/policy
			// recomputes it), so here only what is signed must be refused.
			if err == nil && name == "approval" && !signedPart(f.data, at) {
				continue
			}
			if err == nil || Reason(err) == "" {
				t.Fatalf("%s: bit %d of byte %d (%q) turned: %v", name, at%8, at, f.data[at], err)
			}
		}
		for cut := range len(f.data) {
			if err := f.open(f.data[:cut]); err == nil {
				t.Fatalf("%s: cut at %d and taken", name, cut)
			}
		}
	}
}

// signedPart reports whether the byte lies on a line of a digest, a key, a
// signature or a reference.
func signedPart(data []byte, at int) bool {
	from := bytes.LastIndexByte(data[:at], '\n') + 1
	line := bytes.TrimSpace(data[from:])
	for _, name := range []string{`"digest"`, `"key"`, `"signature"`, `"ref"`} {
		if bytes.HasPrefix(line, []byte(name)) {
			return true
		}
	}
	return false
}

// randomPolicy returns a policy that is right by construction.
func randomPolicy(t *testing.T, w *world, r *rand.Rand) *Policy {
	t.Helper()
	p := &Policy{Version: Version, Serial: MinSerial + r.IntN(MaxSerial), Role: RoleHandset,
		Name: fmt.Sprintf("p%d", r.IntN(1000)), Domain: fmt.Sprintf("h%d.example", r.IntN(1000))}
	for i := range 1 + r.IntN(maxLevels) {
		p.Levels = append(p.Levels, fmt.Sprintf("level-%d", i))
	}
	level := func(least int) (string, int) {
		rank := least + r.IntN(len(p.Levels)-least)
		return p.Levels[rank], rank
	}
	p.Apps = []App{}
	for i := range r.IntN(maxApps + 1) {
		reads, rank := level(0)
		writes, _ := level(rank)
		p.Apps = append(p.Apps, App{fmt.Sprintf("app%d", i), reads, writes})
	}
	for i := range 1 + r.IntN(maxNetworks) {
		accredited, _ := level(0)
		n := Network{Name: fmt.Sprintf("wg%d", i), Accredited: accredited}
		for j := range 1 + r.IntN(maxPrefixes/2) {
			n.Inner = append(n.Inner, netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", i, j)),
				netip.MustParsePrefix(fmt.Sprintf("fd77:%x:%x::/64", i+1, j+1)))
		}
		p.Networks = append(p.Networks, n)
	}
	for i := range 1 + r.IntN(maxGateways) {
		g := Gateway{Name: fmt.Sprintf("g%d", i)}
		for j := range g.TunnelKey {
			g.TunnelKey[j] = byte(1 + r.IntN(255))
		}
		for j := range 1 + r.IntN(maxAddresses/2) {
			g.Addresses = append(g.Addresses, netip.AddrFrom4([4]byte{203, 0, byte(i), byte(j + 1)}),
				netip.MustParseAddr(fmt.Sprintf("2001:db8:%x::%x", i+1, j+1)))
		}
		g.Inner = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}
		g.Services = []Service{{"udp", uint16(1 + r.IntN(65535)), PurposeTunnel}}
		for j := range r.IntN(maxServices) {
			g.Services = append(g.Services, Service{"tcp", uint16(1 + j), PurposeAttestation})
		}
		p.Gateways = append(p.Gateways, g)
	}
	p.Keys = Keys{Image: []string{publicPEM(t, w.image)}, Policy: []string{publicPEM(t, w.policy)},
		Authority: []string{w.authority}, Gateway: []string{}}
	return p
}

// TestEveryRightPolicyIsReadBackAsItWas: a program that writes what the fields
// say gets it through, to the last bound of every list.
func TestEveryRightPolicyIsReadBackAsItWas(t *testing.T) {
	w := newWorld(t)
	for seed := range uint64(200) {
		p := randomPolicy(t, w, rand.New(rand.NewPCG(seed, 7371)))
		doc, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Read(doc)
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, doc)
		}
		if !reflect.DeepEqual(got, p) {
			t.Fatalf("seed %d: %+v became %+v", seed, p, got)
		}
	}
}
