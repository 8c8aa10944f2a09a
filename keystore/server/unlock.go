package server

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"strconv"
	"time"

	"rempart/boot/stage"
	"rempart/internal/journal"
	"rempart/internal/secret"
	"rempart/internal/sock/httpsock"
	"rempart/keystore/blob"
	"rempart/keystore/client"
	"rempart/keystore/internal/tpm"
	"rempart/keystore/policy"
	"rempart/keystore/vault"
)

// capWords are what the cap is extended with, as their SHA-256.
const capWords = "rempart boot secrets opened"

// unlock opens the vault with the PIN's auth value. A refusal before the
// secrets are read leaves the vault sealed. An error after that is final for
// this boot: fatal is set.
func (s *Server) unlock(pin *secret.Bytes) (refusal *httpsock.Error, fatal error) {
	floor, fault, err := s.fault()
	if err != nil {
		return nil, err
	}
	if fault == nil {
		fault = s.sameKey()
	}
	if fault != nil {
		return &httpsock.Error{Status: client.StatusRefused, Message: fault.Error(),
			Hint: "start the handset from an image whose approval the image key has signed (rempart-policy approve)"}, nil
	}
	l, err := s.device.Lockout()
	if err != nil {
		return nil, err
	}
	if l.Out {
		return lockedOut(l), nil
	}
	user, boot, proof, err := s.open(pin)
	if err != nil {
		return s.whyNot(err)
	}
	// From here on secrets are in memory.
	defer wipeUser(user)
	s.enter(vault.Unsealed, "")
	s.held = &held{
		tunnel:   boot,
		storage:  secret.New(bytes.Clone(user.Storage)),
		identity: secret.New(bytes.Clone(user.Identity)),
		proof:    proof,
	}
	if err := s.settle(user, floor); err != nil {
		return nil, err
	}
	if s.held.key, err = s.device.LoadKey(s.file.Identity, s.held.identity); err != nil {
		return nil, err
	}
	return nil, nil
}

// sameKey says whether the image's approval is by the key that the vault was
// sealed for.
func (s *Server) sameKey() error {
	key, err := x509.MarshalPKIXPublicKey(s.image.key)
	if err != nil {
		return fmt.Errorf("cannot encode the image key: %w", err)
	}
	if !bytes.Equal(key, s.file.ImageKey) {
		return errors.New("this image is approved by another image key than the vault's")
	}
	return nil
}

// open reads the user secrets and then the boot secrets out of the TPM: a wrong
// PIN costs one try, not two.
func (s *Server) open(pin *secret.Bytes) (user blob.User, boot *secret.Bytes, proof *tpm.Proof, err error) {
	if proof, err = s.device.Verify(s.image.user, s.file.Alive); err != nil {
		return user, nil, nil, err
	}
	bootProof, err := s.device.Verify(s.image.boot, s.file.Alive)
	if err != nil {
		return user, nil, nil, err
	}
	joined, err := s.device.Unseal(s.file.User, proof, pin)
	if err != nil {
		return user, nil, nil, err
	}
	if user, err = blob.SplitUser(joined.Reveal()); err != nil {
		joined.Wipe()
		return user, nil, nil, err
	}
	if boot, err = s.device.Unseal(s.file.Boot, bootProof, pin); err != nil {
		joined.Wipe()
		return user, nil, nil, err
	}
	return user, boot, proof, nil
}

// whyNot gives a failure to open its answer.
func (s *Server) whyNot(err error) (refusal *httpsock.Error, fatal error) {
	if errors.Is(err, tpm.ErrTPMGone) {
		return nil, err
	}
	l, lockoutErr := s.device.Lockout()
	if lockoutErr != nil {
		return nil, lockoutErr
	}
	switch {
	case errors.Is(err, tpm.ErrLockedOut):
		return lockedOut(l), nil
	case errors.Is(err, tpm.ErrWrongAuth):
		wrong := client.ErrWrongPIN{TriesLeft: l.TriesLeft()}
		return &httpsock.Error{
			Status:  client.StatusWrongPIN,
			Message: wrong.Error(),
			Facts:   map[string]int64{client.FactTriesLeft: int64(wrong.TriesLeft)},
		}, nil
	}
	return &httpsock.Error{Status: client.StatusRefused, Message: err.Error()}, nil
}

// lockedOut is the answer in lockout. The TPM does not say how much of the
// interval has passed, so it is the most that it can take.
func lockedOut(l tpm.Lockout) *httpsock.Error {
	lockout := client.ErrLockout{For: l.Interval}
	return &httpsock.Error{
		Status:  client.StatusLockout,
		Message: lockout.Error(),
		Hint:    "leave the handset on: the tpm forgets one wrong pin in each such time",
		Facts:   map[string]int64{client.FactLockoutSeconds: int64(l.Interval / time.Second)},
	}
}

// settle does what must follow an open: the lockout count back to zero, the
// floor up, the cap on. Any failure is final.
func (s *Server) settle(user blob.User, floor uint64) error {
	owner, lockout := secret.New(bytes.Clone(user.Owner)), secret.New(bytes.Clone(user.Lockout))
	defer owner.Wipe()
	defer lockout.Wipe()
	own, err := s.device.Ownership()
	if err != nil {
		return err
	}
	if !own.Lockout { // a crash between the vault file and the lockout auth
		if err := s.device.SetLockoutAuth(lockout); err != nil {
			return err
		}
	}
	if err := s.device.ResetLockout(lockout); err != nil {
		return err
	}
	if want := policy.FloorFor(s.image.serial); floor&want != want {
		if err := s.device.RaiseFloor(want, owner); err != nil {
			return err
		}
		floor |= want
		s.journal.Event(eventFloor, "keyd", journal.Success, "floor", strconv.Itoa(policy.Lowest(floor)))
	}
	s.mu.Lock()
	s.status.Floor = policy.Lowest(floor)
	s.mu.Unlock()
	if err := s.device.Extend(stage.PCRCap, sha256.Sum256([]byte(capWords))); err != nil {
		return err
	}
	s.enter(vault.CapExtended, "")
	s.journal.Event(eventCap, "keyd", journal.Success)
	return nil
}
