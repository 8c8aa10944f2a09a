// Init is the first process of the handset and its supervisor: PID 1, root, with every capability.
//
// What it is trusted with: making the colours (network namespaces), all link set-up, the floor, the guard, measuring every
// program before it runs, handing each daemon exactly its descriptors, and closing the phone whenever anything is wrong.
// What it holds: the TPM until keyd runs, then nothing; no key, no secret; the listening sockets of all daemons.
// What it parses: its own command line (untrusted), the signed policy, one bounded frame each from tunneld and linkd (wishes for addresses) and from watchd.
//
// When it dies the kernel kills every process of the handset; the floor stays on each device for the device's life and drops
// everything. On hardware that is a kernel panic, on the netns board a power-off.
//
// The boot is the list in flow.go. After it, one goroutine (loop.go) owns all state: deaths, wishes, device events,
// the watcher's reports and signals are its inputs, so nothing here is locked.
package main
