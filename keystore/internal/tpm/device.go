package tpm

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/google/go-tpm/tpm2"
)

// Device is one TPM. Its methods may be called from several goroutines, but a
// method is several commands: callers that need a method to be undisturbed
// serialise (the server holds one lock around each request).
type Device struct {
	wire *Wire
	srk  *storageRoot // nil until Pin
}

// Open takes ownership of f, the inherited stream to the TPM. It sends nothing.
func Open(f *os.File) (*Device, error) {
	w, err := NewWire(f)
	if err != nil {
		return nil, err
	}
	return &Device{wire: w}, nil
}

// Watch calls fn with every command and response from now on: tests are the
// attacker on the bus with it. fn must not keep the slices.
func (d *Device) Watch(fn func(command, response []byte)) { d.wire.Watch(fn) }

// Check finds out, without a command, whether the TPM is gone (ErrTPMGone).
func (d *Device) Check() error { return d.wire.Check() }

// Close closes the stream. It does not shut the TPM down.
func (d *Device) Close() error { return d.wire.Close() }

// Startup does TPM2_Startup(CLEAR) (Part 3, 9.3), which firmware does on a real
// handset. A TPM that was started before is not an error.
func (d *Device) Startup() error {
	_, err := tpm2.Startup{StartupType: tpm2.TPMSUClear}.Execute(d.wire)
	if err != nil && !errors.Is(err, tpm2.TPMRCInitialize) {
		return fmt.Errorf("cannot start the tpm: %w", err)
	}
	return nil
}

// Shutdown does TPM2_Shutdown(CLEAR) (Part 3, 9.4), so that the next start is
// orderly and costs no lockout count.
func (d *Device) Shutdown() error {
	_, err := tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}.Execute(d.wire)
	if err != nil {
		return fmt.Errorf("cannot shut the tpm down: %w", err)
	}
	return nil
}

// Extend extends one PCR of the SHA-256 bank (Part 3, 22.2) with the PCR's
// empty auth: by a session once the root is pinned, so that a success is the
// TPM's word; by the empty password before.
func (d *Device) Extend(pcr int, digest [32]byte) error {
	if pcr < 0 || pcr > 23 {
		return fmt.Errorf("cannot extend pcr %d: no such pcr", pcr)
	}
	err := d.withEmptyAuth(plain, func(s tpm2.Session) error {
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: s},
			Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{
				{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]},
			}},
		}.Execute(d.wire)
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot extend pcr %d: %w", pcr, err)
	}
	return nil
}

// PCRs reads PCRs of the SHA-256 bank (Part 3, 22.4). The answer is not
// authenticated: use it to explain, never to decide; the TPM decides.
func (d *Device) PCRs(pcrs ...int) (map[int][32]byte, error) {
	values := make(map[int][32]byte, len(pcrs))
	for _, pcr := range pcrs {
		sel := pcrSelection([]int{pcr})
		rsp, err := tpm2.PCRRead{PCRSelectionIn: sel}.Execute(d.wire)
		if err != nil {
			return nil, fmt.Errorf("cannot read pcr %d: %w", pcr, err)
		}
		if n := len(rsp.PCRValues.Digests); n != 1 {
			return nil, fmt.Errorf("cannot read pcr %d: tpm has no such pcr in its sha-256 bank", pcr)
		}
		value := rsp.PCRValues.Digests[0].Buffer
		if len(value) != sha256.Size {
			return nil, fmt.Errorf("cannot read pcr %d: value of %d bytes", pcr, len(value))
		}
		values[pcr] = [32]byte(value)
	}
	return values, nil
}

func pcrSelection(pcrs []int) tpm2.TPMLPCRSelection {
	bits := make([]uint, len(pcrs))
	for i, pcr := range pcrs {
		bits[i] = uint(pcr)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash:      tpm2.TPMAlgSHA256,
		PCRSelect: tpm2.PCClientCompatible.PCRs(bits...),
	}}}
}

// property reads one TPM property (Part 2, 6.13).
func (d *Device) property(pt tpm2.TPMPT) (uint32, error) {
	rsp, err := tpm2.GetCapability{
		Capability:    tpm2.TPMCapTPMProperties,
		Property:      uint32(pt),
		PropertyCount: 1,
	}.Execute(d.wire)
	if err != nil {
		return 0, fmt.Errorf("cannot read tpm property %#x: %w", uint32(pt), err)
	}
	list, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return 0, fmt.Errorf("cannot read tpm property %#x: %w", uint32(pt), err)
	}
	if len(list.TPMProperty) != 1 || list.TPMProperty[0].Property != pt {
		return 0, fmt.Errorf("cannot read tpm property %#x: tpm does not have it", uint32(pt))
	}
	return list.TPMProperty[0].Value, nil
}

func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
