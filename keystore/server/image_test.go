package server

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"rempart/boot/manifest"
	"rempart/internal/proof"
	"rempart/keystore/client"
	"rempart/keystore/extend"
	"rempart/keystore/internal/tpmtest"
	"rempart/keystore/policy"
)

// TestApprovalsThatSayTooMuch: signed by the right key, and still not to be
// used. The TPM would take some of them.
func TestApprovalsThatSayTooMuch(t *testing.T) {
	p := newPhone(t, tpmtest.New(t))
	values := map[int][32]byte{11: {1}, 13: {2}, 15: {}}
	approved := func(ref string, serial int, key *ecdsa.PrivateKey, pcrs ...int) manifest.Approved {
		t.Helper()
		chosen := map[int][32]byte{}
		for _, pcr := range pcrs {
			chosen[pcr] = values[pcr]
		}
		inner, err := policy.Inner(chosen, serial)
		if err != nil {
			t.Fatal(err)
		}
		a, err := manifest.Approve(ref, chosen, inner, key)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	write := func(boot, user manifest.Approved) image {
		t.Helper()
		a := manifest.Approval{Version: manifest.ApprovalVersion, Serial: 3, Approved: []manifest.Approved{boot, user}}
		data, err := a.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Write(manifest.ApprovalFile, data); err != nil {
			t.Fatal(err)
		}
		return loadImage(p.Image)
	}
	key := p.ImageKey
	goodBoot, goodUser := approved(policy.RefBoot, 3, key, 11, 13, 15), approved(policy.RefUser, 3, key, 11, 13)
	if img := write(goodBoot, goodUser); img.err != nil || img.serial != 3 || !img.key.Equal(&key.PublicKey) {
		t.Fatalf("a good approval: %v", img.err)
	}
	values[15] = sha256.Sum256([]byte("cap"))
	capped := approved(policy.RefBoot, 3, key, 11, 13, 15)
	for name, c := range map[string]struct {
		boot, user manifest.Approved
		want       string
	}{
		"boot secrets without the cap":    {approved(policy.RefBoot, 3, key, 11, 13), goodUser, "does not demand that pcr 15 is zero"},
		"boot secrets behind the cap":     {capped, goodUser, "does not demand that pcr 15 is zero"},
		"another serial in the digest":    {goodBoot, approved(policy.RefUser, 4, key, 11, 13), "not that of its PCRs and serial"},
		"a key that the policy lacks":     {goodBoot, approved(policy.RefUser, 3, otherKey(t), 11, 13), "key"},
		"digest of one, pcrs of another":  {withPCRs(goodBoot, goodUser), goodUser, ""},
		"the two references, one content": {goodBoot, withPCRs(goodUser, goodBoot), "not that of its PCRs and serial"},
	} {
		img := write(c.boot, c.user)
		if img.err == nil || !strings.Contains(img.err.Error(), c.want) || !strings.Contains(img.err.Error(), "not approved") {
			t.Errorf("%s: %v", name, img.err)
		}
	}
}

// withPCRs is a with the PCRs of b.
func withPCRs(a, b manifest.Approved) manifest.Approved {
	a.PCRs = b.PCRs
	return a
}

func TestNoEnrolmentWithoutAnApprovedImage(t *testing.T) {
	p := newPhone(t, tpmtest.New(t))
	measured := p.Programs
	p.Programs = []string{"an attacker's"}
	p.boot()
	if _, err := p.as("shell").Enrol(t.Context(), "a", pin(goodPIN)); !errors.Is(err, client.ErrRefused) || !strings.Contains(err.Error(), "pcr 13") {
		t.Errorf("enrolled: %v", err)
	}
	if own, err := p.server.device.Ownership(); err != nil || own.Owner || own.Lockout {
		t.Errorf("the tpm was touched: %+v, %v", own, err)
	}
	p.halt()
	p.Programs = measured
	p.boot()
	for name, text := range map[string]string{"": goodPIN, "A": goodPIN, "a": "123"} {
		if _, err := p.as("shell").Enrol(t.Context(), name, pin(text)); err == nil {
			t.Errorf("enrolled %q", name)
		}
	}
	p.enrol(goodPIN)
}

func TestUnapprovedImageOpensNothing(t *testing.T) {
	p := enrolled(t)
	p.halt()
	approved := p.Programs
	p.Programs = []string{"egressd 1", "keyd 1", "voiced of an attacker"}
	p.boot()
	s := p.status()
	if s.State != client.Sealed || !strings.Contains(s.Reason, "pcr 13") {
		t.Errorf("%+v", s)
	}
	if _, err := p.as("shell").Unlock(t.Context(), pin(goodPIN)); !errors.Is(err, client.ErrRefused) || !strings.Contains(err.Error(), "pcr 13") {
		t.Errorf("unlock: %v", err)
	}
	// The check above is for people; the TPM itself refuses too.
	if _, _, _, err := p.server.open(pinAuth(p.server.file.Salt, []byte(goodPIN))); err == nil || !strings.Contains(err.Error(), "not the approved one") {
		t.Errorf("tpm: %v", err)
	}
	p.halt()
	p.Programs = approved
	p.boot()
	if s := p.unlock(goodPIN); s.TriesLeft != 10 {
		t.Errorf("an unapproved image cost a try: %+v", s)
	}
}

func TestUpdateNeedsNoResealingAndOldImageOpensNothing(t *testing.T) {
	proof.SFR(t, "FPT_TUD_EXT.6", "TestFromEmptyToASignature")
	p := enrolled(t)
	p.unlock(goodPIN)
	sealed, err := p.as("voiced").Seal(t.Context(), "log", []byte("kept"))
	if err != nil {
		t.Fatal(err)
	}
	before := files(t, p.State)
	p.halt()

	p.build(5, "egressd 2", "keyd 2", "voiced 2")
	p.boot()
	if s := p.unlock(goodPIN); s.Floor != 5 {
		t.Errorf("%+v", s)
	}
	if got, err := p.as("voiced").Open(t.Context(), "log", sealed); err != nil || string(got) != "kept" {
		t.Errorf("%q, %v", got, err)
	}
	if !bytes.Equal(before, files(t, p.State)) {
		t.Error("the update wrote the state folder")
	}
	p.halt()

	p.build(3, "egressd 1", "keyd 1", "voiced 1")
	p.boot()
	if _, err := p.as("shell").Unlock(t.Context(), pin(goodPIN)); !errors.Is(err, client.ErrRefused) ||
		!strings.Contains(err.Error(), "serial is 3, the floor is 5") {
		t.Errorf("old image: %v", err)
	}
	if _, _, _, err := p.server.open(pinAuth(p.server.file.Salt, []byte(goodPIN))); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("tpm: %v", err)
	}
	p.halt()

	// init reads the floor before keyd is there.
	door, err := extend.Open(p.powerOn())
	if err != nil {
		t.Fatal(err)
	}
	defer door.Close()
	if bits, ok, err := door.Floor(); err != nil || !ok || bits != policy.FloorFor(5) {
		t.Errorf("floor %#x, %v, %v", bits, ok, err)
	}
}

func otherKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestOtherImageKeyOpensNothing(t *testing.T) {
	p := enrolled(t)
	p.halt()
	p.ImageKey = otherKey(t)
	p.build(3, p.Programs...)
	p.boot()
	if _, err := p.as("shell").Unlock(t.Context(), pin(goodPIN)); !errors.Is(err, client.ErrRefused) || !strings.Contains(err.Error(), "another image key") {
		t.Errorf("unlock: %v", err)
	}
}

func TestNoApproval(t *testing.T) {
	p := enrolled(t)
	p.halt()
	if err := p.Write(manifest.ApprovalFile, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	p.boot()
	if s := p.status(); s.State != client.Sealed || !strings.Contains(s.Reason, "not approved") {
		t.Errorf("%+v", s)
	}
	if _, err := p.as("shell").Unlock(t.Context(), pin(goodPIN)); !errors.Is(err, client.ErrRefused) {
		t.Errorf("unlock: %v", err)
	}
}

func TestFloorIsAbsentBeforeProvisioning(t *testing.T) {
	p := newPhone(t, tpmtest.New(t))
	door, err := extend.Open(p.powerOn())
	if err != nil {
		t.Fatal(err)
	}
	if bits, ok, err := door.Floor(); bits != 0 || ok || err != nil {
		t.Errorf("floor %#x, %v, %v", bits, ok, err)
	}
	p.TPM.Off()
	if err := door.Extend(13, [32]byte{}); !errors.Is(err, extend.ErrTPMGone) {
		t.Errorf("extend without a tpm: %v", err)
	}
}
