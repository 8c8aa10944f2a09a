package tpm

import (
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"

	"rempart/internal/secret"
	"rempart/keystore/policy"
)

// AuthSize is the size in bytes of the auth values made here: the digest size
// of SHA-256, the most that an object of that name algorithm takes.
const AuthSize = 32

// NoZeros replaces every zero byte by 1, in place, and returns auth. A TPM
// drops an auth value's trailing zeros (Part 1, 19.6.5), and go-tpm 0.9.8 cuts
// the value at its first zero, wherever it is: a value with a zero in it
// authorises nothing. The 255 values left per byte cost 0.2 of 256 bits.
func NoZeros(auth []byte) []byte {
	for i, b := range auth {
		if b == 0 {
			auth[i] = 1
		}
	}
	return auth
}

// NewAuth returns a random auth value of AuthSize bytes, none of them zero.
func NewAuth() *secret.Bytes {
	auth := make([]byte, AuthSize)
	rand.Read(auth) // never fails (crypto/rand, Go 1.24)
	return secret.New(NoZeros(auth))
}

// Ownership says which hierarchies have an auth value (TPMA_PERMANENT, Part 2,
// 8.6).
type Ownership struct {
	Owner, Lockout bool // auth is set
}

// Ownership reads it. The answer is not authenticated.
func (d *Device) Ownership() (Ownership, error) {
	bits, err := d.property(tpm2.TPMPTPermanent)
	if err != nil {
		return Ownership{}, err
	}
	return Ownership{Owner: bits&(1<<0) != 0, Lockout: bits&(1<<2) != 0}, nil
}

// Clear does TPM2_Clear (Part 3, 24.6) by the empty lockout auth: a new storage
// seed, no owner objects, no owner auth. It undoes a provisioning that did not
// come to its end.
func (d *Device) Clear() error {
	_, err := tpm2.Clear{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)},
	}.Execute(d.wire)
	if err != nil {
		return fmt.Errorf("cannot clear the tpm: %w", err)
	}
	d.srk = nil
	return nil
}

// SetOwnerAuth gives the owner hierarchy, whose auth must be empty, an auth.
func (d *Device) SetOwnerAuth(auth *secret.Bytes) error {
	return d.setAuth(tpm2.TPMRHOwner, "owner", auth)
}

// SetLockoutAuth gives the lockout hierarchy, whose auth must be empty, an auth.
func (d *Device) SetLockoutAuth(auth *secret.Bytes) error {
	return d.setAuth(tpm2.TPMRHLockout, "lockout", auth)
}

// setAuth authorises with the empty password, which hides nothing and which the
// TPM's answer needs (its HMAC would be under the new value); a second session
// encrypts the new value and authenticates both ways.
func (d *Device) setAuth(hierarchy tpm2.TPMHandle, what string, auth *secret.Bytes) error {
	err := d.withSession(hmacKind, nil, in, func(s tpm2.Session) error {
		_, err := tpm2.HierarchyChangeAuth{
			AuthHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth(nil)},
			NewAuth:    tpm2.TPM2BAuth{Buffer: auth.Reveal()},
		}.Execute(d.wire, s)
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot set the %s auth: %w", what, err)
	}
	return nil
}

// Lockout is the state of the dictionary attack protection (Part 1, 19.8).
type Lockout struct {
	Count    int           // wrong auths that the TPM remembers
	Max      int           // how many it takes
	Interval time.Duration // how long it takes to forget one
	Out      bool          // it takes none now
}

// TriesLeft is how many more wrong auths the TPM takes.
func (l Lockout) TriesLeft() int { return max(0, l.Max-l.Count) }

// Lockout reads it. The answer is not authenticated: it is for telling a person.
func (d *Device) Lockout() (Lockout, error) {
	var values [3]uint32
	for i, pt := range []tpm2.TPMPT{tpm2.TPMPTLockoutCounter, tpm2.TPMPTMaxAuthFail, tpm2.TPMPTLockoutInterval} {
		v, err := d.property(pt)
		if err != nil {
			return Lockout{}, err
		}
		values[i] = v
	}
	l := Lockout{
		Count:    int(values[0]),
		Max:      int(values[1]),
		Interval: time.Duration(values[2]) * time.Second,
	}
	l.Out = l.Count >= l.Max
	return l, nil
}

// LockoutRules are the parameters of TPM2_DictionaryAttackParameters (Part 3,
// 25.3). Times are rounded down to seconds.
type LockoutRules struct {
	MaxTries int
	Interval time.Duration // to forget one wrong auth
	Recovery time.Duration // after a wrong lockout auth
}

// SetLockoutRules sets them. auth is the lockout auth; nil while it is empty.
func (d *Device) SetLockoutRules(rules LockoutRules, auth *secret.Bytes) error {
	var parameters []byte
	for _, v := range []uint32{
		uint32(rules.MaxTries),
		uint32(rules.Interval / time.Second),
		uint32(rules.Recovery / time.Second),
	} {
		parameters = append(parameters, be32(v)...)
	}
	return d.lockoutCommand(tpm2.TPMCCDictionaryAttackParameters, "set the lockout rules", auth, parameters)
}

// ResetLockout makes the TPM forget every wrong auth (Part 3, 25.2).
func (d *Device) ResetLockout(auth *secret.Bytes) error {
	return d.lockoutCommand(tpm2.TPMCCDictionaryAttackLockReset, "reset the lockout count", auth, nil)
}

func (d *Device) lockoutCommand(cc tpm2.TPMCC, what string, auth *secret.Bytes, parameters []byte) error {
	handle := tpm2.NamedHandle{Handle: tpm2.TPMRHLockout, Name: tpm2.HandleName(tpm2.TPMRHLockout)}
	err := d.withSession(hmacKind, auth.Reveal(), plain, func(s tpm2.Session) error {
		return d.runRaw(cc, s, []tpm2.NamedHandle{handle}, parameters)
	})
	if err != nil {
		return fmt.Errorf("cannot %s: %w", what, err)
	}
	return nil
}

// EKCertificate returns the maker's certificate of the endorsement key, DER:
// ECC P-256 if there is one, else RSA 2048, else ECC P-384; empty if there is
// none. The indices are those of the TCG EK Credential Profile, 2.2.1.4.
func (d *Device) EKCertificate() ([]byte, error) {
	for _, index := range []tpm2.TPMHandle{0x01c0000a, 0x01c00002, 0x01c00016} {
		pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(d.wire)
		if errors.Is(err, tpm2.TPMRCHandle) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the ek certificate: %w", err)
		}
		cert, err := d.readCertificate(index, pub)
		if err != nil {
			return nil, fmt.Errorf("cannot read the ek certificate: %w", err)
		}
		return cert, nil
	}
	return nil, nil
}

func (d *Device) readCertificate(index tpm2.TPMHandle, pub *tpm2.NVReadPublicResponse) ([]byte, error) {
	area, err := pub.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	const chunk = 512 // every TPM's NV buffer holds this (PTP: at least 512)
	var cert []byte
	for len(cert) < int(area.DataSize) {
		rsp, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: index, Name: pub.NVName, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: pub.NVName},
			Size:       uint16(min(chunk, int(area.DataSize)-len(cert))),
			Offset:     uint16(len(cert)),
		}.Execute(d.wire)
		if err != nil {
			return nil, err
		}
		if len(rsp.Data.Buffer) == 0 {
			return nil, errors.New("tpm returned no data")
		}
		cert = append(cert, rsp.Data.Buffer...)
	}
	return cert, nil
}

// Vacant reports whether neither the storage root key nor one of our indices is
// there. The answer is not authenticated.
func (d *Device) Vacant() (bool, error) {
	_, err := tpm2.ReadPublic{ObjectHandle: rootHandle}.Execute(d.wire)
	if err == nil {
		return false, nil
	}
	if !errors.Is(err, tpm2.TPMRCHandle) {
		return false, fmt.Errorf("cannot look for a storage root key: %w", err)
	}
	for _, index := range []policy.Index{policy.AliveIndex, policy.FloorIndex} {
		_, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(d.wire)
		if err == nil {
			return false, nil
		}
		if !errors.Is(err, tpm2.TPMRCHandle) {
			return false, fmt.Errorf("cannot look for nv index %v: %w", index, err)
		}
	}
	return true, nil
}
