package manifest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"rempart/internal/strictconf"
)

// The references (TPM2B_NONCE policyRef of TPM2_PolicyAuthorize, TPM 2.0 Part
// 3 §23.16) under which a boot is approved.
const (
	RefBoot = "rempart-boot" // PCR 11, 13 and 15 with 15 at zero: boot secrets, until the cap
	RefUser = "rempart-user" // PCR 11 and 13: user secrets, also after the cap
)

// MaxApproval is the largest approval file accepted, in bytes.
const MaxApproval = 16 << 10

// ApprovalVersion is the one version of the approval file that this code reads.
const ApprovalVersion = 1

// maxPCR is the highest PCR of a PC Client TPM (TCG PC Client PTP §4.6).
const maxPCR = 23

// Approval is the signed TPM boot approval of one image: for each reference
// the PCR values that the image will produce and the digest of the TPM policy
// over them, signed by the image role.
//
// The TPM verifies the signature itself (VerifySignature, then
// PolicyAuthorize), so a wrong file opens nothing. It is checked here as
// well for a clear reason at boot.
type Approval struct {
	Version  int        `json:"version"`
	Serial   int        `json:"serial"` // bit of the rollback index that must be clear
	Approved []Approved `json:"approved"`
}

// Approved is one approved TPM policy: PolicyPCR over PCRs, then PolicyNV on
// the rollback index, BITCLEAR, 1<<Serial. Package keystore/policy composes
// the digest; this package only carries it.
type Approved struct {
	Ref       string   `json:"ref"`       // RefBoot or RefUser
	PCRs      []PCR    `json:"pcrs"`      // SHA-256 bank, ascending
	Digest    Digest   `json:"digest"`    // approvedPolicyDigest
	Key       Digest   `json:"key"`       // SHA-256 of the signer's SubjectPublicKeyInfo
	Signature RawECDSA `json:"signature"` // over SHA-256(Digest ‖ Ref)
}

// PCR is one expected PCR value.
type PCR struct {
	Index int    `json:"index"`
	Value Digest `json:"value"`
}

// Digest is a SHA-256 digest, lower-case hex in text.
type Digest [32]byte

// String returns the digest as lower-case hex.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText returns the digest as lower-case hex.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads 64 lower-case hex digits.
func (d *Digest) UnmarshalText(text []byte) error {
	if !decodeHex(d[:], string(text)) {
		return fmt.Errorf("cannot read digest %q: want 64 lower-case hex digits", text)
	}
	return nil
}

// RawECDSA is a P-256 signature as a TPM takes it: r then s, 32 bytes each,
// big-endian; base64 in text.
type RawECDSA [64]byte

// R returns the first half, left-padded with zeros to 32 bytes.
func (s RawECDSA) R() []byte { return slices.Clone(s[:32]) }

// S returns the second half, left-padded with zeros to 32 bytes.
func (s RawECDSA) S() []byte { return slices.Clone(s[32:]) }

// MarshalText returns the 64 bytes in base64.
func (s RawECDSA) MarshalText() ([]byte, error) {
	return []byte(base64.StdEncoding.EncodeToString(s[:])), nil
}

// UnmarshalText reads 64 bytes of base64.
func (s *RawECDSA) UnmarshalText(text []byte) error {
	raw, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil {
		return fmt.Errorf("cannot read signature %q: %w", text, err)
	}
	if len(raw) != len(s) || len(text) != base64.StdEncoding.EncodedLen(len(s)) {
		return fmt.Errorf("cannot read signature %q: want %d bytes in base64", text, len(s))
	}
	copy(s[:], raw)
	return nil
}

// Values returns the expected PCR values by index.
func (a Approved) Values() map[int][32]byte {
	values := make(map[int][32]byte, len(a.PCRs))
	for _, pcr := range a.PCRs {
		values[pcr.Index] = pcr.Value
	}
	return values
}

// SignedHash returns SHA-256(digest ‖ ref), the aHash of TPM2_PolicyAuthorize.
func (a Approved) SignedHash() [32]byte {
	h := sha256.New()
	h.Write(a.Digest[:])
	h.Write([]byte(a.Ref))
	return [32]byte(h.Sum(nil))
}

// For returns the approval under a reference.
func (a *Approval) For(ref string) (Approved, bool) {
	for _, approved := range a.Approved {
		if approved.Ref == ref {
			return approved, true
		}
	}
	return Approved{}, false
}

// Approve signs one policy digest over the PCR values for a reference. The
// key must be ECDSA P-256 and the image role's.
func Approve(ref string, values map[int][32]byte, digest [32]byte, key crypto.Signer) (Approved, error) {
	approved := Approved{Ref: ref, Digest: digest}
	for index, value := range values {
		approved.PCRs = append(approved.PCRs, PCR{Index: index, Value: value})
	}
	slices.SortFunc(approved.PCRs, func(a, b PCR) int { return a.Index - b.Index })
	public, ok := key.Public().(*ecdsa.PublicKey)
	if !ok {
		return Approved{}, fmt.Errorf("cannot approve %s: the key is %T, want ECDSA P-256", ref, key.Public())
	}
	id, err := KeyID(public)
	if err != nil {
		return Approved{}, fmt.Errorf("cannot approve %s: %w", ref, err)
	}
	approved.Key = id
	hash := approved.SignedHash()
	der, err := key.Sign(rand.Reader, hash[:], crypto.SHA256)
	if err != nil {
		return Approved{}, fmt.Errorf("cannot approve %s: %w", ref, err)
	}
	var rs struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(der, &rs); err != nil || len(rest) != 0 || rs.R.BitLen() > 256 || rs.S.BitLen() > 256 {
		return Approved{}, fmt.Errorf("cannot approve %s: the signer's answer is not an ECDSA P-256 signature", ref)
	}
	rs.R.FillBytes(approved.Signature[:32])
	rs.S.FillBytes(approved.Signature[32:])
	if err := approved.verify(public); err != nil {
		return Approved{}, fmt.Errorf("cannot approve %s: %w", ref, err)
	}
	return approved, nil
}

func (a Approved) verify(key *ecdsa.PublicKey) error {
	r, s := new(big.Int).SetBytes(a.Signature[:32]), new(big.Int).SetBytes(a.Signature[32:])
	der, err := asn1.Marshal(struct{ R, S *big.Int }{r, s})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadSignature, err)
	}
	hash := a.SignedHash()
	if !ecdsa.VerifyASN1(key, hash[:], der) {
		return fmt.Errorf("%w: the signature does not fit the digest and %s", ErrBadSignature, a.Ref)
	}
	return nil
}

// Marshal returns the approval file. It is the one spelling that
// [ParseApproval] accepts.
func (a *Approval) Marshal() ([]byte, error) {
	if err := a.check(); err != nil {
		return nil, fmt.Errorf("cannot write the approval: %w", err)
	}
	data, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("cannot write the approval: %w", err)
	}
	return append(data, '\n'), nil
}

// ParseApproval reads an approval file and checks everything but the
// signatures; [OpenApproval] is what a boot uses.
func ParseApproval(data []byte) (*Approval, error) {
	a, err := parseApproval(data)
	if err != nil {
		return nil, fmt.Errorf("cannot read the boot approval: %w", err)
	}
	return a, nil
}

func parseApproval(data []byte) (*Approval, error) {
	if len(data) > MaxApproval {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrTooLarge, len(data), MaxApproval)
	}
	var a Approval
	if err := strictconf.Decode(data, MaxApproval, &a); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGarbled, err)
	}
	if err := a.check(); err != nil {
		return nil, err
	}
	again, err := a.Marshal()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, data) {
		return nil, fmt.Errorf("%w: not written as rempart-policy approve writes it", ErrGarbled)
	}
	return &a, nil
}

// OpenApproval reads an approval file and verifies every signature by the
// image keys. The error wraps one of the reasons of this package.
func OpenApproval(data []byte, keys []*ecdsa.PublicKey) (*Approval, error) {
	a, err := ParseApproval(data)
	if err != nil {
		return nil, err
	}
	for _, approved := range a.Approved {
		key, err := keyNamed(keys, approved.Key)
		if err != nil {
			return nil, fmt.Errorf("cannot open the boot approval: %w", err)
		}
		if err := approved.verify(key); err != nil {
			return nil, fmt.Errorf("cannot open the boot approval: %w", err)
		}
	}
	return a, nil
}

// OpenApproval verifies an approval file by the policy's image keys. Its serial
// must be the policy's: init asks the floor about one and the TPM about the
// other, and they may not answer differently.
func (p *Policy) OpenApproval(data []byte) (*Approval, error) {
	keys, err := p.Keys.ImageKeys()
	if err != nil {
		return nil, fmt.Errorf("cannot read the policy's image keys: %w: %w", ErrInvalid, err)
	}
	a, err := OpenApproval(data, keys)
	if err != nil {
		return nil, err
	}
	if a.Serial != p.Serial {
		return nil, fmt.Errorf("cannot use the boot approval: %w: it is for serial %d, the policy has %d", ErrInvalid, a.Serial, p.Serial)
	}
	return a, nil
}

func keyNamed(keys []*ecdsa.PublicKey, name Digest) (*ecdsa.PublicKey, error) {
	for _, key := range keys {
		if id, err := KeyID(key); err == nil && id == name {
			return key, nil
		}
	}
	return nil, fmt.Errorf("%w: key %x", ErrWrongKey, name[:4])
}

// check holds an approval to its form: both references once each, in order,
// over exactly their PCRs.
func (a *Approval) check() error {
	if a.Version != ApprovalVersion {
		return fmt.Errorf("%w: the approval has version %d, this image reads %d", ErrVersion, a.Version, ApprovalVersion)
	}
	if a.Serial < MinSerial || a.Serial > MaxSerial {
		return fmt.Errorf("%w: serial %d is not between %d and %d", ErrInvalid, a.Serial, MinSerial, MaxSerial)
	}
	if len(a.Approved) != 2 || a.Approved[0].Ref != RefBoot || a.Approved[1].Ref != RefUser {
		return fmt.Errorf("%w: want the approvals %s and %s, in this order", ErrInvalid, RefBoot, RefUser)
	}
	var errs []error
	for _, approved := range a.Approved {
		if len(approved.PCRs) == 0 {
			errs = append(errs, fmt.Errorf("%w: %s selects no PCR", ErrInvalid, approved.Ref))
		}
		last := -1
		for _, pcr := range approved.PCRs {
			if pcr.Index <= last || pcr.Index > maxPCR {
				errs = append(errs, fmt.Errorf("%w: PCR %d of %s is out of order or range", ErrInvalid, pcr.Index, approved.Ref))
			}
			last = pcr.Index
		}
	}
	return errors.Join(errs...)
}
