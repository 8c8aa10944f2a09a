package matrix

import (
	"rempart/board/scenario"
)

// Holds says whether a layer alone, with all others removed, holds a row back.
// It is the table of DESIGN.md §1, by row: what a layer does not stop is written
// here as well, and both are tried.
func Holds(l scenario.Layer, r Row) bool {
	s, ok := senderOf(r.Sender)
	if !ok {
		return false
	}
	switch l {
	case scenario.Jail:
		return r.Place == Red
	case scenario.Gate, scenario.Floor:
		return (r.Place == Black || r.Place == New) && !below(s)
	case scenario.Guard:
		return s.crafted
	}
	return false
}

// below says that the sender reaches the driver below every traffic control hook.
func below(s Sender) bool { return s.Name == "packet-bypass" || s.Name == "xdp" || s.Name == "passed" }

// stops are the layers that hold the row, each alone.
func stops(layers []scenario.Layer, r Row) []scenario.Layer {
	held := []scenario.Layer{}
	for _, l := range layers {
		if Holds(l, r) {
			held = append(held, l)
		}
	}
	return held
}
