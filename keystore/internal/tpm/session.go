package tpm

import "github.com/google/go-tpm/tpm2"

// storageRoot is the storage root key, pinned.
type storageRoot struct {
	public tpm2.TPMTPublic
	name   tpm2.TPM2BName
}
