// Command keyd holds the TPM once init has handed it over, and serves the key
// socket.
//
// It is trusted with every secret of the handset that is not inside the TPM:
// after the PIN, the tunnel key and the storage key are in its memory. It has no
// network (a network namespace of its own with nothing in it, and no IP sockets
// by seccomp), no capability, and one writable folder.
//
// It inherits `tpm`, the stream to the TPM, and `keyd`, the listening socket.
// Its memory is locked and never dumped. When it dies, what it held is gone, and
// the TPM will not open the boot secrets again in this boot: init closes the
// phone and restarts the handset. When the TPM is gone it says so and ends.
package main
