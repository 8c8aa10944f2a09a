package main

import "rempart/internal/journal"

// Audit events of watchd.
const (
	eventDifference = journal.ID("watch.difference") // what is in force is not what should be; the radios are down
	eventSilence    = journal.ID("watch.silence")    // init says nothing; the radios are down
	eventNoAnswer   = journal.ID("watch.noanswer")   // egressd says nothing
	eventGood       = journal.ID("watch.good")       // for the first time, or again: all is as it should be
	eventLower      = journal.ID("watch.lower")      // subject: device that was taken down
)
