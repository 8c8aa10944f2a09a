package agent

import (
	"encoding/hex"
	"errors"

	"rempart/voice/call"
	"rempart/voice/keying"
	"rempart/voice/media"
	"rempart/voice/record"
	"rempart/voice/sip"
)

// Record is what is told of one call.
type Record = record.Record

// sounds notes what a session has seen.
func sounds(r *Record, s media.Stats) {
	r.FirstAudioNS = s.FirstAudioNS
	r.FramesSent, r.FramesReceived, r.FramesLost = s.Sent, s.Received, s.Lost
	r.FramesLate, r.FramesConcealed, r.FramesBad = s.Late, s.Concealed, s.Bad()
	r.BytesPerPacket, r.JitterNS, r.Underruns = s.SentBytesMin, s.JitterNS, s.Underruns
	if s.SentBytesMin != s.SentBytesMax {
		r.BytesPerPacket = -1
	}
}

// agreed notes what the keys were agreed with.
func agreed(r *Record, k *keying.Result) {
	r.Level, r.SAS, r.PeerCertificate = k.Level, k.SAS, hex.EncodeToString(k.PeerCertificate[:])
}

// refusal is the reason behind an INVITE that came to nothing.
func refusal(err error) call.Event {
	var r *sip.Refusal
	reason := call.ReasonRefused
	switch {
	case errors.As(err, &r):
		switch r.Status {
		case 404:
			reason = call.ReasonUnknownCallee
		case 480:
			reason = call.ReasonNotRegistered
		case 486, 600:
			reason = call.ReasonBusy
		case 408, 487:
			reason = call.ReasonNoAnswer
		case 403:
			reason = call.ReasonForbidden
		}
	case errors.Is(err, sip.ErrSession):
		reason = call.ReasonBadAnswer
	case errors.Is(err, sip.ErrNotRegistered):
		reason = call.ReasonNotReady
	case errors.Is(err, sip.ErrGatewayGone):
		return call.Event{Kind: call.GatewayGone}
	}
	return call.Event{Kind: call.Refused, Reason: reason}
}

// status is the answer to an INVITE that this reason refuses.
func status(r call.Reason) int {
	switch r {
	case call.ReasonBusy:
		return 486
	case call.ReasonNoAnswer:
		return 408
	case call.ReasonNotReady, call.ReasonKeying:
		return 480
	}
	return 603
}

// keyingFailure is the reason behind keys that were not agreed.
func keyingFailure(err error) call.Event {
	reason := call.ReasonKeying
	switch {
	case errors.Is(err, keying.ErrNotOurAuthority):
		reason = call.ReasonAuthority
	case errors.Is(err, keying.ErrNotDialledName), errors.Is(err, errInner):
		reason = call.ReasonPeerName
	case errors.Is(err, keying.ErrLevel):
		reason = call.ReasonLevel
	}
	return call.Event{Kind: call.KeyingFailed, Reason: reason}
}

// errInner refuses a peer whose sound would not go to an address of its
// certificate.
var errInner = errors.New("cannot send sound to an address that the peer's certificate does not carry")
