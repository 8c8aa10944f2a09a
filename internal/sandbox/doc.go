// Package sandbox takes rights away, exactly or not at all: a sandbox that cannot be applied as asked stops the daemon.
//
// There are three parts. Start begins a daemon with precisely the namespace, uid, capabilities, cgroup and descriptors that
// are named. Enter is a daemon's first act: it checks that it holds those capabilities and no others, and gives up every
// system call that its profile does not list. BecomeApp is for a person's programs, which may be any: no privilege, and no way
// to a packet socket or a namespace of their own. Package guard below has what holds for a whole handset.
package sandbox
