package manifest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// KeyID returns the SHA-256 of a key's SubjectPublicKeyInfo (RFC 5280 §4.1),
// the name of a key in a bundle and in an approval. The key must be a valid
// point on P-256.
func KeyID(key *ecdsa.PublicKey) ([32]byte, error) {
	if !isP256(key) {
		return [32]byte{}, errors.New("the key is not ECDSA P-256")
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return [32]byte{}, fmt.Errorf("cannot encode the public key: %w", err)
	}
	return sha256.Sum256(der), nil
}

// ParsePublicKey reads one PEM block PUBLIC KEY with an ECDSA P-256 key, and
// nothing around it.
func ParsePublicKey(text string) (*ecdsa.PublicKey, error) {
	der, err := onePEM([]byte(text), "PUBLIC KEY")
	if err != nil {
		return nil, err
	}
	return parsePKIX(der)
}

func parsePKIX(der []byte) (*ecdsa.PublicKey, error) {
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("cannot read the public key: %w", err)
	}
	public, ok := key.(*ecdsa.PublicKey)
	if !ok || !isP256(public) {
		return nil, errors.New("the public key is not ECDSA P-256")
	}
	return public, nil
}

// ParsePublicKeys reads one or more PEM blocks PUBLIC KEY, as policy.pub
// holds them, and nothing between or after them.
func ParsePublicKeys(text []byte) ([]*ecdsa.PublicKey, error) {
	var keys []*ecdsa.PublicKey
	for rest := bytes.TrimSpace(text); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var der []byte
		var err error
		if der, rest, err = nextPEM(rest, "PUBLIC KEY"); err != nil {
			return nil, err
		}
		key, err := parsePKIX(der)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("no public key")
	}
	return keys, nil
}

// MarshalPublicKey returns a public key as PEM, as policy.pub and [Keys] hold it.
func MarshalPublicKey(key *ecdsa.PublicKey) (string, error) {
	if !isP256(key) {
		return "", errors.New("the key is not ECDSA P-256")
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("cannot encode the public key: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), nil
}

func parseAuthority(text string) (*x509.Certificate, error) {
	der, err := onePEM([]byte(text), "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("cannot read the certificate: %w", err)
	}
	if !cert.BasicConstraintsValid || !cert.IsCA {
		return nil, errors.New("the certificate is not an authority's (no CA basic constraint)")
	}
	if public, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || !isP256(public) {
		return nil, errors.New("the authority's key is not ECDSA P-256")
	}
	return cert, nil
}

// ImageKeys returns the keys that approve boots. A policy from [Open] always
// has at least one.
func (k Keys) ImageKeys() ([]*ecdsa.PublicKey, error) { return publicKeys(k.Image) }

// PolicyKeys returns the keys that sign policies.
func (k Keys) PolicyKeys() ([]*ecdsa.PublicKey, error) { return publicKeys(k.Policy) }

// Roots returns the device authority's root certificates as a pool.
func (k Keys) Roots() (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	for _, text := range k.Authority {
		cert, err := parseAuthority(text)
		if err != nil {
			return nil, err
		}
		pool.AddCert(cert)
	}
	return pool, nil
}

func publicKeys(texts []string) ([]*ecdsa.PublicKey, error) {
	keys := make([]*ecdsa.PublicKey, 0, len(texts))
	for _, text := range texts {
		key, err := ParsePublicKey(text)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

func onePEM(text []byte, kind string) ([]byte, error) {
	der, rest, err := nextPEM(bytes.TrimSpace(text), kind)
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(rest)) != 0 {
		return nil, fmt.Errorf("want one PEM block %q and nothing after it", kind)
	}
	return der, nil
}

// nextPEM reads the block at the very start of text: pem.Decode alone would
// skip whatever stands before it.
func nextPEM(text []byte, kind string) (der, rest []byte, err error) {
	block, rest := pem.Decode(text)
	if block == nil || !bytes.HasPrefix(text, []byte("-----BEGIN ")) {
		return nil, nil, fmt.Errorf("want a PEM block %q", kind)
	}
	if block.Type != kind {
		return nil, nil, fmt.Errorf("want a PEM block %q, found %q", kind, block.Type)
	}
	if len(block.Headers) != 0 {
		return nil, nil, fmt.Errorf("the PEM block %q has headers", kind)
	}
	return block.Bytes, rest, nil
}
