package server

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"time"

	"rempart/internal/journal"
	"rempart/internal/secret"
	"rempart/internal/sock/httpsock"
	"rempart/keystore/client"
	"rempart/keystore/client/identity"
	"rempart/keystore/internal/tpm"
	"rempart/keystore/vault"
)

func refuse(status int, format string, args ...any) *httpsock.Error {
	return &httpsock.Error{Status: status, Message: fmt.Sprintf(format, args...)}
}

// now is the state at this moment.
func (s *Server) now() vault.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// Status returns what anyone may know. It does not wait for the TPM: lockout
// facts are read anew if they are old and the TPM is free.
func (s *Server) Status() client.Status {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
		s.refreshLockout()
	default:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *Server) refreshLockout() {
	s.mu.Lock()
	var err error
	if s.state == vault.Sealed && time.Since(s.lockout) > lockoutAge {
		err = s.readLockout()
	}
	s.mu.Unlock()
	if err != nil {
		s.breakDown(err)
	}
}

func (s *Server) getStatus(*http.Request) (any, *httpsock.Error) { return s.Status(), nil }

// gone is the answer of a vault that has failed. Needs the turn.
func (s *Server) gone() *httpsock.Error {
	status := client.StatusRefused
	if errors.Is(s.cause, tpm.ErrTPMGone) {
		status = client.StatusTPMGone
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return refuse(status, "keystore has failed: %s", s.status.Reason)
}

func (s *Server) postEnrol(r *http.Request) (any, *httpsock.Error) {
	var in client.EnrolRequest
	if refusal := httpsock.ReadBody(r, &in); refusal != nil {
		return nil, refusal
	}
	defer clear(in.PIN)
	if !identity.ValidName(in.Name) {
		return nil, refuse(http.StatusBadRequest, "cannot enrol %q: a name is 1 to 32 lower-case letters, digits and hyphens", in.Name)
	}
	if err := in.PIN.Check(); err != nil {
		return nil, refuse(http.StatusBadRequest, "cannot enrol: %v", err)
	}
	release, refusal := s.take(r.Context())
	if refusal != nil {
		return nil, refusal
	}
	defer release()
	if state := s.now(); state != vault.Empty {
		return nil, refuse(client.StatusRefused, "cannot enrol: the vault is %v, not empty", state)
	}
	enrolment, err := s.enrol(in)
	if err != nil {
		s.journal.Event(eventEnrol, subject(r), journal.Failure, "reason", err.Error())
		if errors.Is(err, tpm.ErrTPMGone) {
			s.breakDown(err)
			return nil, s.gone()
		}
		return nil, refuse(client.StatusRefused, "cannot enrol: %v", err)
	}
	s.journal.Event(eventEnrol, subject(r), journal.Success, "name", in.Name)
	return enrolment, nil
}

func (s *Server) enrol(in client.EnrolRequest) (client.Enrolment, error) {
	if err := s.image.fault(s.device, 0); err != nil {
		return client.Enrolment{}, err
	}
	file, enrolment, err := s.provision(in.Name, in.PIN)
	if err != nil {
		return client.Enrolment{}, err
	}
	return enrolment, s.adopt(file)
}

func (s *Server) getCSR(*http.Request) (any, *httpsock.Error) {
	if s.now() == vault.Empty {
		return nil, refuse(client.StatusNotProvisioned, "keystore is not provisioned: enrol first")
	}
	enrolment, err := s.store.readEnrolment()
	if err != nil {
		return nil, refuse(http.StatusInternalServerError, "%v", err)
	}
	return enrolment, nil
}

func (s *Server) putCertificate(r *http.Request) (any, *httpsock.Error) {
	var in client.Chain
	if refusal := httpsock.ReadBody(r, &in); refusal != nil {
		return nil, refusal
	}
	release, refusal := s.take(r.Context())
	if refusal != nil {
		return nil, refusal
	}
	defer release()
	if s.file == nil {
		return nil, refuse(client.StatusNotProvisioned, "keystore is not provisioned: enrol first")
	}
	err := s.checkChain(in.Chain)
	if err == nil {
		err = s.store.writeChain(in.Chain)
	}
	if err != nil {
		s.journal.Event(eventCertificate, subject(r), journal.Refused, "reason", err.Error())
		return nil, refuse(client.StatusRefused, "cannot take the certificate: %v", err)
	}
	s.mu.Lock()
	s.status.Certificate = true
	s.mu.Unlock()
	s.journal.Event(eventCertificate, subject(r), journal.Success)
	return s.Status(), nil
}

// checkChain takes a certificate only if it is the device authority's, for this
// handset's identity key, name and tunnel key.
func (s *Server) checkChain(chain [][]byte) error {
	if s.image.err != nil {
		return s.image.err
	}
	id, leaf, err := identity.Verify(chain, s.image.roots, time.Now())
	if err != nil {
		return err
	}
	public, err := tpm.KeyPublic(s.file.Identity)
	if err != nil {
		return err
	}
	if !public.Equal(leaf.PublicKey) {
		return errors.New("it is not for this handset's identity key")
	}
	if id.Name != s.file.Name {
		return fmt.Errorf("it is for %q, this handset is %q", id.Name, s.file.Name)
	}
	enrolment, err := s.store.readEnrolment()
	if err != nil {
		return err
	}
	if !bytes.Equal(id.TunnelKey[:], enrolment.TunnelKey) {
		return errors.New("it is not for this handset's tunnel key")
	}
	return nil
}

func (s *Server) getCertificate(*http.Request) (any, *httpsock.Error) {
	chain, err := s.store.readChain()
	if err != nil {
		return nil, refuse(client.StatusNotProvisioned, "keystore has no certificate: %v", err)
	}
	return client.Chain{Chain: chain}, nil
}

func (s *Server) postUnlock(r *http.Request) (any, *httpsock.Error) {
	var in client.UnlockRequest
	if refusal := httpsock.ReadBody(r, &in); refusal != nil {
		return nil, refusal
	}
	defer clear(in.PIN)
	release, refusal := s.take(r.Context())
	if refusal != nil {
		return nil, refusal
	}
	refusal = s.unlockOnce(r, in.PIN)
	release()
	if refusal != nil {
		return nil, refusal
	}
	return s.Status(), nil
}

func (s *Server) unlockOnce(r *http.Request, pin client.PIN) *httpsock.Error {
	switch s.now() {
	case vault.Sealed:
	case vault.Empty:
		return refuse(client.StatusNotProvisioned, "keystore is not provisioned: enrol first")
	case vault.Failed:
		return s.gone()
	default:
		return nil // open already; says nothing about this PIN
	}
	if err := pin.Check(); err != nil {
		return refuse(http.StatusBadRequest, "cannot unlock: %v", err)
	}
	auth := pinAuth(s.file.Salt, pin)
	defer auth.Wipe()
	refusal, fatal := s.unlock(auth)
	if fatal != nil {
		s.journal.Event(eventUnlock, subject(r), journal.Failure, "reason", fatal.Error())
		s.breakDown(fatal)
		return s.gone()
	}
	s.mu.Lock()
	err := s.readLockout()
	s.mu.Unlock()
	if err != nil {
		s.breakDown(err)
		return s.gone()
	}
	if refusal != nil {
		s.journal.Event(eventUnlock, subject(r), journal.Refused, "reason", refusal.Message)
		if s.now() == vault.Sealed {
			s.say(refusal.Message)
		}
		return refusal
	}
	s.journal.Event(eventUnlock, subject(r), journal.Success)
	return nil
}

// say changes the reason, not the state nor its time.
func (s *Server) say(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Reason = reason
}

// use calls fn with what is held, behind the cap, undisturbed.
func (s *Server) use(r *http.Request, fn func(*held) *httpsock.Error) *httpsock.Error {
	release, refusal := s.take(r.Context())
	if refusal != nil {
		return refusal
	}
	defer release()
	switch state := s.now(); {
	case state.Serves() && s.held != nil:
		return fn(s.held)
	case state == vault.Empty:
		return refuse(client.StatusNotProvisioned, "keystore is not provisioned: enrol first")
	case state == vault.Failed:
		return s.gone()
	}
	return refuse(client.StatusLocked, "keystore is locked: give the pin")
}

func (s *Server) getTunnelKey(r *http.Request) (any, *httpsock.Error) {
	var out client.TunnelKey
	refusal := s.use(r, func(h *held) *httpsock.Error {
		out.PrivateKey = bytes.Clone(h.tunnel.Reveal())
		return nil
	})
	s.decided(eventTunnelKey, r, refusal)
	return out, refusal
}

func (s *Server) postSign(r *http.Request) (any, *httpsock.Error) {
	var in client.SignRequest
	if refusal := httpsock.ReadBody(r, &in); refusal != nil {
		return nil, refusal
	}
	if in.Hash != "SHA-256" || len(in.Digest) != sha256.Size {
		return nil, refuse(http.StatusBadRequest, "cannot sign: the identity key signs SHA-256 digests only")
	}
	var out client.Signature
	refusal := s.use(r, func(h *held) *httpsock.Error {
		signature, err := h.key.Sign(h.proof, [32]byte(in.Digest))
		if errors.Is(err, tpm.ErrTPMGone) {
			s.breakDown(err)
			return s.gone()
		}
		if err != nil {
			return refuse(client.StatusRefused, "%v", err)
		}
		out.Signature = signature
		return nil
	})
	s.decided(eventSign, r, refusal)
	return out, refusal
}

// decided journals what was decided on a request that the peer may send.
func (s *Server) decided(event journal.ID, r *http.Request, refusal *httpsock.Error) {
	if refusal == nil {
		s.journal.Event(event, subject(r), journal.Success)
		return
	}
	s.journal.Event(event, subject(r), journal.Refused, "reason", refusal.Message)
}

func (s *Server) postSeal(r *http.Request) (any, *httpsock.Error) {
	return s.storage(r, func(aead cipher.AEAD, in client.StorageRequest) ([]byte, error) {
		return aead.Seal(nil, nil, in.Data, storageContext(in.Purpose)), nil
	})
}

func (s *Server) postOpen(r *http.Request) (any, *httpsock.Error) {
	return s.storage(r, func(aead cipher.AEAD, in client.StorageRequest) ([]byte, error) {
		return aead.Open(nil, nil, in.Data, storageContext(in.Purpose))
	})
}

// storageContext is the additional data of a sealed datum.
func storageContext(purpose string) []byte { return []byte("rempart storage 1\x00" + purpose) }

// storage runs work under the storage key: AES-256-GCM with a random 96-bit
// nonce in front (NIST SP 800-38D, 8.2.2: at most 2^32 data under one key).
func (s *Server) storage(r *http.Request, work func(cipher.AEAD, client.StorageRequest) ([]byte, error)) (any, *httpsock.Error) {
	var in client.StorageRequest
	if refusal := httpsock.ReadBody(r, &in); refusal != nil {
		return nil, refusal
	}
	if n := len(in.Purpose); n < 1 || n > 64 {
		return nil, refuse(http.StatusBadRequest, "purpose has %d bytes, allowed are 1 to 64", n)
	}
	if n := len(in.Data); n > client.MaxData+64 {
		return nil, refuse(http.StatusBadRequest, "data has %d bytes, allowed are %d", n, client.MaxData)
	}
	var out client.Storage
	refusal := s.use(r, func(h *held) *httpsock.Error {
		aead, err := storageCipher(h.storage)
		if err == nil {
			out.Data, err = work(aead, in)
		}
		if err != nil {
			return refuse(http.StatusUnprocessableEntity, "cannot open what was sealed for %q: it is damaged, or was sealed for something else", in.Purpose)
		}
		return nil
	})
	s.decided(eventStorage, r, refusal)
	return out, refusal
}

func storageCipher(key *secret.Bytes) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key.Reveal())
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}
