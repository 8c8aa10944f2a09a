package server

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"rempart/boot/stage"
	"rempart/internal/proof"
	"rempart/keystore/client"
	"rempart/keystore/internal/tpmtest"
)

// TestCopyOfStateShowsNothing looks for the secrets in a copy of the folder, in
// the forms that anything here would write them in, and finds them where they
// were put on purpose.
func TestCopyOfStateShowsNothing(t *testing.T) {
	proof.SFR(t, "FPT_KST_EXT.1", "the same search in a folder with the key in it, below")
	p := enrolled(t)
	p.unlock(goodPIN)
	held := p.server.held
	secrets := map[string][]byte{
		"tunnel key": held.tunnel.Reveal(), "storage key": held.storage.Reveal(), "identity auth": held.identity.Reveal(),
	}
	find := func(data []byte) (found []string) {
		for name, key := range secrets {
			for _, form := range [][]byte{key, []byte(hex.EncodeToString(key)), []byte(base64.StdEncoding.EncodeToString(key))} {
				if bytes.Contains(data, form) {
					found = append(found, name)
				}
			}
		}
		return found
	}
	if found := find(files(t, p.State)); len(found) != 0 {
		t.Errorf("the state folder shows the %v", found)
	}
	twin := t.TempDir()
	if err := os.WriteFile(filepath.Join(twin, "key"), []byte(base64.StdEncoding.EncodeToString(held.storage.Reveal())), 0o600); err != nil {
		t.Fatal(err)
	}
	if found := find(files(t, twin)); len(found) != 1 {
		t.Errorf("the twin's key was not found: %v", found)
	}
}

// TestBusShowsNoSecret is the passive attacker on the bus, from the first
// command of provisioning to signatures.
func TestBusShowsNoSecret(t *testing.T) {
	p := newPhone(t, tpmtest.New(t))
	s := p.boot()
	var bus []byte
	record := func(command, response []byte) {
		bus = append(append(bus, command...), response...)
	}
	s.device.Watch(record)
	e := p.enrol(goodPIN)
	if err := p.as("shell").SetCertificate(t.Context(), p.certify(e, nil)); err != nil {
		t.Fatal(err)
	}
	p.halt()
	s = p.boot()
	s.device.Watch(record)
	p.unlock(goodPIN)
	digest := sha256.Sum256([]byte("x"))
	signer, _, err := p.as("voiced").Signer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := signer.Sign(nil, digest[:], crypto.SHA256); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(bus, s.file.Identity.Public) || !bytes.Contains(bus, s.file.Root) {
		t.Fatalf("recorded %d bytes: the recorder missed the bus", len(bus))
	}
	joined, err := s.device.Unseal(s.file.User, s.held.proof, pinAuth(s.file.Salt, []byte(goodPIN)))
	if err != nil {
		t.Fatal(err)
	}
	for name, word := range map[string][]byte{
		"pin's auth": pinAuth(s.file.Salt, []byte(goodPIN)).Reveal(), "tunnel key": s.held.tunnel.Reveal(),
		"storage key": joined.Reveal()[:32], "identity auth": joined.Reveal()[32:64],
		"owner auth": joined.Reveal()[64:96], "lockout auth": joined.Reveal()[96:],
	} {
		if bytes.Contains(bus, word) {
			t.Errorf("the bus shows the %s", name)
		}
	}
}

// unlockThrough unlocks a restarted phone whose TPM is behind an attacker.
func unlockThrough(t *testing.T, p *phone, attacker tpmtest.Attacker) (client.Status, error) {
	t.Helper()
	stream := p.powerOn()
	s, err := New(Config{TPM: tpmtest.Between(t, stream, attacker), State: p.State, Image: p.Image})
	if err != nil {
		return client.Status{}, err
	}
	p.server = s
	return p.as("shell").Unlock(t.Context(), pin(goodPIN))
}

// capOn is PCR 15 once the cap is on.
func capOn() [32]byte {
	digest := sha256.Sum256([]byte(capWords))
	return sha256.Sum256(append(make([]byte, 32), digest[:]...))
}

// TestForgedSuccessIsNoticed: the attacker on the bus keeps a command from the
// TPM and answers success in its place.
func TestForgedSuccessIsNoticed(t *testing.T) {
	t.Parallel()
	for name, code := range map[string]uint32{
		"PCR_Extend of the cap": 0x182, "NV_SetBits of the floor": 0x135, "DictionaryAttackLockReset": 0x139,
	} {
		p := enrolled(t)
		p.halt()
		var answered atomic.Int32
		s, err := unlockThrough(t, p, func(command []byte, ask func([]byte) []byte) []byte {
			if binary.BigEndian.Uint32(command[6:]) != code {
				return ask(command)
			}
			answered.Add(1)
			// Success, no parameters, and the session's nonce and HMAC, guessed.
			forged := []byte{0x80, 2, 0, 0, 0, 67, 0, 0, 0, 0, 0, 0, 0, 0}
			forged = append(append(forged, 0, 16), make([]byte, 16)...)
			return append(append(forged, 1, 0, 32), make([]byte, 32)...)
		})
		if n := answered.Load(); n != 1 {
			t.Fatalf("%s: sent %d times", name, n)
		}
		if err == nil || s.State == client.Capped {
			t.Errorf("%s: %+v", name, s)
		}
		if s := p.status(); s.State != client.Failed {
			t.Errorf("%s: %+v", name, s)
		}
		if p.server.held != nil {
			t.Errorf("%s: secrets are still held", name)
		}
		if _, err := p.as("tunneld").TunnelKey(t.Context()); !errors.Is(err, client.ErrRefused) {
			t.Errorf("%s: tunnel key: %v", name, err)
		}
	}
}

// TestFlippedBitsNeverOpenWithoutTheCap flips one bit of each command or
// response of a boot and unlock in turn. Most of that fails; where keyd says
// that it serves, the cap must be on in the TPM itself, and the key right.
func TestFlippedBitsNeverOpenWithoutTheCap(t *testing.T) {
	t.Parallel()
	p := enrolled(t)
	p.halt()
	var counted atomic.Int32
	count := func(command []byte, ask func([]byte) []byte) []byte {
		counted.Add(1)
		return ask(command)
	}
	if _, err := unlockThrough(t, p, count); err != nil {
		t.Fatal(err)
	}
	key := bytes.Clone(p.server.held.tunnel.Reveal())
	p.halt()
	total, opened := int(counted.Load()), 0
	for at := range total {
		n := -1
		var over atomic.Bool
		s, err := unlockThrough(t, p, func(command []byte, ask func([]byte) []byte) []byte {
			if n++; n != at || over.Load() {
				return ask(command)
			}
			if at%2 == 0 {
				command[len(command)-1] ^= 1
				return ask(command)
			}
			response := ask(command)
			response[len(response)-1] ^= 1
			return response
		})
		over.Store(true)
		if err == nil && s.State == client.Capped {
			opened++
			values, err := p.server.device.PCRs(stage.PCRCap)
			if err != nil || values[stage.PCRCap] != capOn() {
				t.Errorf("flip at %d: serves, and the cap is %x, %v", at, values[stage.PCRCap], err)
			}
			if !bytes.Equal(p.server.held.tunnel.Reveal(), key) {
				t.Errorf("flip at %d: serves another tunnel key", at)
			}
		} else if p.server != nil && p.server.held != nil {
			t.Errorf("flip at %d: %v, and secrets are held", at, err)
		}
		p.cut()
		p.boot()
		p.unlock(goodPIN) // nothing was spoilt for good
		p.halt()
	}
	t.Logf("%d of %d flips were without effect", opened, total)
	if opened > total/2 {
		t.Errorf("%d of %d flips did nothing: the attacker was not on the bus", opened, total)
	}
}

// TestOtherRootOnTheBusGetsNoPIN: the attacker answers ReadPublic with a
// storage root key of his own.
func TestOtherRootOnTheBusGetsNoPIN(t *testing.T) {
	p := enrolled(t)
	p.halt()
	var sessions atomic.Int32
	_, err := unlockThrough(t, p, func(command []byte, ask func([]byte) []byte) []byte {
		response := ask(command)
		switch binary.BigEndian.Uint32(command[6:]) {
		case 0x173: // ReadPublic: another point, before the two names
			response[len(response)-80] ^= 1
		case 0x176:
			sessions.Add(1)
		}
		return response
	})
	if !errors.Is(err, client.ErrRefused) || !strings.Contains(err.Error(), "storage root key") {
		t.Errorf("unlock: %v", err)
	}
	if n := sessions.Load(); n != 0 {
		t.Errorf("%d sessions were salted to the attacker's key", n)
	}
}

// TestEverySessionIsSalted reads the sessions off the bus of a whole life: each
// is salted to the pinned root, and what goes without a session is named here.
func TestEverySessionIsSalted(t *testing.T) {
	p := newPhone(t, tpmtest.New(t))
	passwords := map[uint32]string{ // authorised by an empty password
		0x131: "CreatePrimary", 0x120: "EvictControl", // before there is a root
		0x129: "HierarchyChangeAuth", // with a second session that encrypts
		0x149: "PolicyNV",            // what is altered in it makes another digest
	}
	sessions, encrypting, faults := 0, 0, 0
	watch := func(command, _ []byte) {
		code := binary.BigEndian.Uint32(command[6:])
		if bytes.Contains(command, []byte{0x40, 0, 0, 9}) && passwords[code] == "" { // TPM_RS_PW
			faults++
			t.Errorf("command %#x goes by a password", code)
		}
		if code != 0x176 {
			return
		}
		sessions++
		if root := binary.BigEndian.Uint32(command[10:]); root != 0x81000001 {
			t.Errorf("a session is salted to handle %#x", root)
		}
		nonce := int(binary.BigEndian.Uint16(command[18:]))
		rest := command[20+nonce:]
		salt := int(binary.BigEndian.Uint16(rest))
		if nonce < 16 || salt < 64 {
			t.Errorf("a session has a nonce of %d and a salt of %d bytes", nonce, salt)
		}
		if binary.BigEndian.Uint16(rest[2+salt+1:]) == 0x0006 { // TPM_ALG_AES
			encrypting++
		}
	}
	p.boot().device.Watch(watch)
	p.enrol(goodPIN)
	p.halt()
	p.boot().device.Watch(watch)
	p.unlock(goodPIN)
	if sessions < 15 || encrypting < 10 || faults != 0 {
		t.Errorf("%d sessions, %d encrypt, %d faults", sessions, encrypting, faults)
	}
}
