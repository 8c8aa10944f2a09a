package server

import (
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"

	"rempart/boot/manifest"
	"rempart/boot/manifest/load"
	"rempart/boot/stage"
	"rempart/keystore/internal/tpm"
	"rempart/keystore/policy"
)

// image is what the running image says of itself: the signed policy and the
// image key's approval. err says why there is none; nothing opens then.
type image struct {
	err        error
	roots      *x509.CertPool // of the device authority
	serial     int
	key        *ecdsa.PublicKey // that approved
	user, boot tpm.Approval
}

// loadImage reads dir (policy, policy.pub, approval) once. The image's root is
// read-only and measured, so what was read stays true.
func loadImage(dir string) image {
	img, err := readImage(dir)
	if err != nil {
		return image{err: fmt.Errorf("this image is not approved: %w", err)}
	}
	return img
}

func readImage(dir string) (image, error) {
	p, _, err := load.Policy(dir)
	if err != nil {
		return image{}, err
	}
	approval, err := load.Approval(dir, p)
	if err != nil {
		return image{}, err
	}
	img := image{serial: approval.Serial}
	if img.roots, err = p.Keys.Roots(); err != nil {
		return image{}, err
	}
	keys, err := p.Keys.ImageKeys()
	if err != nil {
		return image{}, err
	}
	for _, want := range []struct {
		ref string
		out *tpm.Approval
	}{{policy.RefUser, &img.user}, {policy.RefBoot, &img.boot}} {
		approved, ok := approval.For(want.ref)
		if !ok {
			return image{}, fmt.Errorf("the approval has no %s", want.ref)
		}
		key, err := keyOf(keys, approved.Key)
		if err != nil {
			return image{}, err
		}
		if img.key != nil && !key.Equal(img.key) {
			return image{}, errors.New("two keys signed the approval")
		}
		img.key = key
		*want.out = tpm.Approval{
			Ref: want.ref, PCRs: approved.Values(), Serial: approval.Serial,
			Key: key, Signature: [64]byte(approved.Signature),
		}
		inner, err := policy.Inner(want.out.PCRs, want.out.Serial)
		if err != nil {
			return image{}, err
		}
		if inner != [32]byte(approved.Digest) {
			return image{}, fmt.Errorf("the approval's digest of %s is not that of its PCRs and serial", want.ref)
		}
	}
	// A boot approval that does not demand an untouched cap would open the boot
	// secrets more than once.
	if value, ok := img.boot.PCRs[stage.PCRCap]; !ok || value != [32]byte{} {
		return image{}, fmt.Errorf("the approval of %s does not demand that pcr %d is zero", policy.RefBoot, stage.PCRCap)
	}
	return img, nil
}

func keyOf(keys []*ecdsa.PublicKey, id [32]byte) (*ecdsa.PublicKey, error) {
	for _, key := range keys {
		got, err := manifest.KeyID(key)
		if err != nil {
			return nil, err
		}
		if got == id {
			return key, nil
		}
	}
	return nil, fmt.Errorf("the policy has no image key %x", id[:4])
}

// fault says why this boot opens nothing, or nil if nothing seems to be in the
// way. It is for telling a person: what it reads is not authenticated, and the
// TPM decides. floor is the rollback floor's bits.
func (img image) fault(device *tpm.Device, floor uint64) error {
	if img.err != nil {
		return img.err
	}
	want := maps.Clone(img.user.PCRs)
	maps.Copy(want, img.boot.PCRs)
	numbers := slices.Sorted(maps.Keys(want))
	have, err := device.PCRs(numbers...)
	if err != nil {
		return err
	}
	for _, pcr := range numbers {
		got, approved := have[pcr], want[pcr]
		if got == approved {
			continue
		}
		if pcr == stage.PCRCap {
			return errors.New("boot secrets were opened before in this boot: restart the handset")
		}
		return fmt.Errorf("this image is not the approved one: pcr %d is %x…, approved is %x…", pcr, got[:4], approved[:4])
	}
	if floor&policy.SerialBit(img.serial) != 0 {
		return fmt.Errorf("this image is older than the rollback floor: its serial is %d, the floor is %d",
			img.serial, policy.Lowest(floor))
	}
	return nil
}
