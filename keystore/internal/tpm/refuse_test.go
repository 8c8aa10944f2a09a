package tpm

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"rempart/internal/secret"
	"rempart/keystore/blob"
	"rempart/keystore/internal/tpmtest"
	"rempart/keystore/policy"
)

func TestSealRefusesSizes(t *testing.T) {
	d, _ := powerOn(t)
	for _, size := range []int{0, MaxSecret + 1} {
		if _, err := d.Seal(secret.New(make([]byte, size)), NewAuth(), [32]byte{}); err == nil {
			t.Errorf("sealed %d bytes", size)
		}
	}
	whole, err := d.Seal(secret.New(make([]byte, MaxSecret)), NewAuth(), [32]byte{})
	if err != nil || len(whole.Private) > blob.MaxPart || len(whole.Public) > blob.MaxPart {
		t.Errorf("%d bytes: %v", MaxSecret, err)
	}
}

func TestAlteredObjectsDoNotLoad(t *testing.T) {
	d, _ := powerOn(t)
	s := seal(t, d)
	a := approve(t, d, s.key, policy.RefUser, 3, 11, 13)
	for at := range s.object.Private {
		if at%16 != 3 {
			continue
		}
		altered := s
		altered.object.Private = bytes.Clone(s.object.Private)
		altered.object.Private[at] ^= 1
		if err := altered.open(t, a, s.pin); err == nil {
			t.Errorf("private part altered at %d: opened", at)
		}
	}
	// Another policy in the public part does not fit the private part.
	altered := s
	altered.object.Public = bytes.Clone(s.object.Public)
	at := bytes.Index(altered.object.Public, s.pol[:])
	altered.object.Public[at] ^= 1
	if err := altered.open(t, a, s.pin); err == nil {
		t.Error("policy altered: opened")
	}
	noHandles(t, d)
}

func TestBlobsOfAnotherTPMDoNotLoad(t *testing.T) {
	d, _ := powerOn(t)
	s := seal(t, d)
	other, _ := powerOn(t)
	s.d = other
	if err := s.open(t, approve(t, other, s.key, policy.RefUser, 3, 11, 13), s.pin); err == nil {
		t.Error("opened in another tpm")
	}
}

func TestForeignIndexIsNotOurs(t *testing.T) {
	d, _ := powerOn(t)
	undefine := tpm2.NVUndefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    nvHandle(policy.FloorIndex),
	}
	if _, err := undefine.Execute(d.wire); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := d.ReadIndex(policy.FloorIndex); ok || err != nil {
		t.Errorf("no index: %v, %v", ok, err)
	}
	// The same handle, but one that could be written back to zero.
	public := nvPublic(policy.FloorIndex)
	public.Attributes.NT = tpm2.TPMNTOrdinary
	define := tpm2.NVDefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		PublicInfo: tpm2.New2B(public),
	}
	if _, err := define.Execute(d.wire); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := d.ReadIndex(policy.FloorIndex); ok || err != nil {
		t.Errorf("unwritten index: %v, %v", ok, err)
	}
	name, err := tpm2.NVName(&public)
	if err != nil {
		t.Fatal(err)
	}
	write := tpm2.NVWrite{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: public.NVIndex, Name: *name},
		Data:       tpm2.TPM2BMaxNVBuffer{Buffer: make([]byte, 8)},
	}
	if _, err := write.Execute(d.wire); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := d.ReadIndex(policy.FloorIndex); ok || err == nil {
		t.Errorf("foreign index: %v, %v", ok, err)
	}
	if err := d.DefineIndex(policy.FloorIndex); err == nil {
		t.Error("defined over a foreign index")
	}
}

// TestRecreatedCounterOpensNothing: whoever has the owner auth can delete the
// alive counter and make it again, and still it never shows an old value.
func TestRecreatedCounterOpensNothing(t *testing.T) {
	d, _ := powerOn(t)
	s := seal(t, d)
	a := approve(t, d, s.key, policy.RefUser, 3, 11, 13)
	undefine := tpm2.NVUndefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    nvHandle(policy.AliveIndex),
	}
	if _, err := undefine.Execute(d.wire); err != nil {
		t.Fatal(err)
	}
	if err := s.open(t, a, s.pin); err == nil {
		t.Error("opened without the counter")
	}
	if err := d.DefineIndex(policy.AliveIndex); err != nil {
		t.Fatal(err)
	}
	if err := s.open(t, a, s.pin); !errors.Is(err, ErrWiped) {
		t.Errorf("with the counter made again: %v", err)
	}
}

func TestVerifyRefusesWhatIsNoApproval(t *testing.T) {
	d, _ := powerOn(t)
	s := seal(t, d)
	good := approve(t, d, s.key, policy.RefUser, 3, 11, 13)
	for name, spoil := range map[string]func(*Approval){
		"serial 64": func(a *Approval) { a.Serial = 64 },
		"no pcrs":   func(a *Approval) { a.PCRs = nil },
		"no key":    func(a *Approval) { a.Key = nil },
		"serial":    func(a *Approval) { a.Serial = 4 }, // signed for 3
	} {
		a := good
		spoil(&a)
		if _, err := d.Verify(a, s.alive); err == nil {
			t.Errorf("%s: verified", name)
		}
	}
	noHandles(t, d)
}

func TestSigningKeyIsOne(t *testing.T) {
	d, _ := powerOn(t)
	s := seal(t, d)
	if _, err := d.LoadKey(s.object, NewAuth()); err == nil {
		t.Error("sealed data loaded as a key")
	}
	if _, err := d.LoadKey(blob.Object{Public: []byte{1}}, NewAuth()); err == nil {
		t.Error("garbage loaded as a key")
	}
	auth := NewAuth()
	object, err := d.CreateKey(auth, s.pol)
	if err != nil {
		t.Fatal(err)
	}
	key, err := d.LoadKey(object, NewAuth()) // not its auth
	if err != nil {
		t.Fatal(err)
	}
	proof, err := d.Verify(approve(t, d, s.key, policy.RefUser, 3, 11, 13), s.alive)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := key.Sign(proof, [32]byte{}); err == nil {
		t.Error("signed with another auth")
	}
	if l, err := d.Lockout(); err != nil || l.Count != 0 {
		t.Errorf("a wrong auth of the key counts: %+v, %v", l, err)
	}
	if err := key.Close(); err != nil {
		t.Error(err)
	}
	noHandles(t, d)
}

func TestVacantAndClear(t *testing.T) {
	d := open(t, tpmtest.New(t))
	vacant := func(want bool) {
		t.Helper()
		if got, err := d.Vacant(); got != want || err != nil {
			t.Errorf("vacant: %v, %v", got, err)
		}
	}
	vacant(true)
	own(t, d)
	vacant(false)
	owner := NewAuth()
	if err := d.SetOwnerAuth(owner); err != nil {
		t.Fatal(err)
	}
	if err := d.SetOwnerAuth(NewAuth()); err == nil {
		t.Error("owner auth set over one that is set")
	}
	if err := d.Clear(); err != nil {
		t.Fatal(err)
	}
	vacant(true)
	if o, err := d.Ownership(); err != nil || o.Owner {
		t.Errorf("after clear: %+v, %v", o, err)
	}
	own(t, d)
	vacant(false)
}

func TestLockoutIsForgottenWithTime(t *testing.T) {
	d, _ := powerOn(t)
	s := seal(t, d)
	a := approve(t, d, s.key, policy.RefUser, 3, 11, 13)
	if err := d.SetLockoutRules(LockoutRules{MaxTries: 2, Interval: time.Second, Recovery: time.Second}, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.open(t, a, NewAuth()); !errors.Is(err, ErrWrongAuth) {
			t.Fatal(err)
		}
	}
	if err := s.open(t, a, s.pin); !errors.Is(err, ErrLockedOut) {
		t.Fatalf("in lockout: %v", err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		err := s.open(t, a, s.pin)
		if err == nil {
			return
		}
		if !errors.Is(err, ErrLockedOut) || time.Now().After(end) {
			t.Fatalf("after the interval: %v", err)
		}
	}
}

func TestShutdownIsOrderly(t *testing.T) {
	m := tpmtest.New(t)
	d := open(t, m)
	root := own(t, d)
	s := seal(t, d)
	if err := s.open(t, approve(t, d, s.key, policy.RefUser, 3, 11, 13), s.pin); err != nil {
		t.Fatal(err)
	}
	counts := func() int {
		t.Helper()
		d = open(t, m)
		if err := d.Pin(root); err != nil {
			t.Fatal(err)
		}
		l, err := d.Lockout()
		if err != nil {
			t.Fatal(err)
		}
		return l.Count
	}
	if err := d.Shutdown(); err != nil {
		t.Fatal(err)
	}
	m.Off()
	if n := counts(); n != 0 {
		t.Errorf("an orderly end costs %d", n)
	}
	// The twin: the same use, and the power just goes.
	s.d = d
	if err := s.open(t, approve(t, d, s.key, policy.RefUser, 3, 11, 13), s.pin); err != nil {
		t.Fatal(err)
	}
	m.Off()
	if n := counts(); n != 1 {
		t.Errorf("a cut costs %d, known is 1", n)
	}
}
