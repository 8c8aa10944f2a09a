// Package extend is the door to the TPM that init uses before keyd runs: it can
// extend PCRs and read the rollback floor, and nothing else. It holds no auth
// and opens no secret.
//
// What an attacker on the TPM's bus can do here. PCR_Extend carries the empty
// auth and no session, so the bus can drop, alter or add an extend, and answer
// success in the TPM's place. An altered or added one gives PCR values that no
// approval covers, and the vault stays sealed. A dropped or replaced one is the
// attack that matters: whoever controls the bus from power-on can feed the TPM
// the extends of an approved image while another one runs. PCRs do not
// withstand that on a discrete TPM; the PIN, the verified boot chain and the
// locked bootloader stand behind them (docs/known-limits.md). The floor read
// here is not authenticated either: it serves to refuse an old policy early and
// with a reason. The TPM itself checks the floor when a secret is opened.
package extend

import (
	"fmt"
	"os"

	"rempart/keystore/internal/tpm"
	"rempart/keystore/policy"
)

// ErrTPMGone means that the TPM cannot be reached any more. It is final for
// this Door.
var ErrTPMGone = tpm.ErrTPMGone

// Door is an extend-only TPM. Its commands are serialised.
type Door struct {
	device *tpm.Device
}

// Open returns the door to the TPM behind the inherited stream f: write one
// command, read one response. It sends nothing, and takes ownership of f.
func Open(f *os.File) (*Door, error) {
	device, err := tpm.Open(f)
	if err != nil {
		return nil, err
	}
	return &Door{device: device}, nil
}

// Startup does TPM2_Startup(CLEAR). On a handset the firmware has done it; on
// the netns board the lab is the firmware. A TPM that was started before is not
// an error.
func (d *Door) Startup() error { return d.device.Startup() }

// Extend extends pcr (0 to 23) of the SHA-256 bank with digest.
func (d *Door) Extend(pcr int, digest [32]byte) error { return d.device.Extend(pcr, digest) }

// Floor returns the rollback floor: bit n set means that serial n is revoked.
// ok is false before the handset was provisioned.
func (d *Door) Floor() (bits uint64, ok bool, err error) {
	bits, ok, err = d.device.ReadIndex(policy.FloorIndex)
	if err != nil {
		return 0, false, fmt.Errorf("cannot read the rollback floor: %w", err)
	}
	return bits, ok, nil
}

// Close closes the door's descriptor. Copies of it, such as the one keyd gets,
// stay open, and nothing is sent to the TPM.
func (d *Door) Close() error { return d.device.Close() }
