// Package watch is what init and watchd say to each other: one message of a SOCK_SEQPACKET socket is one frame, of a bounded
// length and a fixed form. Init says what should be in force ([Orders]); watchd says that it lives, that what it read back is as
// it should be, or what differs ([Report]). Each says a beat every [Beat]; whoever has not heard the other for longer than
// [Silence] takes the radios down.
//
// Orders come before the act that loosens what should be, and after the act that tightens it. So whatever init does itself is
// never a difference: when watchd sees its effect, the orders that allow it are in its socket, and it reads them before it
// judges.
package watch
