package matrix

import "rempart/board/scenario/attack"

// Rule excludes rows that make no sense.
type Rule struct {
	// Reason is why, for a person.
	Reason string `json:"reason"`
	// Rows is how many rows it excludes that no rule before it did.
	Rows int `json:"rows"`

	excludes func(Row, Sender) bool
}

// rules are looked at in their order.
func rules() []Rule {
	return []Rule{
		{Reason: "what is sent to loopback ends in the handset: no twin could leak", excludes: func(r Row, _ Sender) bool { return r.Device == Loopback }},
		{Reason: "a known second device is not tried here: a twin would have to be stripped of its layers too (docs/known-limits.md)", excludes: func(r Row, _ Sender) bool { return r.Device == Modem }},
		{Reason: "a sender that names no device goes where the route leads: to the radio or the tunnel, never to a device without a route",
			excludes: func(r Row, s Sender) bool { return !s.names && r.Device != Radio }},
		{Reason: "only red has the tunnel's device", excludes: func(r Row, _ Sender) bool { return r.Device == Tunnel && r.Place != Red }},
		{Reason: "a device that nobody knows is in init's namespace and nowhere else",
			excludes: func(r Row, _ Sender) bool { return (r.Device == Unknown) != (r.Place == Init) }},
		{Reason: "a device that nobody knows has no address: only what needs none is tried on it",
			excludes: func(r Row, s Sender) bool { return r.Device == Unknown && !s.linkOnly }},
		{Reason: "a device that appears is taken where it is born", excludes: func(r Row, s Sender) bool { return s.Kind == attack.Hotplug && r.Device != Unknown }},
		{Reason: "apps live in red", excludes: func(r Row, _ Sender) bool { return r.As == App && r.Place != Red }},
		{Reason: "entering init's namespace or making one takes root", excludes: func(r Row, _ Sender) bool {
			return r.As != Root && (r.Place == Init || r.Place == New)
		}},
		{Reason: "the kernel itself asks for a capability: a sender without one shows no layer of ours",
			excludes: func(r Row, s Sender) bool { return r.As != Root && (s.crafted || s.root) }},
		{Reason: "the tunnel's inner addresses are red's", excludes: func(r Row, s Sender) bool { return s.Name == "inner" && r.Place != Red }},
		{Reason: "a passed socket belongs to the namespace of its opener, which a namespace made by the sender is not",
			excludes: func(r Row, s Sender) bool { return s.Kind == attack.Passed && r.Place == New }},
		{Reason: "what the link alone carries (groups, broadcast, foreign frames) is not forwarded out of a namespace behind black",
			excludes: func(r Row, s Sender) bool { return r.Place == New && !forwarded(s) }},
		{Reason: "the kernel was not seen to send an MLD report on a radio that the lab sets up (a twin's in red, any before the boot has come that far): no twin leaks",
			excludes: func(r Row, s Sender) bool {
				return s.Kind == attack.Membership && r.Family == attack.IPv6 && (r.Place == Red || r.Place == Black && r.State == GateOnly)
			}},
		{Reason: "no app's control group and no tunnel device exists before the boot has come that far", excludes: func(r Row, _ Sender) bool {
			return r.State == GateOnly && (r.As == App || r.Device == Tunnel)
		}},
	}
}

// forwarded says that a router passes on what the sender sends.
func forwarded(s Sender) bool {
	switch s.Kind {
	case attack.Multicast, attack.LLMNR, attack.Membership, attack.Broadcast, attack.VLAN, attack.EtherType, attack.ARP:
		return false
	}
	return true
}

// Excluded returns why a row is not tried, or "".
func Excluded(r Row) string {
	s, ok := senderOf(r.Sender)
	if !ok {
		return "no such sender"
	}
	for _, rule := range rules() {
		if rule.excludes(r, s) {
			return rule.Reason
		}
	}
	return ""
}

// All returns every row that makes sense for a handset with these daemons, and
// the rules with what each excluded.
func All(daemons []string) ([]Row, []Rule) {
	var rows []Row
	list := rules()
	senders := Senders()
	for _, state := range States(daemons) {
		for _, s := range senders {
			for _, family := range []attack.Family{attack.IPv4, attack.IPv6} {
				for _, place := range []Place{Red, Black, Init, New} {
					for _, as := range []As{App, User, Root} {
						for _, device := range []Device{Radio, Tunnel, Unknown, Modem, Loopback} {
							r := Row{state, s.Name, family, place, as, device}
							if i := excludedBy(list, r, s); i >= 0 {
								list[i].Rows++
							} else {
								rows = append(rows, r)
							}
						}
					}
				}
			}
		}
	}
	return rows, list
}

func excludedBy(list []Rule, r Row, s Sender) int {
	for i, rule := range list {
		if rule.excludes(r, s) {
			return i
		}
	}
	return -1
}
