package main

import "rempart/internal/journal"

// The audit events of linkd.
const (
	eventLease  journal.ID = "link.lease"  // subject: device
	eventLost   journal.ID = "link.lost"   // subject: device
	eventIgnore journal.ID = "link.ignore" // subject: device; a message that could not be used
	eventSend   journal.ID = "link.send"   // subject: device
)
