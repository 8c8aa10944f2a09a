// Package manifest reads and writes the two signed documents of an image: the
// policy bundle, which says what the handset may do, and the boot approval,
// which says to the TPM which measured boots may open its secrets.
//
// Both are hostile input: they lie in storage an attacker may have written.
// Nothing of a document is looked at before its signature has been checked by
// a key that the caller already trusts, sizes are bounded before anything is
// parsed, and parsing is total: a value or an error, never both.
//
// # The policy bundle
//
//	rempart-policy 1
//	key <64 lower-case hex digits: SHA-256 of the signer's SubjectPublicKeyInfo, RFC 5280 §4.1>
//	signature <base64 (RFC 4648 §4) of an ASN.1 ECDSA P-256 signature, FIPS 186-5>
//
//	{ …the JSON document, exactly the bytes that were signed… }
//
// Lines end in LF. The signature covers SHA-256("rempart policy v1\n" ‖
// document); the label keeps a signature made for something else from being
// taken for one over a policy. The document is at most [MaxDocument] bytes.
//
// A bundle has one reading: [Parse] followed by [Envelope.Marshal] gives back
// the same bytes, which a fuzz test holds it to.
//
// # The boot approval
//
// See [Approval].
package manifest
