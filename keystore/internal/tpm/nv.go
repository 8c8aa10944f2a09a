package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"rempart/internal/secret"
	"rempart/keystore/policy"
)

// nvPublic is the public area of one of our 8-byte indices, as it is defined:
// WRITTEN clear.
func nvPublic(index policy.Index) tpm2.TPMSNVPublic {
	kind := tpm2.TPMNTCounter
	if index == policy.FloorIndex {
		kind = tpm2.TPMNTBits
	}
	return tpm2.TPMSNVPublic{
		NVIndex: tpm2.TPMHandle(index),
		NameAlg: tpm2.TPMAlgSHA256,
		Attributes: tpm2.TPMANV{
			OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true,
			NT: kind,
		},
		DataSize: 8,
	}
}

// nvHandle is the index with its name as it is once written.
func nvHandle(index policy.Index) tpm2.NamedHandle {
	name := policy.IndexName(index)
	return tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: tpm2.TPM2BName{Buffer: name[:]}}
}

// nvSelf authorises a read of the index by its own auth, which is empty: what
// the index holds is no secret.
func nvSelf(index policy.Index, s tpm2.Session) tpm2.AuthHandle {
	h := nvHandle(index)
	return tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: s}
}

// ReadIndex returns the value of an index; ok is false if the TPM does not have
// the index or it was never written. An index with another public area than
// ours is an error. Once the root is pinned the value is authentic; before, it
// is the bus's word, and PolicyNV decides.
func (d *Device) ReadIndex(index policy.Index) (value uint64, ok bool, err error) {
	pub, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(d.wire)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("cannot read nv index %v: %w", index, err)
	}
	area, err := pub.NVPublic.Contents()
	if err != nil {
		return 0, false, fmt.Errorf("cannot read nv index %v: %w", index, err)
	}
	if !area.Attributes.Written {
		return 0, false, nil
	}
	if name := policy.IndexName(index); string(pub.NVName.Buffer) != string(name[:]) {
		return 0, false, fmt.Errorf("cannot read nv index %v: it is not one of ours, its name is %x", index, pub.NVName.Buffer)
	}
	var data []byte
	err = d.withEmptyAuth(out, func(s tpm2.Session) error {
		rsp, err := tpm2.NVRead{AuthHandle: nvSelf(index, s), NVIndex: nvHandle(index), Size: 8}.Execute(d.wire)
		if err == nil {
			data = rsp.Data.Buffer
		}
		return err
	})
	if err != nil {
		return 0, false, fmt.Errorf("cannot read nv index %v: %w", index, err)
	}
	if len(data) != 8 {
		return 0, false, fmt.Errorf("cannot read nv index %v: %d bytes", index, len(data))
	}
	return binary.BigEndian.Uint64(data), true, nil
}

// DefineIndex makes one of our indices and writes it a first time: the counter
// is incremented, the floor gets bit 0. The owner auth must still be empty.
func (d *Device) DefineIndex(index policy.Index) error {
	public := nvPublic(index)
	err := d.withSession(hmacKind, nil, in, func(s tpm2.Session) error {
		_, err := tpm2.NVDefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: s},
			PublicInfo: tpm2.New2B(public),
		}.Execute(d.wire)
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot define nv index %v: %w", index, err)
	}
	name, err := tpm2.NVName(&public)
	if err != nil {
		return fmt.Errorf("cannot name nv index %v: %w", index, err)
	}
	unwritten := tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: *name}
	if index == policy.FloorIndex {
		return d.setBits(unwritten, nil, 1)
	}
	return d.increment(unwritten, nil)
}

// RaiseFloor sets bits in the floor (Part 3, 31.10). Bits that are set stay
// set. owner is the owner auth.
func (d *Device) RaiseFloor(bits uint64, owner *secret.Bytes) error {
	return d.setBits(nvHandle(policy.FloorIndex), owner, bits)
}

func (d *Device) increment(index tpm2.NamedHandle, owner *secret.Bytes) error {
	err := d.withSession(hmacKind, owner.Reveal(), plain, func(s tpm2.Session) error {
		_, err := tpm2.NVIncrement{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: s},
			NVIndex:    index,
		}.Execute(d.wire)
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot increment nv index %#x: %w", uint32(index.Handle), err)
	}
	return nil
}

func (d *Device) setBits(index tpm2.NamedHandle, owner *secret.Bytes, bits uint64) error {
	handles := []tpm2.NamedHandle{{Handle: tpm2.TPMRHOwner, Name: tpm2.HandleName(tpm2.TPMRHOwner)}, index}
	err := d.withSession(hmacKind, owner.Reveal(), plain, func(s tpm2.Session) error {
		return d.runRaw(tpm2.TPMCCNVSetBits, s, handles, be64(bits))
	})
	if err != nil {
		return fmt.Errorf("cannot set bits of nv index %#x: %w", uint32(index.Handle), err)
	}
	return nil
}
