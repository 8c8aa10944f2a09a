package main

import "rempart/internal/journal"

// Audit events of the tunnel (FAU_GEN.1/VPN: SA up, down and failures).
const (
	eventState = journal.ID("tunnel.state") // every change of state: was, now, why
	eventPeers = journal.ID("tunnel.peers") // a gateway's set of peers was replaced, or not
	eventFault = journal.ID("tunnel.fault") // the state machine met what it cannot meet
)
