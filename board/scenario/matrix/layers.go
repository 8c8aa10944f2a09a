package matrix

import (
	"slices"

	"rempart/board/scenario"
)

// Applies says whether a layer is in the way of senders of the row's place at
// all. Where it is not it is not tried alone: the table shows a dash.
func Applies(l scenario.Layer, r Row) bool {
	switch l {
	case scenario.Jail:
		return r.Place == Red
	case scenario.Gate, scenario.Floor, scenario.NFT, scenario.Routes:
		return r.Place == Black || r.Place == New
	case scenario.XFRM:
		return r.Place != Init
	case scenario.Hooks:
		// Shown beside the guard, which nothing takes away inside the handset's
		// control group: only where the guard alone does not hold.
		return r.Place == Black && !Holds(scenario.Guard, r)
	case scenario.Newborn:
		// Init takes down what root has brought up: whether what passes its floor by
		// is faster is chance.
		return r.Place == Init && !slices.Contains(below, r.Sender)
	}
	return true
}

// Keeps returns what a twin keeps that shows a layer alone: the layer, and for the
// hooks the guard.
func Keeps(l scenario.Layer) []scenario.Layer {
	if l == scenario.Hooks {
		return []scenario.Layer{scenario.Hooks, scenario.Guard}
	}
	return []scenario.Layer{l}
}

// Holds says whether a layer alone, with all others removed, holds a row back.
// It is the table of DESIGN.md §1, by row: what a layer does not stop is written
// here as well, and both are tried. The guard is that of system calls.
func Holds(l scenario.Layer, r Row) bool {
	s, ok := senderOf(r.Sender)
	if !ok {
		return false
	}
	frames := s.linkOnly && s.Name != "hotplug"
	forwarded := r.Place == New // a frame out of a namespace behind black is black's packet
	switch l {
	case scenario.Jail:
		return r.Place == Red
	case scenario.Gate, scenario.Floor:
		// Below traffic control: the bypass, AF_XDP.
		return forwarded || r.Place == Black && !slices.Contains(below, s.Name)
	case scenario.NFT:
		return forwarded || r.Place == Black && s.Name != "xdp"
	case scenario.XFRM:
		// No policy is asked for frames; what is for a gateway's tunnel, and red's
		// for the inner networks, is admitted.
		tunnelled := r.Place == Black && (s.port == tunnel || s.port == imposing) || s.To == scenario.Inner
		return forwarded || (r.Place == Red || r.Place == Black) && !frames && !tunnelled
	case scenario.Routes:
		// What names device and group asks for no route, and the gateways have one.
		return (forwarded || r.Place == Black && !frames) && (s.To == scenario.Host || s.To == scenario.Resolver)
	case scenario.Hooks:
		// A passed socket has its opener's control group.
		return r.Place == Black && s.Name != "passed"
	case scenario.Guard:
		// Foreign sockets and the kernel's own are not the handset's. In black the
		// radio is a known device; elsewhere a device is known or silent.
		switch {
		case s.Name == "passed" || s.Name == "membership":
			return false
		case r.Place == Black:
			return frames || s.Name == "io_uring"
		}
		return true
	case scenario.Newborn:
		return r.Place == Init
	}
	return false
}

// below are the senders that pass traffic control by.
var below = []string{"packet-bypass", "xdp", "passed"}

// stops are the layers that hold the row, each alone.
func stops(layers []scenario.Layer, r Row) []scenario.Layer {
	held := []scenario.Layer{}
	for _, l := range layers {
		if Applies(l, r) && Holds(l, r) {
			held = append(held, l)
		}
	}
	return held
}
