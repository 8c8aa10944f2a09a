// Package soak swaps the gate's policy and kills the handset's daemons, thousands of times, under senders that never stop.
//
// A swap is what tunneld asks egressd for: a process in tunneld's place (netns.World.InPlaceOf) admits the signed gateway and
// closes again, with the true tunneld stopped. Behind each answer it sends one packet of the tunnel's shape to the gateway:
// those behind an admission must be seen outside, every one; those behind a close must not, none.
//
// A kill is kill -9 of a daemon while the gateway is admitted. keyd's is a restart of the handset that init asks for, init's is
// one that the lab makes: with every restart the supervisor's pauses begin anew at 20 ms, so one round of the handset kills
// each daemon once and takes two boots, and no round waits for a longer pause.
//
// All the time, from before power-on, three senders a handset try to get out: root in black, root in red, and a packet
// socket on the radio of a process that is not the handset's, so that no guard keeps it from trying. One unfiltered capture
// sees the link. The result is the number of frames outside the admitted classes and of markers seen: both must be 0.
//
// Progress is in a file, after every round: an interrupted run goes on where it was, in a new world.
package soak
