// Package keying agrees on the keys of one call, between the two handsets and nobody else.
//
// The handsets open one TLS 1.3 connection to each other: mutual, with their LDevID certificates, key exchange X25519MLKEM768
// and no other, no resumption, no early data, no session tickets. Each side checks that the other's certificate is of the
// device authority, that the name it certifies is the name that was dialled, and that both compute the same level.
//
// The SRTP keys come from the exporter of that connection (RFC 8446 §7.5), one per direction, bound to the Call-ID, both
// names as dialled and as certified, both certificates and the level: label EXPORTER-rempart-srtp. No key agreement is
// home-made. Inside the connection the two exchange random numbers for the short authentication string:
//
//	callee → caller  ready   the callee accepts the caller: context, level
//	caller → callee  commit  SHA-256(nA), context, level
//	callee → caller  answer  nB
//	caller → callee  reveal  nA
//	callee → caller  done    the commitment was kept
//
// The string is 20 bits of HKDF(exporter, nA ‖ nB), spoken as four characters of the base32 alphabet of ZRTP (RFC 6189 §5.1.6).
// Somebody in the middle with two valid certificates has two connections with two exporters. Each of his numbers is fixed
// before he knows the other side's, so his two strings are equal with a probability of 2^-20 for each call that he spoils;
// without the commitment he would choose his last number so that they are.
package keying
