package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

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
func nvSelf(index policy.Index) tpm2.AuthHandle {
	h := nvHandle(index)
	return tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: tpm2.PasswordAuth(nil)}
}

// ReadIndex returns the value of an index; ok is false if the TPM does not have
// the index or it was never written. An index with another public area than
// ours is an error. The answer is not authenticated: PolicyNV decides.
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
	rsp, err := tpm2.NVRead{AuthHandle: nvSelf(index), NVIndex: nvHandle(index), Size: 8}.Execute(d.wire)
	if err != nil {
		return 0, false, fmt.Errorf("cannot read nv index %v: %w", index, err)
	}
	if len(rsp.Data.Buffer) != 8 {
		return 0, false, fmt.Errorf("cannot read nv index %v: %d bytes", index, len(rsp.Data.Buffer))
	}
	return binary.BigEndian.Uint64(rsp.Data.Buffer), true, nil
}
