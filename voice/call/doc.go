// Package call is the life of one call as a pure state machine: it decides,
// it never acts. The agent feeds it events (what the gateway, the peer, the
// keys, the user and the clock did) and carries out the effects it returns.
//
// The promise it keeps is the one against a hot microphone (NIAP PP-Module
// VVoIP FDP_IFF.1, threat T.UNDETECTED_TRANSMISSION): audio may be open only in
// state Active, Active is reached only by the event Keyed, and Keyed is
// accepted only in state Keying. Every way out of Active carries the effect
// CloseAudio.
package call
