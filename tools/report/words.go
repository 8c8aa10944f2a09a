package report

import (
	"cmp"
	"fmt"
	"strings"

	"rempart/board/scenario"
	"rempart/board/scenario/watch"
	"rempart/boot/stage"
)

// What page and terminal say in the same words.

// title names a machine: "Handset a", "The gateway".
func title(h Handset) string {
	if h.Role == stage.Gateway {
		return "The gateway"
	}
	return "Handset " + clean(h.Name)
}

// vault explains keyd's state.
func vault(state string) string {
	switch state {
	case "capped":
		return "open, and capped: the TPM opens no key again in this boot"
	case "":
		return "not known"
	}
	return state
}

func keyLine(k Key) string {
	s := k.Kind + ", " + k.Where
	if k.Print != "" {
		s += "; " + k.Print
	}
	return s
}

func tunnelLine(h Handset) string {
	t := h.Tunnel
	s := cmp.Or(t.State, "not known")
	if t.Peer != "" {
		s += map[bool]string{true: ", reached by ", false: " to "}[h.Role == stage.Gateway] + t.Peer
	}
	if t.Endpoint != "" {
		s += " at " + t.Endpoint
	}
	if t.Handshake > 0 {
		s += fmt.Sprintf(", last handshake %.0f s ago", t.Handshake)
	}
	return s + fmt.Sprintf(", %d bytes in, %d out", t.RX, t.TX)
}

// className says what a class is to who looks from outside.
func className(c watch.ClassCount) string {
	switch c.Direction {
	case watch.Out:
		return c.Class + " to gateway"
	case watch.In:
		return c.Class + " to handset"
	}
	return c.Class
}

// pair is an attempt in both families, or one that uses both at once.
type pair struct {
	name string
	rows [2]*scenario.RowResult // IPv4, IPv6
}

// pairs joins the rows of one attempt, in the order of the first.
func pairs(rows []scenario.RowResult) []*pair {
	var out []*pair
	at := map[string]*pair{}
	for i := range rows {
		r := &rows[i]
		name, slot := r.Name, 0
		if before, ok := strings.CutSuffix(name, ", IPv4"); ok {
			name = before
		} else if before, ok := strings.CutSuffix(name, ", IPv6"); ok {
			name, slot = before, 1
		}
		p := at[name]
		if p == nil || p.rows[slot] != nil {
			p = &pair{name: name}
			at[name] = p
			out = append(out, p)
		}
		p.rows[slot] = r
		if r.Family == "both" {
			p.rows[1] = r
		}
	}
	return out
}

// state is the worse of both rows'.
func (p *pair) state() scenario.State {
	worst := scenario.Held
	for _, r := range p.rows {
		if r != nil && (r.State == scenario.Failed || worst == scenario.Held) {
			worst = r.State
		}
	}
	return worst
}

// twins says how the twins of an attempt ended, once if the same.
func (p *pair) twins() string {
	var all []string
	for _, r := range p.rows {
		if r != nil && (len(all) == 0 || all[len(all)-1] != twin(*r)) {
			all = append(all, twin(*r))
		}
	}
	return strings.Join(all, ", ")
}

// proven tells whether every twin of the attempt leaked.
func (p *pair) proven() bool {
	for _, r := range p.rows {
		if r != nil && (r.Twin.Verdict != scenario.Leaked || r.Twin.Seen == 0) {
			return false
		}
	}
	return true
}
