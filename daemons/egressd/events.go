package main

import "rempart/internal/journal"

// Audit events of egressd (NIAP PP-Module for VPN Client FAU_GEN.1: changes of the
// traffic policy and refused attempts at it).
const (
	eventAttach = journal.ID("gate.attach")   // the gate is on a device, deny-all
	eventTable  = journal.ID("gate.table")    // init gave the classes that may ever be admitted
	eventSwap   = journal.ID("gate.swap")     // a gateway's classes are in force
	eventClose  = journal.ID("gate.close")    // deny-all is in force
	eventLink   = journal.ID("gate.link")     // the facts of a device's link are in force
	eventHooks  = journal.ID("levels.attach") // the level hooks are at the handset's cgroup, and refuse everything
	eventLevels = journal.ID("levels.table")  // another level table is in force
	eventRefuse = journal.ID("gate.refuse")   // someone asked for what he may not, or badly
)
