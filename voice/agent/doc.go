// Package agent puts a handset's calls together: signalling (voice/sip), the
// call's life (voice/call), keys (voice/keying) and sound (voice/media). It
// decides nothing that those decide; it carries events to the call's machine and
// its effects out.
//
// One call at a time. Keys and sound go from handset to handset, between inner
// addresses that both certificates carry; the gateway only introduces. Sound is
// opened by the effect OpenAudio and by nothing else.
//
// The call log and what is remembered of each peer (certificate, last short
// authentication string) are one file, encrypted by the keystore.
package agent
