package agent

import (
	"encoding/hex"
	"errors"
	"time"

	"rempart/voice/call"
	"rempart/voice/keying"
	"rempart/voice/media"
	"rempart/voice/sip"
)

// Record is all there is to know about one call. Times ending in NS are
// CLOCK_MONOTONIC nanoseconds of this boot, zero for what has not happened.
type Record struct {
	ID        string `json:"id"`
	CallID    string `json:"call_id"`
	Direction string `json:"direction"` // outgoing or incoming
	Peer      string `json:"peer"`      // name of the other handset
	PeerURI   string `json:"peer_uri"`
	State     string `json:"state"`
	// Reason says why it failed or how it ended (voice/call Reason);
	// Explanation says it to a person, Detail is the error underneath.
	Reason      string `json:"reason"`
	Explanation string `json:"explanation,omitempty"`
	Detail      string `json:"detail,omitempty"`

	Level           string `json:"level"`
	SAS             string `json:"sas"` // short authentication string, both sides show the same
	PeerSeenBefore  bool   `json:"peer_seen_before"`
	PeerCertificate string `json:"peer_certificate,omitempty"` // SHA-256, hex

	At         time.Time `json:"at"` // wall clock at DialNS
	DialNS     int64     `json:"dial_ns"`
	RingingNS  int64     `json:"ringing_ns"`
	AnsweredNS int64     `json:"answered_ns"`
	Started    int64     `json:"started"` // audio opened
	// FirstAudioNS is when the first sample decoded from a packet was heard.
	FirstAudioNS int64 `json:"first_audio_ns"`
	EndedNS      int64 `json:"ended_ns"`

	FramesSent      int64 `json:"frames_sent"`
	FramesReceived  int64 `json:"frames_received"`
	FramesLost      int64 `json:"frames_lost"`
	FramesLate      int64 `json:"frames_late"`
	FramesConcealed int64 `json:"frames_concealed"`
	FramesBad       int64 `json:"frames_bad"`
	// BytesPerPacket is the size of every packet sent, or -1 if they differed,
	// which they never do (FCO_VOC_EXT.1).
	BytesPerPacket int   `json:"bytes_per_packet"`
	JitterNS       int64 `json:"jitter_ns"`
	Underruns      int64 `json:"underruns"`
}

// Over tells whether the call has come to its end.
func (r Record) Over() bool {
	return r.State == call.Ended.String() || r.State == call.Failed.String()
}

func (r *Record) sound(s media.Stats) {
	r.FirstAudioNS = s.FirstAudioNS
	r.FramesSent, r.FramesReceived, r.FramesLost = s.Sent, s.Received, s.Lost
	r.FramesLate, r.FramesConcealed, r.FramesBad = s.Late, s.Concealed, s.Bad()
	r.BytesPerPacket, r.JitterNS, r.Underruns = s.SentBytesMin, s.JitterNS, s.Underruns
	if s.SentBytesMin != s.SentBytesMax {
		r.BytesPerPacket = -1
	}
}

func (r *Record) keys(k *keying.Result) {
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
