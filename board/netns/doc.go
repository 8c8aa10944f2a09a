// Package netns is the board that every desk has: handsets, a gateway and a
// small internet as namespaces of this machine's kernel.
//
// # What a world is made of
//
//	keeper    one process per world, in the network namespace of "the internet": bridge br0, the internet's hosts
//	          on lo, one port radio-NAME per machine that is switched on. Owns the machines; answers on a unix socket.
//	janitor   holds the other end of a pipe to the keeper. When the keeper is gone, however it went, it removes
//	          everything. When the janitor is gone, the keeper starts another.
//	machine   a control group with two halves: hs, the handset (everything that is ever run in it), and hw, its
//	          hardware (a software TPM). The handset's first process is PID 1 of new PID, mount, UTS, IPC, network
//	          and cgroup namespaces. The board plays its firmware: it starts the TPM, measures init and the root into
//	          it, builds the read-only root and executes /bin/init. Nothing of the board runs in it after that.
//
// Nothing is named globally: no namespace is bound to a path, no device is in
// the desk's own network namespace, so worlds run side by side. What is on
// disk while a world runs is /run/rempart-lab/WORLD and the control group
// rempart-lab/WORLD; what stays is the state folder (TPMs, /state of machines).
//
// # Switching off
//
// The handset's gate is pinned in its own BPF file system. The keeper holds
// that file system open from power-on until the control group of the handset is
// empty, so that a process brought in from outside (see [World.Command]), which
// outlives init by a moment, never finds a radio without its gate.
//
// A program that uses this package must call [Stage] first thing in main: the
// keeper, the janitor, the firmware and the way in are the program itself,
// executed again.
package netns
