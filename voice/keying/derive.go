package keying

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// The exporter labels (RFC 8446 §7.5; experimental ones begin with EXPORTER, RFC 5705 §4).
const (
	labelSRTP = "EXPORTER-rempart-srtp"
	labelSSRC = "EXPORTER-rempart-ssrc"
	labelSAS  = "EXPORTER-rempart-sas"
	// contextLabel begins every context, and sasInfo every HKDF expansion for the string.
	contextLabel = "rempart call v1"
	sasInfo      = "rempart sas v1"
)

// exporter is tls.ConnectionState.ExportKeyingMaterial.
type exporter func(label string, context []byte, length int) ([]byte, error)

// direction is the last field of a context.
type direction string

const (
	callerToCallee direction = "caller to callee"
	calleeToCaller direction = "callee to caller"
	shared         direction = "" // what both directions have in common
)

// call is what the keys of a call are bound to.
type call struct {
	id                             string
	callerDialled, callerCertified string
	calleeDialled, calleeCertified string
	callerCert, calleeCert         [32]byte
	level                          string
}

// swapped exchanges caller and callee.
func (c call) swapped() call {
	c.callerDialled, c.calleeDialled = c.calleeDialled, c.callerDialled
	c.callerCertified, c.calleeCertified = c.calleeCertified, c.callerCertified
	c.callerCert, c.calleeCert = c.calleeCert, c.callerCert
	return c
}

// context is the exporter context: SHA-256 over contextLabel and the fields of the call and the direction, each behind its
// length in 4 bytes, big-endian, so that no two calls have the same input.
func (c call) context(d direction) [32]byte {
	h := sha256.New()
	for _, field := range [][]byte{
		[]byte(contextLabel), []byte(c.id),
		[]byte(c.callerDialled), []byte(c.callerCertified),
		[]byte(c.calleeDialled), []byte(c.calleeCertified),
		c.callerCert[:], c.calleeCert[:],
		[]byte(c.level), []byte(d),
	} {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(field))))
		h.Write(field)
	}
	return [32]byte(h.Sum(nil))
}

// exportSSRC derives a direction's synchronisation source: both sides know it and nobody chose it.
func exportSSRC(export exporter, context [32]byte) (uint32, error) {
	b, err := export(labelSSRC, context[:], 4)
	if err != nil {
		return 0, fmt.Errorf("cannot export a synchronisation source: %w", err)
	}
	return max(1, binary.BigEndian.Uint32(b)), nil // 0 means "not agreed" to voice/media
}

// SASBits is the length of the short authentication string in bits.
const SASBits = 20

// sas is a short authentication string in the low SASBits bits.
type sas uint32

// sasOf is the leftmost SASBits bits of HKDF-SHA256(secret: exporter, salt: nA ‖ nB).
func sasOf(export exporter, context [32]byte, nonces []byte) (sas, error) {
	ikm, err := export(labelSAS, context[:], 32)
	if err != nil {
		return 0, fmt.Errorf("cannot export the secret of the short authentication string: %w", err)
	}
	defer clear(ikm)
	out, err := hkdf.Key(sha256.New, ikm, nonces, sasInfo, 4)
	if err != nil {
		return 0, fmt.Errorf("cannot derive the short authentication string: %w", err)
	}
	return sas(binary.BigEndian.Uint32(out) >> (32 - SASBits)), nil
}

// alphabet is ZRTP's base32 (RFC 6189 §5.1.6): no two characters that are easily taken for each other.
const alphabet = "ybndrfg8ejkmcpqxot1uwisza345h769"

// String is the string as it is shown: four characters of alphabet, the most significant first.
func (s sas) String() string {
	var b [SASBits / 5]byte
	for i := range b {
		b[i] = alphabet[s>>(SASBits-5*(i+1))&31]
	}
	return string(b[:])
}
