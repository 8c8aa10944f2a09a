// Rempart is the command on the handset, for the person who holds it: status,
// enrol, unlock, call, answer, hangup, doctor.
//
// It is trusted with nothing but the PIN while it is typed. It runs as uid 1000
// in the cgroup /shell, and every daemon decides by that what it may ask. It
// changes nothing by itself; what it shows it has asked the daemons and init for.
//
// Output is for people; --json is for programs and stays stable: fields are
// added, never renamed. The exit code is 0 when it did what was asked, 1 when not,
// 2 when the command line made no sense.
package main
