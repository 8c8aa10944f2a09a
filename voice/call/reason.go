package call

// Reason says why a call failed, or how it ended. The text of a Reason is
// stable: it is what records, the journal and --json carry.
type Reason string

// The reasons.
const (
	ReasonNone          Reason = ""
	ReasonUnknownCallee Reason = "unknown_callee"
	ReasonNotRegistered Reason = "not_registered"
	ReasonBusy          Reason = "busy"
	ReasonNoAnswer      Reason = "no_answer"
	ReasonRefused       Reason = "refused"
	ReasonForbidden     Reason = "forbidden"
	ReasonAuthority     Reason = "peer_certificate_not_of_our_authority"
	ReasonPeerName      Reason = "peer_certificate_not_the_dialled_name"
	ReasonLevel         Reason = "level_refused"
	ReasonKeying        Reason = "keying_failed"
	ReasonPeerGaveUp    Reason = "peer_gave_up_before_keys_were_agreed"
	ReasonGatewayGone   Reason = "gateway_gone"
	ReasonMediaLost     Reason = "media_lost"
	ReasonBadAnswer     Reason = "bad_answer"
	ReasonNotReady      Reason = "not_ready"

	// How a call ended that did not fail.
	ReasonLocalHangup  Reason = "hung_up_here"
	ReasonRemoteHangup Reason = "hung_up_there"
	ReasonCancelled    Reason = "cancelled"
)

// Explain is the Reason as a sentence part for a person.
func (r Reason) Explain() string {
	switch r {
	case ReasonNone:
		return ""
	case ReasonUnknownCallee:
		return "no handset of that name is known to the gateway"
	case ReasonNotRegistered:
		return "the callee's handset is not registered at the gateway now"
	case ReasonBusy:
		return "the callee is in another call"
	case ReasonNoAnswer:
		return "the callee did not answer in time"
	case ReasonRefused:
		return "the call was refused"
	case ReasonForbidden:
		return "the gateway refused this handset's identity"
	case ReasonAuthority:
		return "the peer's certificate was not issued by this network's authority"
	case ReasonPeerName:
		return "the peer's certificate names somebody else than the one dialled"
	case ReasonLevel:
		return "the two parties and the network share no level"
	case ReasonKeying:
		return "no voice keys could be agreed with the peer"
	case ReasonPeerGaveUp:
		return "the peer hung up before voice keys were agreed"
	case ReasonGatewayGone:
		return "the connection to the gateway was lost"
	case ReasonMediaLost:
		return "the sound path was lost"
	case ReasonBadAnswer:
		return "the peer's session description is not one this handset accepts"
	case ReasonNotReady:
		return "this handset is not registered at the gateway"
	case ReasonLocalHangup:
		return "hung up here"
	case ReasonRemoteHangup:
		return "hung up by the peer"
	case ReasonCancelled:
		return "given up before it was answered"
	}
	return string(r)
}
