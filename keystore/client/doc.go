// Package client asks keyd, over its unix socket, for the few things a process
// of the handset may have of the keystore: a signature by the identity key, the
// tunnel key, sealing, and the state of the vault. It holds no TPM and no key
// except the tunnel key's bytes, when it is tunneld that asks.
//
// Who may ask what is decided by keyd from the peer's cgroup and uid, at each
// request; a refusal is ErrRefused. The socket is a local one: the kernel
// carries the bytes, nothing protects them from root in the handset's
// namespaces.
package client
