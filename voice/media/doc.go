// Package media carries the speech of one call: Opus packets in RTP, protected by SRTP, on one clock and in one size.
//
// From Run to Stop a session sends one packet every 20 ms, PacketSize bytes long: 12 of RTP header (RFC 3550), 60 of Opus, 16 of
// AEAD_AES_256_GCM tag (RFC 7714). Silence, a microphone that fails to deliver and a peer that does not answer change neither
// the clock nor the size, so the wire shows that a call is on and nothing about what is said (NIAP PP-Module VVoIP
// FCO_VOC_EXT.1). The marker bit is never set, for it would show where speech begins, and there is no RTCP.
//
// A received packet is played only if it comes from the agreed address with the agreed size, payload type and SSRC, is
// authentic under the key of that direction, and was not seen before. The jitter buffer has a fixed depth (Config.Target): a
// sample is heard that long after the earliest possible moment, always. Without loss what is played is, sample for
// sample, a local decode of the packets in their order.
//
// The package opens no socket and no device: both are given, and nothing is sent or played before Run.
package media
