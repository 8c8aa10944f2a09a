// Package predict computes the PCR values that an image will produce, from
// its folder and without a TPM, so that the image role can approve a boot
// before it has ever happened. It reads the same table (package stage) and
// uses the same digests (package measure) as the boot itself.
package predict

import (
	"fmt"
	"path/filepath"

	"rempart/boot/eventlog"
	"rempart/boot/manifest/load"
	"rempart/boot/measure"
	"rempart/boot/stage"
)

// Image names an image whose boot is to be predicted.
type Image struct {
	Dir string // the folder that will be the root: bin/, etc/rempart/, …
	// Role is the role whose programs are measured, stage.Handset or
	// stage.Gateway; empty takes the role of the signed policy in Dir.
	Role string
}

// PCRs returns the values of PCR 11 (image), 13 (stages) and 15 (cap, zero)
// at the moment at which a boot of the image opens its secrets. A file that a
// stage names and the image has not is an error.
func PCRs(image Image) (map[int][32]byte, error) {
	events, err := Events(image)
	if err != nil {
		return nil, err
	}
	values := eventlog.Replay(events)
	values[stage.PCRCap] = [32]byte{}
	return values, nil
}

// Events returns the events that a boot of the image will log, in order, the
// firmware's first.
func Events(image Image) ([]eventlog.Event, error) {
	role := image.Role
	if role == "" {
		p, _, err := load.Policy(filepath.Join(image.Dir, "etc", "rempart"))
		if err != nil {
			return nil, fmt.Errorf("cannot predict %s: %w", image.Dir, err)
		}
		role = p.Role
	}
	stages, err := stage.For(role)
	if err != nil {
		return nil, fmt.Errorf("cannot predict %s: %w", image.Dir, err)
	}
	var events recorder
	log := measure.NewLog(nowhere{}, &events)
	for _, s := range append(stage.Firmware(), stages...) {
		if _, err := log.Measure(image.Dir, s); err != nil {
			return nil, fmt.Errorf("cannot predict %s: %w", image.Dir, err)
		}
	}
	return events, nil
}

// nowhere is the TPM of a prediction: the values come from the replay.
type nowhere struct{}

func (nowhere) Extend(int, [32]byte) error { return nil }

type recorder []eventlog.Event

func (r *recorder) Append(e eventlog.Event) error {
	*r = append(*r, e)
	return nil
}
