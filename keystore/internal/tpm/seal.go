package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"rempart/internal/secret"
	"rempart/keystore/blob"
	"rempart/keystore/policy"
)

// Why a secret does not open. Each is what the TPM said, at the step that says
// it.
var (
	// ErrNotThisImage: PolicyPCR does not find the approved values.
	ErrNotThisImage = errors.New("this image is not the approved one")
	// ErrRevoked: the rollback floor is above the approval's serial.
	ErrRevoked = errors.New("serial of this image is revoked")
	// ErrNotApproved: the approval's signature, key or digest is wrong.
	ErrNotApproved = errors.New("approval is not by the image key of this vault")
	// ErrWiped: the alive counter moved on; no blob opens again.
	ErrWiped = errors.New("vault was wiped")
	// ErrWrongAuth: the auth value is wrong. The TPM counts it.
	ErrWrongAuth = errors.New("wrong auth value")
	// ErrLockedOut: the TPM takes no auth value now.
	ErrLockedOut = errors.New("tpm is locked out")
)

// MaxSecret is the most bytes a sealed object holds (MAX_SYM_DATA, Part 2,
// 11.1.14).
const MaxSecret = 128

// Seal makes a sealed data object whose use needs pol and auth. Wrong auths
// count towards the lockout.
func (d *Device) Seal(data, auth *secret.Bytes, pol [32]byte) (blob.Object, error) {
	if data.Len() == 0 || data.Len() > MaxSecret {
		return blob.Object{}, fmt.Errorf("cannot seal %d bytes: a sealed object holds 1 to %d", data.Len(), MaxSecret)
	}
	return d.create(tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgKeyedHash,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, AdminWithPolicy: true,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: pol[:]},
	}, auth, data)
}

// CreateKey makes an ECDSA P-256 signing key that never leaves the TPM and
// whose use needs pol and auth. Its auth is random, so wrong ones do not count
// (noDA), and a crash after its use costs no lockout count.
func (d *Device) CreateKey(auth *secret.Bytes, pol [32]byte) (blob.Object, error) {
	return d.create(tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			AdminWithPolicy: true, NoDA: true, SignEncrypt: true,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: pol[:]},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
	}, auth, nil)
}

func (d *Device) create(template tpm2.TPMTPublic, auth, data *secret.Bytes) (blob.Object, error) {
	sensitive := tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: auth.Reveal()}}
	if data != nil {
		sensitive.Data = tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: data.Reveal()})
	}
	var object blob.Object
	err := d.withSession(hmacKind, nil, inOut, func(s tpm2.Session) error {
		rsp, err := tpm2.Create{
			ParentHandle: d.root(s),
			InSensitive:  tpm2.TPM2BSensitiveCreate{Sensitive: &sensitive},
			InPublic:     tpm2.New2B(template),
		}.Execute(d.wire)
		if err != nil {
			return err
		}
		object = blob.Object{Public: bytes.Clone(rsp.OutPublic.Bytes()), Private: rsp.OutPrivate.Buffer}
		return nil
	})
	if err != nil {
		return blob.Object{}, fmt.Errorf("cannot create an object in the tpm: %w", err)
	}
	return object, nil
}

func (d *Device) root(s tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: rootHandle, Name: d.srk.name, Auth: s}
}

// load loads an object under the root; the caller flushes the handle.
func (d *Device) load(object blob.Object) (tpm2.NamedHandle, error) {
	var handle tpm2.NamedHandle
	err := d.withSession(hmacKind, nil, in, func(s tpm2.Session) error {
		rsp, err := tpm2.Load{
			ParentHandle: d.root(s),
			InPrivate:    tpm2.TPM2BPrivate{Buffer: object.Private},
			InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](object.Public),
		}.Execute(d.wire)
		if err != nil {
			return err
		}
		handle = tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name}
		return nil
	})
	if err != nil {
		return handle, fmt.Errorf("cannot load an object into the tpm: %w", err)
	}
	return handle, nil
}

// withLoaded calls fn with object loaded, and flushes it.
func (d *Device) withLoaded(object blob.Object, fn func(tpm2.NamedHandle) error) error {
	handle, err := d.load(object)
	if err != nil {
		return err
	}
	return errors.Join(fn(handle), d.flush(handle.Handle))
}

// Unseal opens a sealed object. The policy session is made, satisfied and
// flushed within the call.
func (d *Device) Unseal(object blob.Object, proof *Proof, auth *secret.Bytes) (*secret.Bytes, error) {
	var data *secret.Bytes
	err := d.withLoaded(object, func(handle tpm2.NamedHandle) error {
		return d.withSession(policyKind, auth.Reveal(), out, func(s tpm2.Session) error {
			if err := d.satisfy(s, proof); err != nil {
				return err
			}
			rsp, err := tpm2.Unseal{
				ItemHandle: tpm2.AuthHandle{Handle: handle.Handle, Name: handle.Name, Auth: s},
			}.Execute(d.wire)
			if err != nil {
				return useError(err)
			}
			data = secret.New(rsp.OutData.Buffer)
			return nil
		})
	})
	if err != nil {
		data.Wipe()
		return nil, fmt.Errorf("cannot unseal: %w", err)
	}
	return data, nil
}

// useError gives the TPM's refusal at the last step its meaning.
func useError(err error) error {
	switch {
	case errors.Is(err, tpm2.TPMRCAuthFail):
		return ErrWrongAuth
	case errors.Is(err, tpm2.TPMRCLockout):
		return ErrLockedOut
	case errors.Is(err, tpm2.TPMRCPolicyFail):
		return fmt.Errorf("%w: %w", ErrNotApproved, err)
	}
	return err
}

// Approval is a signed inner policy.
type Approval struct {
	Ref       string
	PCRs      map[int][32]byte
	Serial    int
	Key       *ecdsa.PublicKey
	Signature [64]byte // r and s, 32 bytes each, big-endian
}

// Proof is an approval that this TPM has verified, and the alive counter's
// value: all that satisfies a policy but the auth value. The TPM's ticket in
// it is good until the TPM is reset.
type Proof struct {
	approval Approval
	inner    [32]byte
	keyName  policy.Name
	ticket   tpm2.TPMTTKVerified
	alive    uint64
}

// Verify lets the TPM verify an approval's signature (Part 3, 20.1).
func (d *Device) Verify(approval Approval, alive uint64) (*Proof, error) {
	inner, err := policy.Inner(approval.PCRs, approval.Serial)
	if err != nil {
		return nil, err
	}
	name, err := policy.KeyName(approval.Key)
	if err != nil {
		return nil, err
	}
	public, err := policy.KeyPublic(approval.Key)
	if err != nil {
		return nil, err
	}
	proof := &Proof{approval: approval, inner: inner, keyName: name, alive: alive}
	loaded, err := tpm2.LoadExternal{
		InPublic:  tpm2.BytesAs2B[tpm2.TPMTPublic](public),
		Hierarchy: tpm2.TPMRHOwner,
	}.Execute(d.wire)
	if err != nil {
		return nil, fmt.Errorf("cannot load the image key: %w", err)
	}
	signed := policy.Approval(inner, approval.Ref)
	rsp, err := tpm2.VerifySignature{
		KeyHandle: tpm2.NamedHandle{Handle: loaded.ObjectHandle, Name: loaded.Name},
		Digest:    tpm2.TPM2BDigest{Buffer: signed[:]},
		Signature: tpm2.TPMTSignature{
			SigAlg: tpm2.TPMAlgECDSA,
			Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
				Hash:       tpm2.TPMAlgSHA256,
				SignatureR: tpm2.TPM2BECCParameter{Buffer: approval.Signature[:32]},
				SignatureS: tpm2.TPM2BECCParameter{Buffer: approval.Signature[32:]},
			}),
		},
	}.Execute(d.wire)
	if err = errors.Join(err, d.flush(loaded.ObjectHandle)); err != nil {
		if errors.Is(err, tpm2.TPMRCSignature) {
			return nil, fmt.Errorf("%w: %w", ErrNotApproved, err)
		}
		return nil, fmt.Errorf("cannot verify the approval: %w", err)
	}
	proof.ticket = rsp.Validation
	return proof, nil
}

// satisfy runs the policy's five commands on s. Nothing calls it before the
// request that it serves has arrived: PolicyPCR and PolicyNV are checked when
// they run, not when the session is used.
func (d *Device) satisfy(s tpm2.Session, proof *Proof) error {
	numbers := make([]int, 0, len(proof.approval.PCRs))
	for pcr := range proof.approval.PCRs {
		numbers = append(numbers, pcr)
	}
	values := policy.PCRDigest(proof.approval.PCRs)
	_, err := tpm2.PolicyPCR{
		PolicySession: s.Handle(),
		PcrDigest:     tpm2.TPM2BDigest{Buffer: values[:]},
		Pcrs:          pcrSelection(numbers),
	}.Execute(d.wire)
	if err != nil {
		return meaning(err, tpm2.TPMRCValue, ErrNotThisImage)
	}
	err = d.policyNV(s, policy.FloorIndex, policy.SerialBit(proof.approval.Serial), tpm2.TPMEOBitClear)
	if err != nil {
		return meaning(err, tpm2.TPMRCPolicy, ErrRevoked)
	}
	_, err = tpm2.PolicyAuthorize{
		PolicySession:  s.Handle(),
		ApprovedPolicy: tpm2.TPM2BDigest{Buffer: proof.inner[:]},
		PolicyRef:      tpm2.TPM2BDigest{Buffer: []byte(proof.approval.Ref)},
		KeySign:        tpm2.TPM2BName{Buffer: proof.keyName[:]},
		CheckTicket:    proof.ticket,
	}.Execute(d.wire)
	if err != nil {
		return meaning(err, tpm2.TPMRCValue, ErrNotApproved)
	}
	if _, err = (tpm2.PolicyAuthValue{PolicySession: s.Handle()}).Execute(d.wire); err != nil {
		return fmt.Errorf("cannot satisfy the policy: %w", err)
	}
	err = d.policyNV(s, policy.AliveIndex, proof.alive, tpm2.TPMEOEq)
	if err != nil {
		return meaning(err, tpm2.TPMRCPolicy, ErrWiped)
	}
	return nil
}

// policyNV runs PolicyNV by the index's own empty auth, without a session of
// its own: what a bus attacker changes in it makes another policy digest.
func (d *Device) policyNV(s tpm2.Session, index policy.Index, operand uint64, operation tpm2.TPMEO) error {
	_, err := tpm2.PolicyNV{
		AuthHandle:    nvSelf(index, tpm2.PasswordAuth(nil)),
		NVIndex:       nvHandle(index),
		PolicySession: s.Handle(),
		OperandB:      tpm2.TPM2BOperand{Buffer: be64(operand)},
		Operation:     operation,
	}.Execute(d.wire)
	return err
}

// meaning is what rc means at this step; another error is a failure.
func meaning(err error, rc tpm2.TPMRC, is error) error {
	if errors.Is(err, rc) {
		return is
	}
	return fmt.Errorf("cannot satisfy the policy: %w", err)
}

// SigningKey is a loaded signing key and one policy session that stays open,
// unsatisfied, between signatures: six commands a signature.
type SigningKey struct {
	device *Device
	handle tpm2.NamedHandle
	public *ecdsa.PublicKey
	auth   *secret.Bytes
	s      tpm2.Session
	close  func() error
}

// LoadKey loads a key that CreateKey made. It borrows auth until Close.
func (d *Device) LoadKey(object blob.Object, auth *secret.Bytes) (*SigningKey, error) {
	public, err := KeyPublic(object)
	if err != nil {
		return nil, err
	}
	handle, err := d.load(object)
	if err != nil {
		return nil, err
	}
	return &SigningKey{device: d, handle: handle, public: public, auth: auth}, nil
}

// KeyPublic returns the public key of an object that CreateKey made.
func KeyPublic(object blob.Object) (*ecdsa.PublicKey, error) {
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](object.Public)
	if err != nil {
		return nil, fmt.Errorf("cannot read the key's public part: %w", err)
	}
	key, err := tpm2.Pub(*area)
	if err != nil {
		return nil, fmt.Errorf("cannot read the key's public part: %w", err)
	}
	public, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("cannot read the key's public part: it is a %T", key)
	}
	return public, nil
}

// Public returns the public key.
func (k *SigningKey) Public() *ecdsa.PublicKey { return k.public }

// Sign signs a SHA-256 digest and returns an ASN.1 ECDSA-Sig-Value. After a
// failure the session is gone, and the next call makes another.
func (k *SigningKey) Sign(proof *Proof, digest [32]byte) (signature []byte, err error) {
	if k.s == nil {
		k.s, k.close, err = k.device.session(policyKind, k.auth.Reveal(), in)
		if err != nil {
			return nil, err
		}
	}
	signature, err = k.sign(proof, digest)
	if err != nil {
		// A session that is satisfied and was not used must not live.
		return nil, fmt.Errorf("cannot sign: %w", errors.Join(err, k.drop()))
	}
	return signature, nil
}

func (k *SigningKey) sign(proof *Proof, digest [32]byte) ([]byte, error) {
	if err := k.device.satisfy(k.s, proof); err != nil {
		return nil, err
	}
	rsp, err := tpm2.Sign{
		KeyHandle:  tpm2.AuthHandle{Handle: k.handle.Handle, Name: k.handle.Name, Auth: k.s},
		Digest:     tpm2.TPM2BDigest{Buffer: digest[:]},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(k.device.wire)
	if err != nil {
		return nil, useError(err)
	}
	raw, err := rsp.Signature.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	r, s := new(big.Int).SetBytes(raw.SignatureR.Buffer), new(big.Int).SetBytes(raw.SignatureS.Buffer)
	return asn1.Marshal(struct{ R, S *big.Int }{r, s})
}

func (k *SigningKey) drop() error {
	if k.s == nil {
		return nil
	}
	k.s = nil
	return flushError(k.close())
}

// Close flushes the session and the key.
func (k *SigningKey) Close() error {
	return errors.Join(k.drop(), k.device.flush(k.handle.Handle))
}
