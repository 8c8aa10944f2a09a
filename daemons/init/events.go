package main

import "rempart/internal/journal"

// The audit events of init.
const (
	eventStep    journal.ID = "boot.step"       // subject: step
	eventMeasure journal.ID = "boot.measure"    // subject: what was extended
	eventStart   journal.ID = "daemon.start"    // subject: daemon
	eventDeath   journal.ID = "daemon.death"    // subject: daemon
	eventClose   journal.ID = "phone.close"     // subject: why
	eventOpen    journal.ID = "phone.release"   // the policy's classes may be admitted again
	eventDevice  journal.ID = "device.appeared" // subject: device
	eventGone    journal.ID = "device.gone"     // subject: device
	eventReread  journal.ID = "gate.readback"   // subject: device
	eventWish    journal.ID = "tunnel.address"  // subject: address
	eventLease   journal.ID = "link.address"    // subject: device
	eventEnd     journal.ID = "phone.end"       // subject: how
	eventWatch   journal.ID = "watch.state"     // subject: watchd
	eventGuard   journal.ID = "guard.install"
	eventLayer   journal.ID = "backstop.layer" // subject: layer
	eventLimit   journal.ID = "process.limit"  // subject: limit
)
