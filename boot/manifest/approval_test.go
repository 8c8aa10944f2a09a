package manifest

import (
	"bytes"
	"crypto/ecdsa"
	"errors"
	"math/big"
	"strings"
	"testing"
)

func approval(t testing.TB, key *ecdsa.PrivateKey) *Approval {
	t.Helper()
	a := &Approval{Version: ApprovalVersion, Serial: 3}
	for ref, values := range map[string]map[int][32]byte{
		RefBoot: {11: {1}, 13: {2}, 15: {}}, RefUser: {13: {2}, 11: {1}}} {
		approved, err := Approve(ref, values, [32]byte{byte(len(values))}, key)
		if err != nil {
			t.Fatal(err)
		}
		a.Approved = append(a.Approved, approved)
	}
	if a.Approved[0].Ref != RefBoot {
		a.Approved[0], a.Approved[1] = a.Approved[1], a.Approved[0]
	}
	return a
}

func marshal(t testing.TB, a *Approval) []byte {
	t.Helper()
	data, err := a.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestApprovalRoundTrip(t *testing.T) {
	key := newKey(t)
	a, err := OpenApproval(marshal(t, approval(t, key)), []*ecdsa.PublicKey{&newKey(t).PublicKey, &key.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	boot, ok := a.For(RefBoot)
	if !ok || len(boot.PCRs) != 3 || boot.PCRs[2].Index != 15 {
		t.Fatalf("boot approval is %+v", boot)
	}
	if v := boot.Values(); v[11] != [32]byte{1} || v[13] != [32]byte{2} || len(v) != 3 {
		t.Errorf("values are %v", v)
	}
	// The TPM is given r and s as they stand here, over SHA-256(digest ‖ ref).
	hash := boot.SignedHash()
	r, s := new(big.Int).SetBytes(boot.Signature.R()), new(big.Int).SetBytes(boot.Signature.S())
	if !ecdsa.Verify(&key.PublicKey, hash[:], r, s) {
		t.Error("r and s do not verify")
	}
	if _, ok := a.For("rempart-other"); ok {
		t.Error("found an approval that is not there")
	}
}

func TestOpenApprovalRefuses(t *testing.T) {
	key, other := newKey(t), newKey(t)
	good := string(marshal(t, approval(t, key)))
	boot, user := approval(t, key).Approved[0], approval(t, key).Approved[1]
	build := func(change func(*Approval)) []byte {
		a := approval(t, key)
		change(a)
		if data, err := a.Marshal(); err == nil {
			return data
		}
		// Not writable by us; write what an attacker would.
		return []byte(strings.Replace(good, `"serial": 3`, `"serial": 64`, 1))
	}
	cases := []struct {
		name string
		data []byte
		want error
	}{
		{"nothing", nil, ErrGarbled},
		{"noise", []byte("noise"), ErrGarbled},
		{"too much", bytes.Repeat([]byte(" "), MaxApproval+1), ErrTooLarge},
		{"another spelling", []byte(strings.Replace(good, "  ", " ", 1)), ErrGarbled},
		{"an unknown field", []byte(strings.Replace(good, `"serial": 3`, `"serial": 3, "x": 1`, 1)), ErrGarbled},
		{"a later version", []byte(strings.Replace(good, `"version": 1`, `"version": 2`, 1)), ErrVersion},
		{"serial 64", []byte(strings.Replace(good, `"serial": 3`, `"serial": 64`, 1)), ErrInvalid},
		{"another reference", []byte(strings.Replace(good, RefUser, "rempart-else", 1)), ErrInvalid},
		{"no PCR 24", []byte(strings.Replace(good, `"index": 15`, `"index": 24`, 1)), ErrInvalid},
		{"PCRs in disorder", []byte(strings.Replace(good, `"index": 15`, `"index": 12`, 1)), ErrInvalid},
		{"signed by another", marshal(t, approval(t, other)), ErrWrongKey},
		{"another digest", build(func(a *Approval) { a.Approved[0].Digest[0] ^= 1 }), ErrBadSignature},
		{"another signature", build(func(a *Approval) { a.Approved[1].Signature[40] ^= 1 }), ErrBadSignature},
		{"a zero signature", build(func(a *Approval) { a.Approved[1].Signature = RawECDSA{} }), ErrBadSignature},
		{"the signature of the other reference", build(func(a *Approval) { a.Approved[0].Signature = user.Signature }), ErrBadSignature},
		{"our name on another's signature", build(func(a *Approval) {
			a.Approved[0].Signature = approval(t, other).Approved[0].Signature
		}), ErrBadSignature},
		{"one alone", []byte(strings.Replace(good, RefUser, RefBoot, 1)), ErrInvalid},
		{"a short digest", []byte(strings.Replace(good, boot.Digest.String(), "00", 1)), ErrGarbled},
	}
	for _, c := range cases {
		a, err := OpenApproval(c.data, []*ecdsa.PublicKey{&key.PublicKey})
		if a != nil || !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, %v; want %v", c.name, a, err, c.want)
		}
	}
	if _, err := (&Approval{Version: 1, Serial: 3}).Marshal(); err == nil {
		t.Error("wrote an approval of nothing")
	}
	if _, err := (&Approval{Version: 1, Serial: 3, Approved: []Approved{{Ref: RefBoot}, {Ref: RefUser}}}).Marshal(); err == nil {
		t.Error("wrote an approval without PCRs")
	}
}

// FuzzApproval: parsing is total and a file has one spelling.
func FuzzApproval(f *testing.F) {
	f.Add(marshal(f, approval(f, newKey(f))))
	f.Add([]byte(`{"version": 1, "serial": 1, "approved": []}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := ParseApproval(data)
		if (a == nil) == (err == nil) {
			t.Fatalf("got %v and %v", a, err)
		}
		if err != nil {
			return
		}
		if again, err := a.Marshal(); err != nil || !bytes.Equal(again, data) {
			t.Fatalf("%q became %q, %v", data, again, err)
		}
	})
}
