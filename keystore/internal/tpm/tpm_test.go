package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"math/big"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"rempart/internal/secret"
	"rempart/keystore/blob"
	"rempart/keystore/internal/tpmtest"
	"rempart/keystore/policy"
)

// powerOn starts a TPM with a pinned root and both indices.
func powerOn(t *testing.T) (d *Device, root []byte) {
	t.Helper()
	d = open(t, tpmtest.New(t))
	return d, own(t, d)
}

func own(t testing.TB, d *Device) (root []byte) {
	t.Helper()
	root, err := d.CreateRoot()
	if err != nil {
		t.Fatal(err)
	}
	for _, index := range []policy.Index{policy.AliveIndex, policy.FloorIndex} {
		if err := d.DefineIndex(index); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// benchKey returns a signing key and what satisfies its policy.
func benchKey(b *testing.B, d *Device) (*SigningKey, *Proof) {
	if err := d.Startup(); err != nil {
		b.Fatal(err)
	}
	own(b, d)
	s := seal(b, d)
	auth := NewAuth()
	object, err := d.CreateKey(auth, s.pol)
	if err != nil {
		b.Fatal(err)
	}
	proof, err := d.Verify(approve(b, d, s.key, policy.RefUser, 1, 11, 13), s.alive)
	if err != nil {
		b.Fatal(err)
	}
	key, err := d.LoadKey(object, auth)
	if err != nil {
		b.Fatal(err)
	}
	return key, proof
}

func open(t *testing.T, m *tpmtest.TPM) *Device {
	t.Helper()
	d, err := Open(m.On())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if err := d.Startup(); err != nil {
		t.Fatal(err)
	}
	return d
}

func imageKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// approve signs the PCRs' present values.
func approve(t testing.TB, d *Device, key *ecdsa.PrivateKey, ref string, serial int, pcrs ...int) Approval {
	t.Helper()
	values, err := d.PCRs(pcrs...)
	if err != nil {
		t.Fatal(err)
	}
	inner, err := policy.Inner(values, serial)
	if err != nil {
		t.Fatal(err)
	}
	hash := policy.Approval(inner, ref)
	der, err := key.Sign(rand.Reader, hash[:], nil)
	if err != nil {
		t.Fatal(err)
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		t.Fatal(err)
	}
	a := Approval{Ref: ref, PCRs: values, Serial: serial, Key: &key.PublicKey}
	rs.R.FillBytes(a.Signature[:32])
	rs.S.FillBytes(a.Signature[32:])
	return a
}

type sealed struct {
	d       *Device
	key     *ecdsa.PrivateKey
	alive   uint64
	object  blob.Object
	pin     *secret.Bytes
	content []byte
	pol     [32]byte
}

func seal(t testing.TB, d *Device) sealed {
	t.Helper()
	s := sealed{d: d, key: imageKey(t), pin: NewAuth(), content: []byte("a canary in a mine")}
	alive, ok, err := d.ReadIndex(policy.AliveIndex)
	if err != nil || !ok {
		t.Fatalf("alive: %v, %v", ok, err)
	}
	s.alive = alive
	name, err := policy.KeyName(&s.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	s.pol = policy.Outer(name, policy.RefUser, alive)
	s.object, err = d.Seal(secret.New(bytes.Clone(s.content)), s.pin, s.pol)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s sealed) open(t *testing.T, a Approval, pin *secret.Bytes) error {
	t.Helper()
	proof, err := s.d.Verify(a, s.alive)
	if err != nil {
		return err
	}
	got, err := s.d.Unseal(s.object, proof, pin)
	if err == nil && !bytes.Equal(got.Reveal(), s.content) {
		t.Errorf("unsealed %d other bytes", got.Len())
	}
	return err
}

func TestSealOpensOnlyAsApproved(t *testing.T) {
	d, _ := powerOn(t)
	s := seal(t, d)
	good := approve(t, d, s.key, policy.RefUser, 3, 11, 13)
	if err := s.open(t, good, s.pin); err != nil {
		t.Fatalf("all right: %v", err)
	}

	stranger := imageKey(t)
	byStranger := approve(t, d, stranger, policy.RefUser, 3, 11, 13)
	forged := good
	forged.Signature[40] ^= 1
	for _, c := range []struct {
		name string
		a    Approval
		pin  *secret.Bytes
		want error
	}{
		{"wrong pin", good, NewAuth(), ErrWrongAuth},
		{"approved by another key", byStranger, s.pin, ErrNotApproved},
		{"approved for the other class", approve(t, d, s.key, policy.RefBoot, 3, 11, 13), s.pin, ErrNotApproved},
		{"forged signature", forged, s.pin, ErrNotApproved},
	} {
		if err := s.open(t, c.a, c.pin); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	l, err := d.Lockout()
	if err != nil || l.Count != 1 {
		t.Errorf("lockout count is %d (%v): only the wrong pin counts", l.Count, err)
	}

	if err := d.RaiseFloor(policy.FloorFor(3), nil); err != nil {
		t.Fatal(err)
	}
	if err := s.open(t, good, s.pin); err != nil {
		t.Errorf("floor at the own serial: %v", err)
	}
	if err := d.RaiseFloor(policy.FloorFor(4), nil); err != nil {
		t.Fatal(err)
	}
	if err := s.open(t, good, s.pin); !errors.Is(err, ErrRevoked) {
		t.Errorf("floor above: %v, want ErrRevoked", err)
	}
	if bits, ok, err := d.ReadIndex(policy.FloorIndex); bits != 0xf || !ok || err != nil {
		t.Errorf("floor = %#x, %v, %v", bits, ok, err)
	}

	next := approve(t, d, s.key, policy.RefUser, 4, 11, 13)
	if err := s.open(t, next, s.pin); err != nil {
		t.Errorf("next serial: %v", err)
	}
	if err := d.Extend(13, sha256.Sum256([]byte("another program"))); err != nil {
		t.Fatal(err)
	}
	if err := s.open(t, next, s.pin); !errors.Is(err, ErrNotThisImage) {
		t.Errorf("other pcr: %v, want ErrNotThisImage", err)
	}
	again := approve(t, d, s.key, policy.RefUser, 4, 11, 13)
	if err := s.open(t, again, s.pin); err != nil {
		t.Errorf("new approval, same blob: %v", err)
	}
	if err := d.increment(nvHandle(policy.AliveIndex), nil); err != nil {
		t.Fatal(err)
	}
	if err := s.open(t, again, s.pin); !errors.Is(err, ErrWiped) {
		t.Errorf("after the wipe: %v, want ErrWiped", err)
	}
}

func TestPolicyEqualsTrialSession(t *testing.T) {
	d, _ := powerOn(t)
	s := seal(t, d)
	a := approve(t, d, s.key, policy.RefBoot, 5, 11, 13, 15)
	proof, err := d.Verify(a, s.alive)
	if err != nil {
		t.Fatal(err)
	}
	trial, closeTrial, err := tpm2.PolicySession(d.wire, tpm2.TPMAlgSHA256, 16, tpm2.Trial())
	if err != nil {
		t.Fatal(err)
	}
	defer closeTrial()
	digest := func() []byte {
		rsp, err := tpm2.PolicyGetDigest{PolicySession: trial.Handle()}.Execute(d.wire)
		if err != nil {
			t.Fatal(err)
		}
		return rsp.PolicyDigest.Buffer
	}
	if _, err := (tpm2.PolicyPCR{PolicySession: trial.Handle(), Pcrs: pcrSelection([]int{11, 13, 15})}).Execute(d.wire); err != nil {
		t.Fatal(err)
	}
	if err := d.policyNV(trial, policy.FloorIndex, 1<<5, tpm2.TPMEOBitClear); err != nil {
		t.Fatal(err)
	}
	if want := proof.inner; !bytes.Equal(digest(), want[:]) {
		t.Errorf("inner: tpm %x, pure %x", digest(), want)
	}
	outer, closeOuter, err := tpm2.PolicySession(d.wire, tpm2.TPMAlgSHA256, 16, tpm2.Trial())
	if err != nil {
		t.Fatal(err)
	}
	defer closeOuter()
	if err := d.satisfy(outer, proof); err != nil {
		t.Fatal(err)
	}
	rsp, err := tpm2.PolicyGetDigest{PolicySession: outer.Handle()}.Execute(d.wire)
	if err != nil {
		t.Fatal(err)
	}
	if want := policy.Outer(proof.keyName, policy.RefBoot, s.alive); !bytes.Equal(rsp.PolicyDigest.Buffer, want[:]) {
		t.Errorf("outer: tpm %x, pure %x", rsp.PolicyDigest.Buffer, want)
	}
}

func TestSigningTakesSixCommands(t *testing.T) {
	d, _ := powerOn(t)
	s := seal(t, d)
	auth := NewAuth()
	object, err := d.CreateKey(auth, s.pol)
	if err != nil {
		t.Fatal(err)
	}
	proof, err := d.Verify(approve(t, d, s.key, policy.RefUser, 1, 11, 13), s.alive)
	if err != nil {
		t.Fatal(err)
	}
	key, err := d.LoadKey(object, auth)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("hello"))
	sign := func() []byte {
		signature, err := key.Sign(proof, digest)
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
	sign()
	commands := 0
	d.wire.Watch(func(_, _ []byte) { commands++ })
	signature := sign()
	if commands != 6 {
		t.Errorf("a signature took %d commands, want 6", commands)
	}
	if !ecdsa.VerifyASN1(key.Public(), digest[:], signature) {
		t.Error("signature does not verify")
	}
	// Nothing is left satisfied, after a failure neither.
	if err := d.increment(nvHandle(policy.AliveIndex), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := key.Sign(proof, digest); !errors.Is(err, ErrWiped) {
		t.Errorf("after the wipe: %v", err)
	}
	if key.s != nil {
		t.Error("a half satisfied session lives on")
	}
	if err := key.Close(); err != nil {
		t.Error(err)
	}
	noHandles(t, d)
}

// noHandles checks that nothing transient is left in the TPM.
func noHandles(t *testing.T, d *Device) {
	t.Helper()
	for _, first := range []uint32{0x02000000, 0x03000000, 0x80000000} {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(d.wire)
		if err != nil {
			t.Fatal(err)
		}
		list, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Handle) != 0 {
			t.Errorf("handles left: %x", list.Handle)
		}
	}
}

func TestFailuresLeaveNoHandle(t *testing.T) {
	d, _ := powerOn(t)
	s := seal(t, d)
	a := approve(t, d, s.key, policy.RefUser, 3, 11, 13)
	for range 8 { // the TPM has three transient slots
		if err := s.open(t, a, s.pin); err != nil {
			t.Fatal(err)
		}
		bad := a
		bad.Signature[3] ^= 0x40
		if err := s.open(t, bad, s.pin); !errors.Is(err, ErrNotApproved) {
			t.Fatal(err)
		}
	}
	if err := s.open(t, a, NewAuth()); !errors.Is(err, ErrWrongAuth) {
		t.Fatal(err)
	}
	noHandles(t, d)
}

func TestFlushAllEndsForeignSessions(t *testing.T) {
	d, _ := powerOn(t)
	if _, _, err := d.session(policyKind, nil, plain); err != nil {
		t.Fatal(err)
	}
	saved, _, err := d.session(policyKind, nil, plain)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.ContextSave{SaveHandle: saved.Handle()}).Execute(d.wire); err != nil {
		t.Fatal(err)
	}
	if err := d.FlushAll(); err != nil {
		t.Fatal(err)
	}
	noHandles(t, d)
}

func TestLockoutAndOwnership(t *testing.T) {
	d, _ := powerOn(t)
	s := seal(t, d)
	a := approve(t, d, s.key, policy.RefUser, 3, 11, 13)
	if err := d.SetLockoutRules(LockoutRules{MaxTries: 3, Interval: 600e9, Recovery: 60e9}, nil); err != nil {
		t.Fatal(err)
	}
	owner, lockout := NewAuth(), NewAuth()
	if err := d.SetOwnerAuth(owner); err != nil {
		t.Fatal(err)
	}
	if err := d.SetLockoutAuth(lockout); err != nil {
		t.Fatal(err)
	}
	if o, err := d.Ownership(); err != nil || !o.Owner || !o.Lockout {
		t.Errorf("ownership %+v, %v", o, err)
	}
	for range 3 {
		if err := s.open(t, a, NewAuth()); !errors.Is(err, ErrWrongAuth) {
			t.Fatal(err)
		}
	}
	if err := s.open(t, a, s.pin); !errors.Is(err, ErrLockedOut) {
		t.Errorf("right pin in lockout: %v, want ErrLockedOut", err)
	}
	if l, err := d.Lockout(); err != nil || !l.Out || l.TriesLeft() != 0 || l.Interval != 600e9 {
		t.Errorf("lockout %+v, %v", l, err)
	}
	if err := d.ResetLockout(lockout); err != nil {
		t.Fatal(err)
	}
	if err := s.open(t, a, s.pin); err != nil {
		t.Errorf("after the reset: %v", err)
	}
	if err := d.RaiseFloor(1, nil); err == nil {
		t.Error("floor raised without the owner auth")
	}
	if err := d.RaiseFloor(1, owner); err != nil {
		t.Error(err)
	}
	if err := d.Clear(); err == nil {
		t.Error("cleared without the lockout auth")
	}
}

func TestPinRefusesAnotherRoot(t *testing.T) {
	d, root := powerOn(t)
	if err := d.Pin(root); err != nil {
		t.Errorf("own root: %v", err)
	}
	other := bytes.Clone(root)
	other[len(other)-1] ^= 1
	if err := d.Pin(other); !errors.Is(err, ErrNotOurRoot) {
		t.Errorf("other root: %v", err)
	}
	if err := d.Clear(); err != nil {
		t.Fatal(err)
	}
	if err := d.Pin(root); !errors.Is(err, ErrNotOurRoot) {
		t.Errorf("after clear: %v", err)
	}
	if _, err := d.CreateKey(NewAuth(), [32]byte{}); err == nil {
		t.Error("worked without a pinned root")
	}
}

func TestEKCertificate(t *testing.T) {
	if cert, err := open(t, tpmtest.New(t)).EKCertificate(); err != nil || len(cert) != 0 {
		t.Errorf("tpm without one: %d bytes, %v", len(cert), err)
	}
	cert, err := open(t, tpmtest.Manufactured(t)).EKCertificate()
	if err != nil {
		t.Fatal(err)
	}
	var whole asn1.RawValue
	if rest, err := asn1.Unmarshal(cert, &whole); err != nil || len(rest) != 0 {
		t.Errorf("%d bytes are not one certificate: %v", len(cert), err)
	}
}

func TestNoZeros(t *testing.T) {
	for range 200 {
		if slices.Contains(NewAuth().Reveal(), 0) {
			t.Fatal("auth has a zero byte")
		}
	}
	if got := NoZeros([]byte{0, 5, 0}); !bytes.Equal(got, []byte{1, 5, 1}) {
		t.Errorf("%v", got)
	}
}
