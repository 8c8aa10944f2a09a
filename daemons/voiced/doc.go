// Voiced is the handset's telephone: it registers at the gateway, places and
// takes calls, agrees on their keys and carries their sound.
//
// It lives in red, uid 904, with no capability: the only way out of red is the
// tunnel. It holds no key. Its identity key signs in the TPM, through keyd, and
// the keys of a call live as long as the call. What it parses from outside is
// SIP from the gateway, and TLS and RTP from the other handset; each is bounded.
// It answers on voiced.sock to the person at the handset (cgroup /shell).
//
// When it dies a call dies with it: microphone and speaker are closed by the
// kernel, and the peer hangs up when it hears nothing. init starts it again, and
// it registers anew. Its one file, the call log, is encrypted by keyd.
package main
