package client

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"rempart/internal/secret"
	"rempart/internal/sock/httpsock"
)

const (
	// signPatience bounds one signature: crypto.Signer carries no context.
	signPatience = 30 * time.Second
	// waitStep is how often WaitOpen looks.
	waitStep = 20 * time.Millisecond
)

// Client asks keyd. It may be used from several goroutines.
type Client struct {
	http *http.Client
}

// New returns a client of the keyd that listens at socketPath. It does not
// connect.
func New(socketPath string) *Client {
	return &Client{http: httpsock.Client(socketPath)}
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	return typed(httpsock.Call(ctx, c.http, method, path, in, out))
}

// Status returns the state of the vault. Anyone may ask.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.call(ctx, http.MethodGet, "/v1/status", nil, &s)
	return s, err
}

// Enrol provisions the TPM for a handset called name, under pin (see PIN),
// and returns what the device authority needs. It works once: an
// enrolled handset refuses. The state is Sealed afterwards. The caller keeps
// pin, and wipes it.
func (c *Client) Enrol(ctx context.Context, name string, pin *secret.Bytes) (Enrolment, error) {
	var e Enrolment
	err := c.call(ctx, http.MethodPost, "/v1/enrol", EnrolRequest{Name: name, PIN: pin.Reveal()}, &e)
	return e, err
}

// Enrolment returns again what Enrol returned, until a certificate is set.
func (c *Client) Enrolment(ctx context.Context) (Enrolment, error) {
	var e Enrolment
	err := c.call(ctx, http.MethodGet, "/v1/csr", nil, &e)
	return e, err
}

// SetCertificate stores the identity certificate and its issuers, each DER,
// leaf first. keyd takes only one whose public key is the identity key's.
func (c *Client) SetCertificate(ctx context.Context, chain [][]byte) error {
	return c.call(ctx, http.MethodPut, "/v1/certificate", Chain{Chain: chain}, nil)
}

// Certificate returns the identity certificate and its issuers, each DER, leaf
// first; ErrNotProvisioned before there is one.
func (c *Client) Certificate(ctx context.Context) ([][]byte, error) {
	var chain Chain
	err := c.call(ctx, http.MethodGet, "/v1/certificate", nil, &chain)
	return chain.Chain, err
}

// Unlock gives the PIN. Errors are ErrWrongPIN, ErrLockout, ErrNotProvisioned,
// ErrRefused (this image opens nothing; the text says why) and ErrTPMGone. The
// caller keeps pin, and wipes it.
func (c *Client) Unlock(ctx context.Context, pin *secret.Bytes) (Status, error) {
	var s Status
	err := c.call(ctx, http.MethodPost, "/v1/unlock", UnlockRequest{PIN: pin.Reveal()}, &s)
	return s, err
}

// WaitOpen blocks until keyd serves (Status.Ready), ctx ends, or it will not in
// this boot. A keyd that does not answer yet is waited for.
func (c *Client) WaitOpen(ctx context.Context) error {
	tick := time.NewTicker(waitStep)
	defer tick.Stop()
	var last error
	for {
		s, err := c.Status(ctx)
		switch {
		case err == nil && s.Ready():
			return nil
		case err == nil && s.State == Failed:
			return fmt.Errorf("cannot wait for the keystore: %w: %s", ErrRefused, s.Reason)
		case err == nil:
			last = fmt.Errorf("it is %s", s.State)
		default:
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot wait for the keystore: %w (%w)", ctx.Err(), last)
		case <-tick.C:
		}
	}
}

// TunnelKey returns the tunnel's X25519 private key, 32 bytes. Only tunneld may
// ask. ErrLocked until the PIN was given.
func (c *Client) TunnelKey(ctx context.Context) (*secret.Bytes, error) {
	var k TunnelKey
	if err := c.call(ctx, http.MethodGet, "/v1/tunnel-key", nil, &k); err != nil {
		return nil, err
	}
	if len(k.PrivateKey) != 32 {
		clear(k.PrivateKey)
		return nil, fmt.Errorf("cannot use the tunnel key: it has %d bytes, not 32", len(k.PrivateKey))
	}
	return secret.New(k.PrivateKey), nil
}

// Seal encrypts data (at most MaxData bytes) under the storage key, inside
// keyd, bound to purpose.
func (c *Client) Seal(ctx context.Context, purpose string, data []byte) ([]byte, error) {
	var out Storage
	err := c.call(ctx, http.MethodPost, "/v1/storage/seal", StorageRequest{purpose, data}, &out)
	return out.Data, err
}

// Open decrypts what Seal returned for the same purpose.
func (c *Client) Open(ctx context.Context, purpose string, sealed []byte) ([]byte, error) {
	var out Storage
	err := c.call(ctx, http.MethodPost, "/v1/storage/open", StorageRequest{purpose, sealed}, &out)
	return out.Data, err
}

// Signer returns the identity key, which stays in the TPM, and its certificate
// chain, each DER, leaf first. It signs SHA-256 digests with ECDSA P-256.
// ErrNotProvisioned before there is a certificate; a locked vault shows at the
// first signature.
func (c *Client) Signer(ctx context.Context) (crypto.Signer, [][]byte, error) {
	chain, err := c.Certificate(ctx)
	if err != nil {
		return nil, nil, err
	}
	if len(chain) == 0 {
		return nil, nil, fmt.Errorf("cannot use the identity key: %w: no certificate", ErrNotProvisioned)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, nil, fmt.Errorf("cannot use the identity certificate: %w", err)
	}
	pub, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, nil, errors.New("cannot use the identity certificate: its key is not ECDSA P-256")
	}
	return &signer{client: c, public: pub}, chain, nil
}

// TLSCertificate returns the identity for crypto/tls. Each handshake makes one
// signature in the TPM.
func (c *Client) TLSCertificate(ctx context.Context) (tls.Certificate, error) {
	key, chain, err := c.Signer(ctx)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("cannot use the identity certificate: %w", err)
	}
	return tls.Certificate{
		Certificate:                  chain,
		PrivateKey:                   key,
		Leaf:                         leaf,
		SupportedSignatureAlgorithms: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256},
	}, nil
}

// signer is the identity key behind keyd.
type signer struct {
	client *Client
	public *ecdsa.PublicKey
}

func (s *signer) Public() crypto.PublicKey { return s.public }

// Sign signs digest, a SHA-256 sum; the TPM brings its own randomness.
func (s *signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts == nil || opts.HashFunc() != crypto.SHA256 || len(digest) != crypto.SHA256.Size() {
		return nil, errors.New("cannot sign: the identity key signs SHA-256 digests only")
	}
	ctx, cancel := context.WithTimeout(context.Background(), signPatience)
	defer cancel()
	var out Signature
	if err := s.client.call(ctx, http.MethodPost, "/v1/sign", SignRequest{"SHA-256", digest}, &out); err != nil {
		return nil, fmt.Errorf("cannot sign: %w", err)
	}
	return out.Signature, nil
}
