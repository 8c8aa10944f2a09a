package report

import (
	"fmt"
	"strings"

	"rempart/board/scenario/matrix"
)

// Matrix prints the matrix: senders down, states across, in each field how many rows held, and in red how many did not.
func (t *Terminal) Matrix(m *matrix.Report) error {
	var b strings.Builder
	states, senders := m.Axes[0].Values, m.Axes[1].Values
	short := abbreviations(states)
	width := 0
	for _, s := range senders {
		width = max(width, len(s))
	}
	fmt.Fprintf(&b, "\n  %-*s", width, "")
	for _, s := range states {
		fmt.Fprintf(&b, " %3s", short[s])
	}
	b.WriteByte('\n')
	cells := m.Cells()
	for _, sender := range senders {
		fmt.Fprintf(&b, "  %-*s", width, clean(sender))
		for _, s := range states {
			c := cells[matrix.CellKey{State: s, Sender: sender}]
			switch {
			case c.Rows == 0:
				b.WriteString("   " + t.paint(faint, "·"))
			case c.Good < c.Rows:
				b.WriteString(t.state(fmt.Sprintf(" %3s", fmt.Sprintf("!%d", c.Rows-c.Good)), false))
			default:
				b.WriteString(t.state(fmt.Sprintf(" %3d", c.Good), true))
			}
		}
		b.WriteByte('\n')
	}
	for _, s := range states {
		fmt.Fprintf(&b, "  %s %s;", short[s], s)
	}
	text := strings.TrimSuffix(b.String(), ";")
	head, legend := text[:strings.LastIndex(text, "\n")+1], text[strings.LastIndex(text, "\n")+1:]
	if _, err := fmt.Fprint(t.w, head+wrap(legend, 116)+"\n\n"); err != nil {
		return err
	}
	if err := t.alone(m); err != nil {
		return err
	}
	for _, f := range m.Failures {
		if _, err := fmt.Fprintf(t.w, "  %s  %s\n", t.state("FAILED", false), clean(f)); err != nil {
			return err
		}
	}
	n := m.Counts()
	_, err := fmt.Fprintf(t.w, "  %d rows of %d: %d held, %d accepted, %d failed, %d unproven, %d ran nowhere; %d layers tried alone; %.0f s\n",
		len(m.Rows), m.Of, n[matrix.Held], n[matrix.Accepted], n[matrix.Failed], n[matrix.Unproven], n[matrix.Nowhere], len(m.AloneTable().Layers), m.Seconds)
	return err
}

// alone prints what each layer holds with all others removed.
func (t *Terminal) alone(m *matrix.Report) error {
	table := m.AloneTable()
	if len(table.Layers) == 0 {
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "  %-24s", "each layer alone")
	for _, l := range table.Layers {
		fmt.Fprintf(&b, " %-9s", l)
	}
	b.WriteByte('\n')
	for _, r := range table.Rows {
		fmt.Fprintf(&b, "  %-24s", clean(r.Sender+", "+string(r.Place)))
		for _, c := range r.Cells {
			word := string(c.Word)
			cell := fmt.Sprintf(" %-9s", word)
			switch {
			case c.Wrong:
				cell = t.state(cell, false)
			case c.Word == "holds":
				cell = t.state(cell, true)
			default:
				cell = t.paint(faint, cell)
			}
			b.WriteString(cell)
		}
		b.WriteByte('\n')
	}
	_, err := fmt.Fprintln(t.w, b.String())
	return err
}

// abbreviations gives each state two or three letters of its own.
func abbreviations(states []string) map[string]string {
	out, used := map[string]string{}, map[string]bool{}
	for _, s := range states {
		a := s[:min(3, len(s))]
		if first, rest, ok := strings.Cut(s, "-"); ok {
			a = first[:1] + rest[:min(2, len(rest))]
		}
		for last := byte('a'); used[a]; last++ {
			a = a[:2] + string(last)
		}
		used[a], out[s] = true, a
	}
	return out
}

// wrap breaks text at spaces.
func wrap(text string, width int) string {
	var b strings.Builder
	col := 0
	for _, w := range strings.Fields(text) {
		if col > 0 && col+1+len(w) > width {
			b.WriteByte('\n')
			col = 0
		}
		if col == 0 {
			b.WriteByte(' ')
		}
		b.WriteString(" " + w)
		col += 1 + len(w)
	}
	return b.String()
}
