package client

import (
	"errors"
	"fmt"
	"time"
	"unicode/utf8"
)

// State is the life of the vault's secrets in this boot.
type State string

// The states, in the order in which a boot goes through them.
const (
	Empty  State = "empty"  // never enrolled
	Sealed State = "sealed" // enrolled; the PIN was not given in this boot
	Open   State = "open"   // secrets are in keyd's memory; the cap is not yet on, nothing is served
	Capped State = "capped" // keyd serves, and the TPM opens no boot secret again in this boot
	Failed State = "failed" // nothing will open in this boot; Reason says why
)

// Status is what anyone on the handset may know (GET /v1/status).
type Status struct {
	State  State  `json:"state"`
	Reason string `json:"reason,omitempty"` // why it is not open, in words
	// TriesLeft is how many wrong PINs the TPM takes before it locks out.
	TriesLeft int `json:"tries_left"`
	// LockoutSeconds is how long the TPM takes to forget one wrong PIN, if it
	// is locked out now; else 0.
	LockoutSeconds int    `json:"lockout_seconds"`
	Certificate    bool   `json:"certificate"`
	Name           string `json:"name,omitempty"`
	// Serial is that of the boot approval on this image; 0 if there is none.
	Serial int `json:"serial"`
	// Floor is the lowest serial that the TPM still opens.
	Floor int `json:"floor"`
	// Since is when the state was entered.
	Since time.Time `json:"since"`
}

// Ready reports whether keyd serves: the secrets are there and the cap is on.
func (s Status) Ready() bool { return s.State == Capped }

// EnrolRequest is the body of POST /v1/enrol.
type EnrolRequest struct {
	Name string `json:"name"`
	PIN  PIN    `json:"pin"`
}

// PIN is MinPIN to MaxPIN bytes of UTF-8, a plain string in JSON, and bytes that
// can be wiped in memory.
type PIN []byte

// How long a PIN may be, in bytes. The TPM's lockout, not the length, is what
// makes guessing slow.
const (
	MinPIN = 4
	MaxPIN = 64
)

// Check says what is wrong with a PIN as such.
func (p PIN) Check() error {
	if len(p) < MinPIN || len(p) > MaxPIN {
		return fmt.Errorf("a pin has %d to %d bytes, this one has %d", MinPIN, MaxPIN, len(p))
	}
	if !utf8.Valid(p) {
		return errors.New("a pin is utf-8 text, this one is not")
	}
	return nil
}

// MarshalText returns the PIN itself: it goes to keyd and nowhere else.
func (p PIN) MarshalText() ([]byte, error) { return p, p.Check() }

// UnmarshalText copies the PIN.
func (p *PIN) UnmarshalText(text []byte) error {
	*p = append([]byte(nil), text...)
	return nil
}

// Format prints a fixed word.
func (p PIN) Format(f fmt.State, _ rune) { fmt.Fprint(f, "[pin]") }

// Enrolment is what a device authority needs to certify this handset (the
// answer to POST /v1/enrol and to GET /v1/csr).
type Enrolment struct {
	CSR       []byte `json:"csr"`        // PKCS #10, DER
	TunnelKey []byte `json:"tunnel_key"` // WireGuard public key, 32 bytes
	// EKCertificate is the TPM maker's certificate, DER; empty if the TPM has
	// none. That the identity key is in the TPM that it certifies is not shown
	// by these three: that needs a credential activation.
	EKCertificate []byte `json:"ek_certificate"`
}

// UnlockRequest is the body of POST /v1/unlock.
type UnlockRequest struct {
	PIN PIN `json:"pin"`
}

// Chain is the identity certificate and its issuers, each DER, leaf first.
type Chain struct {
	Chain [][]byte `json:"chain"`
}

// SignRequest is the body of POST /v1/sign. Hash is "SHA-256"; Digest has 32
// bytes.
type SignRequest struct {
	Hash   string `json:"hash"`
	Digest []byte `json:"digest"`
}

// Signature is the answer: ASN.1 ECDSA-Sig-Value (RFC 3279, 2.2.3).
type Signature struct {
	Signature []byte `json:"signature"`
}

// TunnelKey is the answer to GET /v1/tunnel-key: an X25519 private key.
type TunnelKey struct {
	PrivateKey []byte `json:"private_key"`
}

// StorageRequest is the body of POST /v1/storage/seal and /v1/storage/open.
// Purpose is 1 to 64 bytes and is authenticated: what was sealed for one
// purpose does not open for another. Data has at most MaxData bytes.
type StorageRequest struct {
	Purpose string `json:"purpose"`
	Data    []byte `json:"data"`
}

// Storage is the answer: ciphertext or plaintext.
type Storage struct {
	Data []byte `json:"data"`
}

// MaxData is how many bytes Seal takes.
const MaxData = 128 << 10

// The facts that refusals carry (httpsock.Error.Facts).
const (
	FactTriesLeft      = "tries_left"
	FactLockoutSeconds = "lockout_seconds"
)
