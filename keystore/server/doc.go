// Package server is keyd's work: it holds the TPM and the vault, and serves the
// key socket.
//
// What it is trusted with. After the PIN it has, in memory, the tunnel key, the
// storage key and the auth value of the identity key; the identity key itself
// never leaves the TPM. The TPM's owner and lockout auth are in memory for as
// long as unlock needs them.
//
// What opens them. Nothing but the TPM: the image that the image key approved
// for this TPM's rollback floor, the alive counter, and the PIN. The PIN's auth
// value is SHA-256 of a salt and the PIN, with no slow hash: a copy of the vault
// file is worth nothing without the TPM, and the TPM's lockout is what slows
// guessing down.
//
// What it does not protect. Root in keyd's namespaces can read keyd's memory
// once it is open. Copies of a PIN in net/http's buffers are not wiped; they
// live until the memory is used again. A software TPM's state folder can be
// copied and rolled back; a chip's cannot.
package server
