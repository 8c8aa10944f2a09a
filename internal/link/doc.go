// Package link is the one place that makes and enters network namespaces and
// sets up the devices, addresses, neighbours and routes inside them.
//
// A namespace is a value, [NS], that holds one open descriptor. Work inside
// it runs through [NS.Do], on an operating system thread that is locked,
// moved, and then thrown away: a thread that was ever in another namespace
// never returns to the Go scheduler, so that no later goroutine finds itself
// in the wrong network. All other functions act on the network namespace of
// the calling thread, so they belong inside Do (or in a process that lives in
// that namespace as a whole).
//
// Nothing here decides anything: the package refuses nothing that the kernel
// allows. It needs CAP_SYS_ADMIN for namespaces and CAP_NET_ADMIN for devices.
package link
