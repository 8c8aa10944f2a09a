// Egressd puts the gate on black devices and changes what it admits, and puts the
// level hooks on the handset's cgroup and changes their table.
//
// It is trusted with CAP_NET_ADMIN and CAP_BPF in the black namespace, and with
// nothing else: no file but its pins, no key, no network, no parser of policies or
// JSON. It holds the table of classes that init gave it; tunneld can only name a
// gateway of that table, or close.
//
//	init (uid 0, cgroup /init)           table, attach, levels, close, status
//	tunneld (uid 903, cgroup /tunneld)   admit, close, status
//	anyone                               status, drops
//
// When it stops on SIGTERM it leaves deny-all. When it is killed, the gate stays as
// it was, held by its pins; init then severs it, and the floor drops everything. A
// new egressd denies all on every device whose pins it finds, and empties the level
// table, before it answers.
package main
