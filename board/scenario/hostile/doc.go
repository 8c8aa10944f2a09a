// Package hostile tries the attack table of kernel tunnels, redirects and thefts: a hostile process in black, first with
// CAP_NET_ADMIN alone, then with CAP_NET_RAW too, then as root with every capability.
//
// Each attempt has a small world of its own: a black namespace with one radio, the product's own floor, gate, nft table and IPsec
// default on it (and the guard over its control group), a tunnel daemon that sends all the time, and a capture at the radio's far end. Nothing else of
// a handset runs: what is shown is which layer stops what, and a kind may ruin its world.
//
// The table says for each kind and privilege what stops it: the kernel itself; floor and gate; nft and xfrm behind them; or,
// where those cannot, the guard (BPF LSM). A row proves its entry by the attempt under all layers, which must not leak, and by its twins: without the
// stopper it must leak, where anything can.
package hostile
