package main

import (
	"crypto/ecdsa"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"

	"rempart/boot/manifest"
	"rempart/boot/manifest/load"
	"rempart/boot/predict"
	"rempart/boot/stage"
	"rempart/internal/atomicfile"
	"rempart/internal/run"
	"rempart/keystore/policy"
)

func publicOf(key *ecdsa.PrivateKey) []*ecdsa.PublicKey { return []*ecdsa.PublicKey{&key.PublicKey} }

func approve(args []string, stdout, _ io.Writer) error {
	flags := flags("approve")
	keyFile := flags.String("key", "", "private key of the image role")
	image := flags.String("image", "", "folder of the image, as it will be the root")
	out := flags.String("out", "", "approval to write, usually DIR/etc/rempart/approval")
	if _, err := parse(flags, args, 0, "key", "image", "out"); err != nil {
		return err
	}
	key, err := readKey(*keyFile)
	if err != nil {
		return err
	}
	conf := filepath.Join(*image, "etc", "rempart")
	p, _, err := load.Policy(conf)
	if err != nil {
		return run.Hint(fmt.Errorf("cannot approve %s: %w", *image, err), "an image carries etc/rempart/policy, signed by the key in etc/rempart/policy.pub")
	}
	keys, err := p.Keys.ImageKeys()
	if err != nil {
		return err
	}
	if !listed(keys, &key.PublicKey) {
		return run.Hint(fmt.Errorf("cannot approve %s: %s is not one of its policy's keys.image", *image, *keyFile), "approve with a key of the image role; the other roles cannot")
	}
	values, err := predict.PCRs(predict.Image{Dir: *image})
	if err != nil {
		return err
	}
	a, err := approval(key, p.Serial, values)
	if err != nil {
		return err
	}
	data, err := a.Marshal()
	if err != nil {
		return err
	}
	if _, err := manifest.OpenApproval(data, keys); err != nil {
		return err
	}
	if err := atomicfile.Write(*out, data, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "approved %s as %s: role %s, serial %d\n", *image, *out, p.Role, p.Serial)
	for _, index := range slices.Sorted(maps.Keys(values)) {
		fmt.Fprintf(stdout, "PCR %d %x\n", index, values[index])
	}
	return nil
}

// approval signs both references: boot secrets ask for every PCR, user
// secrets for all but the cap, which is extended by then.
func approval(key *ecdsa.PrivateKey, serial int, values map[int][32]byte) (*manifest.Approval, error) {
	afterCap := maps.Clone(values)
	delete(afterCap, stage.PCRCap)
	a := &manifest.Approval{Version: manifest.ApprovalVersion, Serial: serial}
	for _, one := range []struct {
		ref    string
		values map[int][32]byte
	}{{manifest.RefBoot, values}, {manifest.RefUser, afterCap}} {
		digest, err := policy.Inner(one.values, serial)
		if err != nil {
			return nil, err
		}
		approved, err := manifest.Approve(one.ref, one.values, digest, key)
		if err != nil {
			return nil, err
		}
		a.Approved = append(a.Approved, approved)
	}
	return a, nil
}
