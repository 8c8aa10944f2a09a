package report

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"rempart/board/scenario"
)

// Terminal prints to a person's screen. Colour is only ever added to words.
type Terminal struct {
	w     io.Writer
	color bool
}

// NewTerminal prints to w, in colour if it is a terminal and NO_COLOR is unset
// (no-color.org).
func NewTerminal(w io.Writer) *Terminal {
	t := &Terminal{w: w}
	if f, ok := w.(*os.File); ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		t.color = err == nil
	}
	return t
}

// The escapes of ECMA-48, SGR.
const (
	bold  = "\x1b[1m"
	green = "\x1b[32m"
	red   = "\x1b[31m"
	plain = "\x1b[0m"
)

func (t *Terminal) paint(style, s string) string {
	if !t.color {
		return s
	}
	return style + s + plain
}

func (t *Terminal) state(word string, good bool) string {
	if good {
		return t.paint(green, word)
	}
	return t.paint(bold+red, word)
}

// Step prints one line as it happens.
func (t *Terminal) Step(s Step) error {
	word := t.state("ok    ", true)
	if !s.OK {
		word = t.state("FAILED", false)
	}
	_, err := fmt.Fprintf(t.w, "%8.2f s  %s  %-44s %9s  %s\n", (s.Start+s.Took)/1000, word, clean(s.Name), number(s.Took)+" ms", clean(s.Detail))
	return err
}

// Row prints one row of the leak test as it ends.
func (t *Terminal) Row(r scenario.RowResult) error {
	_, err := io.WriteString(t.w, t.row(r))
	return err
}

func (t *Terminal) row(r scenario.RowResult) string {
	state := t.state(fmt.Sprintf("%-8s", r.State), r.State == scenario.Held)
	twin := string(r.Twin.Verdict)
	if twin == "" {
		twin = "none"
	}
	return fmt.Sprintf("  %s  %-62s %-9s %-20s twin %s\n", state, clean(r.Name), r.Verdict, clean(r.Detail), twin)
}

// clean keeps control characters of foreign text off the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

// Board prints the whole summary.
func (t *Terminal) Board(s *Summary) error {
	var b bytes.Buffer
	head := func(title string) { fmt.Fprintf(&b, "\n%s\n", t.paint(bold, title)) }
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-18s %s\n", clean(name), fmt.Sprintf(format, args...))
	}
	for _, h := range s.Handsets {
		t.handset(h, head, line)
	}
	if s.Leaks != nil {
		head("Leak test")
		for _, r := range s.Leaks.Rows {
			b.WriteString(t.row(r))
		}
		line("", "%s", leakLine(s.Leaks))
	}
	if c := s.Call; c != nil {
		head(fmt.Sprintf("Call %s → %s", clean(c.From), clean(c.To)))
		line("level", "%s", clean(c.Level))
		line("SAS", "%s and %s  %s", clean(c.SASFrom), clean(c.SASTo), t.state(map[bool]string{true: "the same", false: "DIFFERENT"}[c.SASFrom == c.SASTo], c.SASFrom == c.SASTo))
		line("dial → audio", "%s ms", number(c.DialToMS))
		for _, w := range c.Ways {
			line(w.From+" → "+w.To, "%s, %d sent, %d received, %d lost (%s %%)%s", t.state(number(w.OneWayMS)+" ms one way", w.BoundMS == 0 || w.OneWayMS <= w.BoundMS),
				w.Sent, w.Received, w.Lost, number(100*w.Loss()), quality(w))
		}
	}
	if o := s.Outside; o != nil {
		head("What an outsider saw on the internet link")
		for _, c := range o.Classes {
			line(strings.TrimSpace(c.Class+" "+string(c.Direction)), "%6d frames  %9d bytes  %s", c.Frames, c.Bytes, sizes(c))
		}
		line("outside", "%s", t.state(fmt.Sprintf("%d frames of no admitted class, of %d", o.Outside, o.Frames), o.Outside == 0))
		if o.Shape != nil {
			line("shape of the call", "%s %% of frames are %d B, one every %s ms", number(100*o.Shape.MainShare), o.Shape.MainSize, number(o.Shape.PeriodMedianMS))
		}
	}
	if len(s.Statistics) > 0 {
		head("Over many runs")
		for _, st := range s.Statistics {
			v := strip(st)
			line("", "%s  %s: %s (%d samples, %s)", t.state(map[bool]string{true: "ok  ", false: "OVER"}[st.OK], st.OK), clean(st.Name), v.Value, len(st.Samples), v.Limit)
		}
	}
	fmt.Fprintln(&b)
	if s.Passed {
		fmt.Fprintf(&b, "%s in %s s\n", t.state("Every promise that this run tested was kept", true), number(s.Seconds))
	} else {
		fmt.Fprintf(&b, "%s\n", t.state(fmt.Sprintf("%d promises not kept:", len(s.Failures)), false))
		for _, f := range s.Failures {
			fmt.Fprintf(&b, "  - %s\n", clean(f))
		}
	}
	_, err := t.w.Write(b.Bytes())
	return err
}

func (t *Terminal) handset(h Handset, head func(string), line func(string, string, ...any)) {
	head(fmt.Sprintf("%s (%s)", clean(h.Name), clean(h.Role)))
	line("TPM", "%s, EK of %s, vault %s, %d PIN tries left", clean(h.TPM.Manufacturer), clean(h.TPM.EKIssuer), t.state(clean(h.TPM.Vault), h.TPM.Vault == "open" || h.TPM.Vault == "capped"), h.TPM.Tries)
	for _, k := range h.TPM.Keys {
		line(k.Name, "%s, %s %s", clean(k.Kind), clean(k.Where), clean(k.Print))
	}
	line("measured", "%d entries, replay %s, predicted %s", len(h.Measured), t.state(mark(h.LogReplays), h.LogReplays), t.state(mark(h.Predicted), h.Predicted))
	gate := "the kernel is the policy"
	if len(h.Gate.ReadBack) > 0 {
		gate = strings.Join(h.Gate.ReadBack, "; ")
	}
	line("gate on "+h.Gate.Device, "floor %s, in force %s, %s: %s", t.state(mark(h.Gate.Floor), h.Gate.Floor), t.state(mark(h.Gate.InForce), h.Gate.InForce),
		clean(h.Gate.Policy), t.state(clean(gate), len(h.Gate.ReadBack) == 0))
	line("", "%d passed, dropped: %s", h.Gate.Passed, clean(drops(h.Gate.Drops)))
	line("tunnel", "%s, %s %s, last handshake %s s ago", t.state(clean(h.Tunnel.State), h.Tunnel.State == "up"), clean(h.Tunnel.Peer), clean(h.Tunnel.Endpoint), number(h.Tunnel.Handshake))
}

func quality(w Way) string {
	if w.Quality == nil {
		return ""
	}
	return fmt.Sprintf(", quality %s of 100 (segmental SNR %s dB)", number(w.Quality.Score), number(w.Quality.SegmentalSNR))
}

// WayLine is one direction of a call in words.
func WayLine(w Way) string {
	var s []string
	if w.OneWayMS > 0 {
		s = append(s, number(w.OneWayMS)+" ms from mouth to ear")
	}
	s = append(s, fmt.Sprintf("%d of %d packets lost (%s %%)", w.Lost, w.Sent, number(100*w.Loss())))
	if w.Quality != nil {
		s = append(s, fmt.Sprintf("quality %s of 100", number(w.Quality.Score)))
	}
	if w.Note != "" {
		s = append(s, clean(w.Note))
	}
	return strings.Join(s, ", ")
}
