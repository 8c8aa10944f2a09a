package server

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"time"

	"rempart/internal/secret"
	"rempart/keystore/blob"
	"rempart/keystore/client"
	"rempart/keystore/client/identity"
	"rempart/keystore/internal/tpm"
	"rempart/keystore/policy"
)

// rules are the TPM's lockout: ten tries, one forgotten every ten minutes. Not
// fewer, because a power cut after a right PIN costs one count until the next
// right PIN resets it.
func rules() tpm.LockoutRules {
	return tpm.LockoutRules{MaxTries: 10, Interval: 10 * time.Minute, Recovery: 24 * time.Hour}
}

// errForeign means that somebody else owns the TPM.
var errForeign = errors.New("the tpm has a lockout auth that this keystore did not set: clear the tpm in the firmware set-up")

// pinAuth is the auth value of a PIN: SHA-256 of the salt and the PIN. The
// TPM's lockout, not a slow hash, is what slows guessing; the salt keeps equal
// PINs of two handsets apart.
func pinAuth(salt [32]byte, pin []byte) *secret.Bytes {
	h := sha256.New()
	h.Write([]byte("rempart pin 1"))
	h.Write(salt[:])
	h.Write(pin)
	return secret.New(tpm.NoZeros(h.Sum(nil)))
}

// provision takes an unowned TPM to a vault on the disk. The order is what
// makes a crash harmless: the vault file is written when all else but the
// lockout auth is done, and while that is empty TPM2_Clear undoes everything;
// an unlock sets a lockout auth that a crash left empty.
func (s *Server) provision(name string, pin []byte) (*blob.File, client.Enrolment, error) {
	fail := func(err error) (*blob.File, client.Enrolment, error) {
		return nil, client.Enrolment{}, err
	}
	if err := s.vacate(); err != nil {
		return fail(err)
	}
	// A vault file can only be here if an enrolment in this boot failed after
	// writing it; what it needs was just cleared.
	if err := s.store.removeVault(); err != nil {
		return fail(err)
	}
	file := &blob.File{Name: name}
	rand.Read(file.Salt[:])
	var err error
	if file.ImageKey, err = x509.MarshalPKIXPublicKey(s.image.key); err != nil {
		return fail(fmt.Errorf("cannot encode the image key: %w", err))
	}
	if file.Root, err = s.device.CreateRoot(); err != nil {
		return fail(err)
	}
	for _, index := range []policy.Index{policy.AliveIndex, policy.FloorIndex} {
		if err := s.device.DefineIndex(index); err != nil {
			return fail(err)
		}
	}
	alive, ok, err := s.device.ReadIndex(policy.AliveIndex)
	if err != nil || !ok {
		return fail(fmt.Errorf("cannot read the alive counter just made: %w", err))
	}
	file.Alive = alive

	tunnel, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return fail(fmt.Errorf("cannot make the tunnel key: %w", err))
	}
	user := newUser()
	defer wipeUser(user)
	if err := s.seal(file, pinAuth(file.Salt, pin), user, tunnel); err != nil {
		return fail(err)
	}
	enrolment, err := s.request(file, user, tunnel.PublicKey())
	if err != nil {
		return fail(err)
	}
	if err := s.device.SetLockoutRules(rules(), nil); err != nil {
		return fail(err)
	}
	if err := s.device.SetOwnerAuth(secret.New(bytes.Clone(user.Owner))); err != nil {
		return fail(err)
	}
	if err := s.store.writeEnrolment(enrolment); err != nil {
		return fail(err)
	}
	if err := s.store.writeVault(file); err != nil {
		return fail(err)
	}
	if err := s.device.SetLockoutAuth(secret.New(bytes.Clone(user.Lockout))); err != nil {
		return fail(err)
	}
	return file, enrolment, nil
}

// vacate leaves a TPM without an owner: it undoes a provisioning that did not
// come to its end.
func (s *Server) vacate() error {
	own, err := s.device.Ownership()
	if err != nil {
		return err
	}
	if own.Lockout {
		return errForeign
	}
	vacant, err := s.device.Vacant()
	if err != nil || vacant && !own.Owner {
		return err
	}
	return s.device.Clear()
}

func newUser() blob.User {
	storage := make([]byte, blob.KeySize)
	rand.Read(storage)
	return blob.User{
		Storage:  storage,
		Identity: tpm.NewAuth().Reveal(),
		Owner:    tpm.NewAuth().Reveal(),
		Lockout:  tpm.NewAuth().Reveal(),
	}
}

func wipeUser(u blob.User) {
	for _, key := range [][]byte{u.Storage, u.Identity, u.Owner, u.Lockout} {
		clear(key)
	}
}

// seal makes the three objects.
func (s *Server) seal(file *blob.File, pin *secret.Bytes, user blob.User, tunnel *ecdh.PrivateKey) error {
	defer pin.Wipe()
	key, err := policy.KeyName(s.image.key)
	if err != nil {
		return err
	}
	userPolicy := policy.Outer(key, policy.RefUser, file.Alive)
	bootPolicy := policy.Outer(key, policy.RefBoot, file.Alive)
	joined, err := user.Join()
	if err != nil {
		return err
	}
	secrets := secret.New(joined)
	defer secrets.Wipe()
	if file.User, err = s.device.Seal(secrets, pin, userPolicy); err != nil {
		return err
	}
	private := secret.New(tunnel.Bytes())
	defer private.Wipe()
	if file.Boot, err = s.device.Seal(private, pin, bootPolicy); err != nil {
		return err
	}
	auth := secret.New(bytes.Clone(user.Identity))
	defer auth.Wipe()
	file.Identity, err = s.device.CreateKey(auth, userPolicy)
	return err
}

// request makes what the device authority needs. The request is signed by the
// new identity key under its full policy, so a handset whose approval does not
// work is found out before anything is kept.
func (s *Server) request(file *blob.File, user blob.User, tunnel *ecdh.PublicKey) (client.Enrolment, error) {
	none := client.Enrolment{}
	proof, err := s.device.Verify(s.image.user, file.Alive)
	if err != nil {
		return none, err
	}
	auth := secret.New(bytes.Clone(user.Identity))
	defer auth.Wipe()
	key, err := s.device.LoadKey(file.Identity, auth)
	if err != nil {
		return none, err
	}
	extension, err := asn1.Marshal(tunnel.Bytes())
	if err != nil {
		return none, errors.Join(err, key.Close())
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:            pkix.Name{CommonName: file.Name},
		SignatureAlgorithm: x509.ECDSAWithSHA256,
		ExtraExtensions:    []pkix.Extension{{Id: identity.OIDTunnelKey, Value: extension}},
	}, provedSigner{key, proof})
	if err = errors.Join(err, key.Close()); err != nil {
		return none, fmt.Errorf("cannot make the certificate request: %w", err)
	}
	ek, err := s.device.EKCertificate()
	if err != nil {
		return none, err
	}
	return client.Enrolment{CSR: csr, TunnelKey: tunnel.Bytes(), EKCertificate: ek}, nil
}

// provedSigner is a key in the TPM as a crypto.Signer of SHA-256 digests.
type provedSigner struct {
	key   *tpm.SigningKey
	proof *tpm.Proof
}

func (p provedSigner) Public() crypto.PublicKey { return p.key.Public() }

func (p provedSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 || len(digest) != sha256.Size {
		return nil, errors.New("cannot sign: the identity key signs SHA-256 digests only")
	}
	return p.key.Sign(p.proof, [32]byte(digest))
}
