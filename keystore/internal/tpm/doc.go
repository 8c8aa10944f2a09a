// Package tpm speaks to the TPM, and is the only importer of go-tpm.
//
// A TPM is an inherited stream descriptor: one command out, one response in.
// There is one session constructor (session.go): every session is salted to the
// storage root key, whose public part was compared with the one pinned at
// provisioning, and has an HMAC and AES-128-CFB parameter encryption. What may
// be sent without a session carries no secret and no auth: PCR_Extend, PolicyNV
// and NV_Read of our indices by their empty auth, and the commands that take no
// authorisation at all.
//
// What this does not protect. An attacker who sits on the bus sees which
// commands are sent and when, can drop them, and can feed PCR extends of his
// own. At provisioning the storage root key's public part is taken on trust:
// enrol where nobody sits on the bus, or compare it with the vendor's record.
package tpm
