package manifest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
)

const (
	bundleMagic = "rempart-policy "
	bundleLabel = "rempart policy v1\n"
	// maxHeader bounds the four header lines: magic, 64 hex digits, a DER
	// signature of at most 72 bytes, and their names.
	maxHeader = 256
)

// MaxBundle is the largest policy bundle accepted, in bytes.
const MaxBundle = MaxDocument + maxHeader

// Envelope is a bundle taken apart and not yet verified.
type Envelope struct {
	Key       [32]byte // SHA-256 of the signer's SubjectPublicKeyInfo
	Signature []byte   // ASN.1 ECDSA
	Document  []byte   // exactly the signed bytes; nothing about them is known yet
}

// Parse takes a bundle apart without trusting it. The error wraps
// [ErrTooLarge], [ErrUnsigned], [ErrVersion] or [ErrGarbled].
func Parse(bundle []byte) (*Envelope, error) {
	if len(bundle) > MaxBundle {
		return nil, fmt.Errorf("%w: the bundle has %d bytes, at most %d are read", ErrTooLarge, len(bundle), MaxBundle)
	}
	if len(bundle) == 0 {
		return nil, fmt.Errorf("%w: the bundle is empty", ErrGarbled)
	}
	header, document, found := bytes.Cut(bundle, []byte("\n\n"))
	if trimmed := bytes.TrimLeft(bundle, " \t\r\n"); len(trimmed) > 0 && trimmed[0] == '{' {
		return nil, fmt.Errorf("%w: a bare document, with no header", ErrUnsigned)
	}
	lines := strings.Split(string(header), "\n")
	version, ok := strings.CutPrefix(lines[0], bundleMagic)
	switch {
	case !ok:
		return nil, fmt.Errorf("%w: the first line is not %q", ErrGarbled, bundleMagic+"1")
	case version != "1" && isNumber(version):
		return nil, fmt.Errorf("%w: the bundle has format %s, this image reads 1", ErrVersion, version)
	case version != "1":
		return nil, fmt.Errorf("%w: the first line is not %q", ErrGarbled, bundleMagic+"1")
	case !found:
		return nil, fmt.Errorf("%w: no empty line after the header", ErrGarbled)
	case len(lines) == 1:
		return nil, fmt.Errorf("%w: the header has no key and no signature", ErrUnsigned)
	case len(lines) == 2 && strings.HasPrefix(lines[1], "key "):
		return nil, fmt.Errorf("%w: the header has no signature", ErrUnsigned)
	case len(lines) != 3:
		return nil, fmt.Errorf("%w: the header has %d lines, want 3", ErrGarbled, len(lines))
	}
	e := &Envelope{Document: document}
	key, ok := strings.CutPrefix(lines[1], "key ")
	if !ok || !decodeHex(e.Key[:], key) {
		return nil, fmt.Errorf("%w: line 2 is not \"key\" and 64 lower-case hex digits", ErrGarbled)
	}
	text, ok := strings.CutPrefix(lines[2], "signature ")
	if !ok {
		return nil, fmt.Errorf("%w: line 3 is not \"signature\" and base64", ErrGarbled)
	}
	if text == "" {
		return nil, fmt.Errorf("%w: the signature is empty", ErrUnsigned)
	}
	// Only the canonical spelling: no CR or LF inside, no spare bits.
	signature, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || base64.StdEncoding.EncodeToString(signature) != text {
		return nil, fmt.Errorf("%w: the signature is not base64", ErrGarbled)
	}
	e.Signature = signature
	if len(header)+2 > maxHeader {
		return nil, fmt.Errorf("%w: the header has %d bytes, at most %d are read", ErrTooLarge, len(header)+2, maxHeader)
	}
	if len(document) > MaxDocument {
		return nil, fmt.Errorf("%w: the document has %d bytes, at most %d are read", ErrTooLarge, len(document), MaxDocument)
	}
	return e, nil
}

// Marshal returns the bundle that [Parse] takes apart into e.
func (e *Envelope) Marshal() []byte {
	head := fmt.Sprintf("%s1\nkey %s\nsignature %s\n\n", bundleMagic,
		hex.EncodeToString(e.Key[:]), base64.StdEncoding.EncodeToString(e.Signature))
	return append([]byte(head), e.Document...)
}

// Open verifies a bundle by the first trusted key that it names, and only
// then reads the document. The error wraps one of the reasons of this
// package. A bundle whose document does not pass [Check] is refused too: a
// signature does not make sense of nonsense.
func Open(bundle []byte, trusted []*ecdsa.PublicKey) (*Policy, error) {
	p, err := open(bundle, trusted)
	if err != nil {
		return nil, fmt.Errorf("cannot open the policy: %w", err)
	}
	return p, nil
}

// MaxAnchor is the largest anchor file (policy.pub) that is read, in bytes:
// room for many keys.
const MaxAnchor = 16 << 10

// OpenWith is [Open] by the keys of an anchor file, which is one or more PEM
// blocks PUBLIC KEY ([ParsePublicKeys]).
func OpenWith(anchor, bundle []byte) (*Policy, error) {
	trusted, err := ParsePublicKeys(anchor)
	if err != nil {
		return nil, fmt.Errorf("cannot read the policy's anchor: %w: %w", ErrGarbled, err)
	}
	return Open(bundle, trusted)
}

func open(bundle []byte, trusted []*ecdsa.PublicKey) (*Policy, error) {
	e, err := Parse(bundle)
	if err != nil {
		return nil, err
	}
	if err := e.verify(trusted); err != nil {
		return nil, err
	}
	return readDocument(e.Document)
}

func (e *Envelope) verify(trusted []*ecdsa.PublicKey) error {
	for _, key := range trusted {
		id, err := KeyID(key)
		if err != nil {
			return fmt.Errorf("%w: a trusted key cannot be used: %w", ErrWrongKey, err)
		}
		if id != e.Key {
			continue
		}
		digest := documentDigest(e.Document)
		if !ecdsa.VerifyASN1(key, digest[:], e.Signature) {
			return fmt.Errorf("%w: the signature does not fit the document and key %x", ErrBadSignature, id[:4])
		}
		return nil
	}
	return fmt.Errorf("%w: key %x", ErrWrongKey, e.Key[:4])
}

// checkVersion looks at the version alone, so that a document of a later
// version is called that and not a heap of unknown fields.
func checkVersion(document []byte) error {
	var v struct {
		Version *int `json:"version"`
	}
	if err := json.Unmarshal(document, &v); err != nil || v.Version == nil {
		return nil // strictconf and Check say it better, with lines
	}
	if *v.Version != Version {
		return fmt.Errorf("%w: the document has version %d, this image reads %d", ErrVersion, *v.Version, Version)
	}
	return nil
}

// Sign signs a document and returns the bundle. The key must be ECDSA P-256.
// It signs whatever bytes it is given up to [MaxDocument]: whoever signs for
// use runs [Check] first, as rempart-policy does.
func Sign(document []byte, key crypto.Signer) ([]byte, error) {
	if len(document) > MaxDocument {
		return nil, fmt.Errorf("cannot sign the policy: %w: %d bytes, at most %d", ErrTooLarge, len(document), MaxDocument)
	}
	public, ok := key.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("cannot sign the policy: the key is %T, want ECDSA P-256", key.Public())
	}
	id, err := KeyID(public)
	if err != nil {
		return nil, fmt.Errorf("cannot sign the policy: %w", err)
	}
	digest := documentDigest(document)
	signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("cannot sign the policy: %w", err)
	}
	if !ecdsa.VerifyASN1(public, digest[:], signature) {
		return nil, fmt.Errorf("cannot sign the policy: the signer's answer does not verify")
	}
	return (&Envelope{Key: id, Signature: signature, Document: document}).Marshal(), nil
}

func documentDigest(document []byte) [32]byte {
	h := sha256.New()
	h.Write([]byte(bundleLabel))
	h.Write(document)
	return [32]byte(h.Sum(nil))
}

func isNumber(s string) bool {
	if s == "" || len(s) > 9 {
		return false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// decodeHex reads exactly len(dst) bytes of lower-case hex.
func decodeHex(dst []byte, s string) bool {
	if len(s) != 2*len(dst) || strings.ToLower(s) != s {
		return false
	}
	_, err := hex.Decode(dst, []byte(s))
	return err == nil
}

func isP256(key *ecdsa.PublicKey) bool {
	return key != nil && key.Curve == elliptic.P256()
}
