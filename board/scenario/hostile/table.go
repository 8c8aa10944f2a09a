package hostile

import (
	"slices"

	"rempart/board/scenario/attack"
)

// Privilege is what the hostile process may do.
type Privilege string

// The privileges.
const (
	Admin Privilege = "CAP_NET_ADMIN"                  // uid 1000
	Raw   Privilege = "CAP_NET_ADMIN and CAP_NET_RAW"  // uid 1000
	Root  Privilege = "root with all its capabilities" // uid 0
)

// Privileges are in rising order.
func Privileges() []Privilege { return []Privilege{Admin, Raw, Root} }

// Layers is what is there in one attempt.
type Layers string

// The sets of layers, each with those before it.
const (
	None   Layers = "nothing"
	Gate   Layers = "floor and gate"
	Packet Layers = "nft and xfrm too"
	All    Layers = "the guard too"
)

// Stopper is what stops an attempt.
type Stopper string

// The stoppers.
const (
	Kernel     Stopper = "kernel"     // this privilege is not enough, whatever the layers
	ByGate     Stopper = "gate"       // floor and gate alone
	ByBackstop Stopper = "nft, xfrm"  // not floor and gate, but the layers behind them
	ByGuard    Stopper = "guard"      // no packet layer sees it, or it is stripped of them
	NoWay      Stopper = "no way out" // it ruins the radio, and nothing can come out
)

// entry is one row of the table.
type entry struct {
	kind attack.Kind
	by   [3]Stopper // by privilege
}

func table() []entry {
	gate := [3]Stopper{ByGate, ByGate, ByGate}
	guard := [3]Stopper{ByGuard, ByGuard, ByGuard}
	return []entry{
		{attack.OwnWireGuard, gate},
		{attack.OwnESP, gate},
		{attack.OwnESPinUDP, gate},
		{attack.FOU, gate},
		{attack.FOURedirect, gate},
		{attack.Redirect, gate},
		{attack.Forwarded, gate},
		{attack.Pedit, guard},
		{attack.NftForward, gate},
		{attack.NftDuplicate, gate},
		{attack.Bridged, gate},
		{attack.MACVLAN, gate},
		{attack.IPVLAN, gate},
		{attack.VLANDevice, gate},
		{attack.PktGen, [3]Stopper{Kernel, Kernel, ByGuard}},
		{attack.OtherNetns, [3]Stopper{Kernel, Kernel, ByGate}},
		{attack.Moved, gate},
		{attack.NoFloor, gate},
		{attack.Recreated, [3]Stopper{NoWay, NoWay, NoWay}},
		{attack.Detached, [3]Stopper{ByGate, ByGate, ByGuard}},
		{attack.Joined, [3]Stopper{Kernel, Kernel, ByGuard}},
		{attack.Stolen, [3]Stopper{Kernel, Kernel, ByGuard}},
		{attack.IoctlSet, gate},
		{attack.PFKey, [3]Stopper{NoWay, NoWay, NoWay}},
		{attack.UDP, gate},
		{attack.Mark, gate},
		{attack.URing, gate},
		{attack.Raw, [3]Stopper{Kernel, ByGate, ByGate}},
		{attack.Impostor, [3]Stopper{Kernel, ByGate, ByGate}},
		{attack.Packet, [3]Stopper{Kernel, ByGate, ByGate}},
		{attack.PacketBypass, [3]Stopper{Kernel, ByBackstop, ByBackstop}},
		{attack.PacketRing, [3]Stopper{Kernel, ByGate, ByGate}},
		{attack.XDP, [3]Stopper{Kernel, ByGuard, ByGuard}},
	}
}

// Cell is one kind at one privilege over one family.
type Cell struct {
	Kind      attack.Kind
	Privilege Privilege
	Family    attack.Family
	Stopper   Stopper
}

// Cells is the whole table.
func Cells() []Cell {
	var all []Cell
	for _, e := range table() {
		for i, p := range Privileges() {
			for _, f := range []attack.Family{attack.IPv4, attack.IPv6} {
				all = append(all, Cell{e.kind, p, f, e.by[i]})
			}
		}
	}
	return all
}

// layers are the sets that a cell is tried under, and whether it must leak there.
func (c Cell) layers() (sets []Layers, leaks []bool) {
	switch c.Stopper {
	case Kernel, NoWay:
		return []Layers{None, All}, []bool{false, false}
	case ByBackstop:
		return []Layers{Gate, Packet, All}, []bool{true, false, false}
	case ByGuard:
		return []Layers{Packet, All}, []bool{true, false}
	}
	return []Layers{None, Gate, All}, []bool{true, false, false}
}

// Named returns the cells of one kind and privilege.
func Named(kind attack.Kind, p Privilege) []Cell {
	return slices.DeleteFunc(Cells(), func(c Cell) bool { return c.Kind != kind || c.Privilege != p })
}
