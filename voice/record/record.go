// Package record is what a handset tells of its calls and of its registration:
// plain data, as voiced's socket, the call log and `rempart --json` carry it. It
// is apart from voice/agent so that who only reads it links no parser and no codec.
package record

import (
	"time"

	"rempart/voice/call"
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

// Registration is what status shows of the signalling.
type Registration struct {
	// State is "connecting", "registered" or "unregistered".
	State string `json:"state"`
	// Since is when the state began, CLOCK_MONOTONIC ns.
	Since int64 `json:"since"`
	// Reason says why it is not "registered".
	Reason string `json:"reason,omitempty"`
	// Gateway is the address spoken to; Name is our address of record.
	Gateway string `json:"gateway"`
	Name    string `json:"name"`
	// Failures counts attempts since the last success.
	Failures int `json:"failures"`
}

// Status is what voiced's GET /v1/status shows.
type Status struct {
	Registration Registration `json:"registration"`
	Current      *Record      `json:"current"`
	Last         *Record      `json:"last"`
}
