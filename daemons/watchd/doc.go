// Watchd is the watcher that is not the enforcer: it compares what is in force with what should be, and on any difference takes
// the radios down first and reports second.
//
// It puts nothing in force and changes nothing but one thing: a radio goes down. What should be it is told by init, in fixed
// frames over a socket pair (vpn/watch); which gateway is admitted egressd tells, and it must be a row of the signed policy's
// table. What is in force it asks the kernel for, by ids, on each of the kernel's notices (devices, traffic control, nftables,
// IPsec policy) and every 5 seconds. Egressd, which shall sleep, is asked when what is in force is not what it last said, and
// every quarter of an hour whether it lives. Beside what should be there it looks for what should
// not: a device in red that is not the tunnel's, one that is up where nobody ordered it, a program that replaces a function of ours.
//
// It lives in black as uid 906 with three capabilities:
//
//	CAP_SYS_ADMIN   BPF objects are opened by id with it alone; so are the other namespaces entered, to listen there
//	CAP_BPF         it loads its own copy of each program, never attached, to compare tags
//	CAP_NET_ADMIN   reading traffic control programs, and taking a radio down
//
// It has no network, reads no file from outside, and parses the frames of init and egressd. A watcher that is killed or stopped
// is a difference itself: init hears a beat every second and takes the radios down when two are missing. The reverse holds too:
// when init is silent, watchd takes them down.
package main
