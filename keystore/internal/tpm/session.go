package tpm

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// rootHandle is where the storage root key persists: the TCG's registered SRK
// handle (Registry of Reserved TPM 2.0 Handles, 2.3.1).
const rootHandle = tpm2.TPMHandle(0x81000001)

// nonceSize is the size in bytes of our session nonces.
const nonceSize = 16

// ErrNotOurRoot means that the storage root key in the TPM is not the one that
// was pinned at provisioning: the TPM was cleared or is another one.
var ErrNotOurRoot = errors.New("tpm's storage root key is not the one of this vault")

// storageRoot is the storage root key, pinned.
type storageRoot struct {
	public tpm2.TPMTPublic
	name   tpm2.TPM2BName
}

// Pin reads the storage root key's public part and compares it with public, a
// TPMT_PUBLIC as CreateRoot returned it. Sessions can be made from then on.
// Pinning is what makes them worth something: a salt encrypted to a key that
// the bus named could be read by the bus.
func (d *Device) Pin(public []byte) error {
	rsp, err := tpm2.ReadPublic{ObjectHandle: rootHandle}.Execute(d.wire)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return fmt.Errorf("%w: there is none", ErrNotOurRoot)
	}
	if err != nil {
		return fmt.Errorf("cannot read the storage root key: %w", err)
	}
	if !bytes.Equal(rsp.OutPublic.Bytes(), public) {
		return ErrNotOurRoot
	}
	return d.pin(public)
}

func (d *Device) pin(public []byte) error {
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil {
		return fmt.Errorf("cannot read the storage root key: %w", err)
	}
	name, err := tpm2.ObjectName(area)
	if err != nil {
		return fmt.Errorf("cannot name the storage root key: %w", err)
	}
	d.srk = &storageRoot{public: *area, name: *name}
	return nil
}

// CreateRoot makes the storage root key from the TCG's ECC P-256 template
// (TCG TPM v2.0 Provisioning Guidance, 7.5.1), makes it persistent, pins it and
// returns its public part. The owner auth must still be empty.
func (d *Device) CreateRoot() (public []byte, err error) {
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: owner,
		InPublic:      tpm2.New2B(tpm2.ECCSRKTemplate),
	}.Execute(d.wire)
	if err != nil {
		return nil, fmt.Errorf("cannot create the storage root key: %w", err)
	}
	defer func() { err = errors.Join(err, d.flush(rsp.ObjectHandle)) }()
	if err := checkRoot(&rsp.OutPublic); err != nil {
		return nil, err
	}
	_, err = tpm2.EvictControl{
		Auth:             owner,
		ObjectHandle:     &tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name},
		PersistentHandle: rootHandle,
	}.Execute(d.wire)
	if err != nil {
		return nil, fmt.Errorf("cannot keep the storage root key: %w", err)
	}
	public = bytes.Clone(rsp.OutPublic.Bytes())
	if err := d.Pin(public); err != nil {
		return nil, err
	}
	return public, nil
}

// checkRoot compares what came back with the template in everything but the
// key itself.
func checkRoot(public *tpm2.TPM2BPublic) error {
	got, err := public.Contents()
	if err != nil {
		return fmt.Errorf("cannot read the storage root key: %w", err)
	}
	want := tpm2.ECCSRKTemplate
	want.Unique = got.Unique
	if !bytes.Equal(tpm2.Marshal(got), tpm2.Marshal(want)) {
		return errors.New("cannot use the storage root key: the tpm made another key than was asked for")
	}
	return nil
}

// direction says which of a command's parameters are encrypted. A TPM refuses
// an encrypting session on a command whose first parameter is not a sized
// buffer (Part 1, 21), so the caller says what the command allows.
type direction int

const (
	plain direction = iota // no parameter that could be encrypted; HMAC alone
	in                     // the first command parameter
	out                    // the first response parameter
	inOut                  // both
)

// kind is the kind of a session.
type kind int

const (
	hmacKind kind = iota
	policyKind
)

// session is the one session constructor. The session is salted to the pinned
// root, and proves knowledge of auth by HMAC; auth has no zero byte (see Auth).
// close flushes it.
func (d *Device) session(kind kind, auth []byte, dir direction) (s tpm2.Session, close func() error, err error) {
	if d.srk == nil {
		return nil, nil, errors.New("cannot start a session: the storage root key is not pinned")
	}
	options := []tpm2.AuthOption{
		tpm2.Auth(auth),
		tpm2.Salted(rootHandle, d.srk.public),
	}
	switch dir {
	case in:
		options = append(options, tpm2.AESEncryption(128, tpm2.EncryptIn))
	case out:
		options = append(options, tpm2.AESEncryption(128, tpm2.EncryptOut))
	case inOut:
		options = append(options, tpm2.AESEncryption(128, tpm2.EncryptInOut))
	}
	if kind == policyKind {
		s, close, err = tpm2.PolicySession(d.wire, tpm2.TPMAlgSHA256, nonceSize, options...)
	} else {
		s, close, err = tpm2.HMACSession(d.wire, tpm2.TPMAlgSHA256, nonceSize, options...)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("cannot start a session: %w", err)
	}
	return s, close, nil
}

// withSession calls fn with a session and flushes it.
func (d *Device) withSession(kind kind, auth []byte, dir direction, fn func(tpm2.Session) error) error {
	s, close, err := d.session(kind, auth, dir)
	if err != nil {
		return err
	}
	return errors.Join(fn(s), flushError(close()))
}

// withEmptyAuth calls fn with the authorisation of an entity whose auth value
// is empty. Once the root is pinned it is a session, so that the answer is
// authentic; before, it is the empty password.
func (d *Device) withEmptyAuth(dir direction, fn func(tpm2.Session) error) error {
	if d.srk == nil {
		return fn(tpm2.PasswordAuth(nil))
	}
	return d.withSession(hmacKind, nil, dir, fn)
}

// flush flushes a transient object or a session.
func (d *Device) flush(h tpm2.TPMHandle) error {
	_, err := tpm2.FlushContext{FlushHandle: h}.Execute(d.wire)
	return flushError(err)
}

func flushError(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("cannot flush a handle: %w", err)
}

// FlushAll flushes every transient object and every loaded or saved session,
// whoever made it. keyd calls it when it takes the TPM over, before it makes
// any of its own: a policy session that someone satisfied earlier would stay
// satisfied.
func (d *Device) FlushAll() error {
	// The first handle of each range: loaded sessions, saved sessions,
	// transient objects (Part 2, 7.4 and 7.5).
	for _, first := range []uint32{0x02000000, 0x03000000, 0x80000000} {
		rsp, err := tpm2.GetCapability{
			Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64,
		}.Execute(d.wire)
		if err != nil {
			return fmt.Errorf("cannot list the tpm's handles: %w", err)
		}
		list, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			return fmt.Errorf("cannot list the tpm's handles: %w", err)
		}
		for _, h := range list.Handle {
			if err := d.flush(h); err != nil {
				return err
			}
		}
	}
	return nil
}
