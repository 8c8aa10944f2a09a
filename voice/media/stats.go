package media

// Stats is what a session has seen so far. Counts are frames of 20 ms, which are packets on the wire.
type Stats struct {
	// Sent left for the peer; SendErrors did not, because the network refused them. The clock goes on either way.
	Sent, SendErrors int64
	// MicSilence were sent as silence because the microphone had nothing in time.
	MicSilence int64
	// SendStalls counts how often the process could not send for so long that frames were given up.
	SendStalls int64
	// SentBytesMin and SentBytesMax are the smallest and largest packet sent: PacketSize both, or 0 before the first.
	SentBytesMin, SentBytesMax int

	// Received are authentic and came once. Of these, Late came after their time, and Skipped had waited before the start
	// until their time was over; both were not played.
	Received, Late, Skipped int64
	// Lost never came, while later ones did.
	Lost int64
	// Duplicate were seen before or are too old to tell; authentic or not.
	Duplicate int64
	// BadSize, BadHeader (other SSRC, payload type or RTP version), Forged (not authentic), BadContent (authentic and not
	// decodable) and Strangers (from another address) were refused.
	BadSize, BadHeader, Forged, BadContent, Strangers int64
	// ReceivedBytesMin and ReceivedBytesMax are the smallest and largest authentic packet, or 0 before the first.
	ReceivedBytesMin, ReceivedBytesMax int

	// Played were decoded and given to the speaker; Concealed were made up in the place of what was missing, after the
	// peer's last packet too.
	Played, Concealed int64
	// Resyncs counts how often the timeline had to move because the path became longer for good.
	Resyncs int64
	// Underruns are the speaker's: frames that it did not get in time.
	Underruns int64
	// FirstAudioNS is when the first sample decoded from a packet was heard, in nanoseconds of the session's clock; 0 before.
	FirstAudioNS int64
	// JitterNS is the interarrival jitter, in nanoseconds (RFC 3550 §6.4.1).
	JitterNS int64
}

// Bad is the number of packets refused for what they are.
func (s Stats) Bad() int64 { return s.BadSize + s.BadHeader + s.Forged + s.BadContent + s.Strangers }
