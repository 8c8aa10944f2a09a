// Package codec turns 20 ms of speech into one Opus packet of one size, and back.
//
// The package is a thin room over github.com/thesyncim/gopus (RFC 6716 in pure Go) that leaves nothing to choose: 48 kHz, mono,
// 20 ms, hard constant bit rate of 24 kbit/s, no discontinuous transmission, no in-band FEC. Every packet is therefore
// PacketSize bytes long, whether it holds speech, noise or silence: a listener on the wire learns no phrase from sizes
// (NIAP PP-Module VVoIP FCO_VOC_EXT.1; RFC 6562 §3 describes the attack). The size is checked on every packet in both
// directions, so a codec that breaks the promise breaks the call instead.
package codec
