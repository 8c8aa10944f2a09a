// Package policy composes the TPM policy digests under which Rempart's secrets
// are sealed. It is pure: no TPM, no files, no clock.
//
// Every secret has the outer policy
//
//	PolicyAuthorize(K, ref) ∧ PolicyAuthValue ∧ PolicyNV(alive == v)
//
// K is the image key's name, ref says which class of secret it is, the auth
// value is the PIN's or one that the PIN opened, and alive is an NV counter
// whose increment kills every blob. K approves inner policies by signing
// SHA-256(inner ‖ ref):
//
//	PolicyPCR(image's PCR values) ∧ PolicyNV(floor, bit of the serial is clear)
//
// so a new image needs a new signature and no blob is sealed again. Nothing in
// the inner policy depends on the device: one signature serves every handset.
//
// Digests are TPM 2.0 Library Part 3, 23 (policy commands) with SHA-256.
package policy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// The policy references: which class of secret an approval opens.
const (
	// RefBoot is for boot secrets: opened once in a boot, then capped.
	RefBoot = "rempart-boot"
	// RefUser is for user secrets: opened whenever the PIN is given.
	RefUser = "rempart-user"
)

// Serials that a policy may have. Bit n of the floor index is serial n, and bit
// 0 is set at provisioning, to make the index written.
const (
	MinSerial = 1
	MaxSerial = 63
)

// Index is the handle of one of our NV indices.
type Index uint32

// The NV indices, in the range that the TCG registry leaves to the owner.
const (
	// AliveIndex is the counter whose increment kills every blob.
	AliveIndex Index = 0x01807371
	// FloorIndex is the bit field of revoked serials. Bits are only ever set.
	FloorIndex Index = 0x01807372
)

// String gives the index as the TPM's tools print it.
func (i Index) String() string { return fmt.Sprintf("0x%08x", uint32(i)) }

// Name is a TPM entity's name: the algorithm id of SHA-256 and the digest of
// its public area (Part 1, 16).
type Name [34]byte

const (
	algSHA256 = 0x000b
	algECDSA  = 0x0018
	algECC    = 0x0023
	algNull   = 0x0010
	curveP256 = 0x0003

	ccPolicyNV        = 0x00000149
	ccPolicyAuthorize = 0x0000016a
	ccPolicyAuthValue = 0x0000016b
	ccPolicyPCR       = 0x0000017f

	eoEqual    = 0x0000 // TPM_EO_EQ
	eoBitClear = 0x000b // TPM_EO_BITCLEAR: (A & B) == 0

	// TPMA_NV bits: OWNERWRITE 1, TPM_NT 7:4, OWNERREAD 17, AUTHREAD 18,
	// NO_DA 25, WRITTEN 29 (Part 2, 13.4).
	nvAttributes = 1<<1 | 1<<17 | 1<<18 | 1<<25 | 1<<29
	nvCounter    = 1 << 4
	nvBits       = 2 << 4

	// TPMA_OBJECT userWithAuth and sign: the public area in which the image
	// key is loaded to verify an approval.
	keyAttributes = 1<<6 | 1<<18
)

// IndexName returns the name of one of our indices once it was written. It is
// the same on every handset: its public area has no field that varies.
func IndexName(index Index) Name {
	attributes := uint32(nvAttributes | nvCounter)
	if index == FloorIndex {
		attributes = nvAttributes | nvBits
	}
	var area []byte // TPMS_NV_PUBLIC
	area = binary.BigEndian.AppendUint32(area, uint32(index))
	area = binary.BigEndian.AppendUint16(area, algSHA256)
	area = binary.BigEndian.AppendUint32(area, attributes)
	area = binary.BigEndian.AppendUint16(area, 0) // authPolicy: empty
	area = binary.BigEndian.AppendUint16(area, 8) // dataSize
	return nameOf(area)
}

// KeyName returns the name under which the TPM knows the ECDSA P-256 key pub
// when it is loaded to verify approvals.
func KeyName(pub *ecdsa.PublicKey) (Name, error) {
	area, err := KeyPublic(pub)
	if err != nil {
		return Name{}, err
	}
	return nameOf(area), nil
}

// KeyPublic returns the TPMT_PUBLIC of the ECDSA P-256 key pub, as it is loaded
// to verify approvals: nameAlg SHA-256, userWithAuth and sign, scheme ECDSA with
// SHA-256.
func KeyPublic(pub *ecdsa.PublicKey) ([]byte, error) {
	if pub == nil || pub.Curve != elliptic.P256() {
		return nil, errors.New("cannot name the image key: it is not on P-256")
	}
	point, err := pub.Bytes()
	if err != nil {
		return nil, fmt.Errorf("cannot name the image key: %w", err)
	}
	var area []byte
	for _, v := range []uint16{algECC, algSHA256} {
		area = binary.BigEndian.AppendUint16(area, v)
	}
	area = binary.BigEndian.AppendUint32(area, keyAttributes)
	// authPolicy empty; symmetric null; scheme ecdsa, sha-256; curve; kdf null
	for _, v := range []uint16{0, algNull, algECDSA, algSHA256, curveP256, algNull} {
		area = binary.BigEndian.AppendUint16(area, v)
	}
	for _, coordinate := range [][]byte{point[1:33], point[33:65]} {
		area = binary.BigEndian.AppendUint16(area, 32)
		area = append(area, coordinate...)
	}
	return area, nil
}

func nameOf(area []byte) Name {
	digest := sha256.Sum256(area)
	var name Name
	binary.BigEndian.PutUint16(name[:], algSHA256)
	copy(name[2:], digest[:])
	return name
}

// Inner returns the policy that the image key approves: these PCRs of the
// SHA-256 bank have these values, and serial is not revoked. pcrs are numbered
// 0 to 23 and at least one is there; serial is MinSerial to MaxSerial.
func Inner(pcrs map[int][32]byte, serial int) ([32]byte, error) {
	if serial < MinSerial || serial > MaxSerial {
		return [32]byte{}, fmt.Errorf("cannot compose policy: serial %d is not in %d to %d", serial, MinSerial, MaxSerial)
	}
	if len(pcrs) == 0 {
		return [32]byte{}, errors.New("cannot compose policy: no pcr")
	}
	digest, err := pcrTerm([32]byte{}, pcrs)
	if err != nil {
		return [32]byte{}, err
	}
	return nvTerm(digest, FloorIndex, SerialBit(serial), eoBitClear), nil
}

// SerialBit is the floor bit of serial.
func SerialBit(serial int) uint64 { return 1 << serial }

// FloorFor returns the floor bits that revoke every serial below serial.
func FloorFor(serial int) uint64 { return 1<<serial - 1 }

// Lowest returns the lowest serial that bits do not revoke, or MaxSerial + 1.
func Lowest(bits uint64) int {
	for serial := MinSerial; serial <= MaxSerial; serial++ {
		if bits&SerialBit(serial) == 0 {
			return serial
		}
	}
	return MaxSerial + 1
}

// Approval returns what the image key signs, with ECDSA, to approve inner for
// the secrets of ref: SHA-256(inner ‖ ref) (Part 3, 23.16).
func Approval(inner [32]byte, ref string) [32]byte {
	return sha256.Sum256(append(inner[:], ref...))
}

// Outer returns the policy of a secret of class ref, approved by key, while the
// alive counter is alive.
func Outer(key Name, ref string, alive uint64) [32]byte {
	// PolicyAuthorize replaces the digest by zero and then extends it twice.
	digest := extend([32]byte{}, ccPolicyAuthorize, key[:])
	digest = sha256.Sum256(append(digest[:], ref...))
	digest = extend(digest, ccPolicyAuthValue)
	return nvTerm(digest, AliveIndex, alive, eoEqual)
}

// PCRDigest returns the digest of PCR values in the order of their numbers, as
// PolicyPCR takes it.
func PCRDigest(pcrs map[int][32]byte) [32]byte {
	values := sha256.New()
	for _, pcr := range slices.Sorted(maps.Keys(pcrs)) {
		value := pcrs[pcr]
		values.Write(value[:])
	}
	return [32]byte(values.Sum(nil))
}

func pcrTerm(digest [32]byte, pcrs map[int][32]byte) ([32]byte, error) {
	var selected [3]byte
	for pcr := range pcrs {
		if pcr < 0 || pcr > 23 {
			return digest, fmt.Errorf("cannot compose policy: no pcr %d", pcr)
		}
		selected[pcr/8] |= 1 << (pcr % 8)
	}
	values := PCRDigest(pcrs)
	var selection []byte // TPML_PCR_SELECTION of one bank
	selection = binary.BigEndian.AppendUint32(selection, 1)
	selection = binary.BigEndian.AppendUint16(selection, algSHA256)
	selection = append(selection, byte(len(selected)))
	selection = append(selection, selected[:]...)
	return extend(digest, ccPolicyPCR, selection, values[:]), nil
}

func nvTerm(digest [32]byte, index Index, operand uint64, operation uint16) [32]byte {
	var args []byte
	args = binary.BigEndian.AppendUint64(args, operand)
	args = binary.BigEndian.AppendUint16(args, 0) // offset
	args = binary.BigEndian.AppendUint16(args, operation)
	argsDigest := sha256.Sum256(args)
	name := IndexName(index)
	return extend(digest, ccPolicyNV, argsDigest[:], name[:])
}

// extend is PolicyUpdate's step: H(old ‖ command code ‖ parts).
func extend(old [32]byte, cc uint32, parts ...[]byte) [32]byte {
	buf := binary.BigEndian.AppendUint32(old[:], cc)
	for _, part := range parts {
		buf = append(buf, part...)
	}
	return sha256.Sum256(buf)
}
