package report

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

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
	faint = "\x1b[2m"
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

// clean keeps control characters of foreign text off the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

// Line prints one line of plain text.
func (t *Terminal) Line(text string) error {
	_, err := fmt.Fprintln(t.w, "  "+clean(text))
	return err
}

// Step prints one line as it happens: when it ended, who, what, and how long
// it took if that is worth telling.
func (t *Terminal) Step(s Step) error {
	detail := clean(s.Detail)
	if !s.OK {
		detail = t.state("FAILED", false) + "  " + detail
	}
	if s.Took >= 100 {
		detail += t.paint(faint, fmt.Sprintf("  (%.1f s)", s.Took/1000))
	}
	_, err := fmt.Fprintf(t.w, "%7.2f s  %-10s %s\n", (s.Start+s.Took)/1000, clean(s.Name), detail)
	return err
}

// Row prints one row of the leak test as it ends.
func (t *Terminal) Row(r scenario.RowResult) error {
	verdict := string(r.Verdict)
	if r.Detail != "" {
		verdict += " (" + clean(r.Detail) + ")"
	}
	_, err := fmt.Fprintf(t.w, "%11s%s  %-60s %-28s twin %s\n", "", t.rowState(r), clean(r.Name), verdict, twin(r))
	return err
}

func (t *Terminal) rowState(r scenario.RowResult) string {
	return t.state(fmt.Sprintf("%-8s", r.State), r.State == scenario.Held)
}

func twin(r scenario.RowResult) string {
	if r.Twin.Verdict == "" {
		return "not run"
	}
	return string(r.Twin.Verdict)
}

// board is the whole summary being printed.
type board struct {
	*Terminal
	b bytes.Buffer
}

// Board prints the whole summary.
func (t *Terminal) Board(s *Summary) error {
	b := &board{Terminal: t}
	for _, h := range s.Handsets {
		b.handset(h)
	}
	if s.Leaks != nil {
		b.leaks(s.Leaks)
	}
	if s.Call != nil {
		b.call(s.Call)
	}
	if s.Outside != nil {
		b.outside(s.Outside)
	}
	b.statistics(s.Statistics)
	b.verdict(s)
	_, err := t.w.Write(b.b.Bytes())
	return err
}

func (b *board) head(format string, args ...any) {
	fmt.Fprintf(&b.b, "\n%s\n", b.paint(bold, fmt.Sprintf(format, args...)))
}

func (b *board) line(name, format string, args ...any) {
	name = clean(name)
	fmt.Fprintf(&b.b, "  %s%s %s\n", name, strings.Repeat(" ", max(0, 18-utf8.RuneCountInString(name))), fmt.Sprintf(format, args...))
}

// word says yes or NO, painted.
func (b *board) word(ok bool) string { return b.state(mark(ok), ok) }

func (b *board) handset(h Handset) {
	b.head("%s", title(h))
	b.line("TPM", "%s; endorsement key certified by %s", clean(h.TPM.Manufacturer), clean(h.TPM.EKIssuer))
	open := h.TPM.Vault == "open" || h.TPM.Vault == "capped"
	b.line("keystore", "%s; %d PIN tries left", b.state(clean(vault(h.TPM.Vault)), open), h.TPM.Tries)
	for _, k := range h.TPM.Keys {
		b.line(k.Name, "%s", clean(keyLine(k)))
	}
	b.line("measured", "%d items before use; the log replays: %s; as predicted from the image: %s", len(h.Measured), b.word(h.LogReplays), b.word(h.Predicted))
	b.line("gate", "on %s; in force, read back from the kernel: %s; drop-all floor under it: %s", clean(h.Gate.Device), b.word(h.Gate.InForce), b.word(h.Gate.Floor))
	for _, d := range h.Gate.ReadBack {
		b.line("", "%s", b.state(clean(d), false))
	}
	b.line("", "%s; %d frames passed, dropped: %s", clean(h.Gate.Policy), h.Gate.Passed, clean(drops(h.Gate.Drops)))
	b.line("tunnel", "%s", b.state(clean(tunnelLine(h)), h.tunnelGood()))
	b.doctor(h.Doctor)
}

func (b *board) doctor(all []Finding) {
	if len(all) == 0 {
		return
	}
	good := 0
	for _, f := range all {
		if f.OK {
			good++
		}
	}
	b.line("doctor", "%d of %d checks good", good, len(all))
	for _, f := range all {
		if !f.OK {
			b.line("", "%s: %s", b.state("WRONG "+clean(f.Promise), false), clean(f.Why))
		}
	}
}

func (b *board) leaks(l *scenario.LeakReport) {
	b.head("Leak test: every way out of a handset, and the same in a twin without the layers that stop it")
	fmt.Fprintf(&b.b, "  %-8s  %-60s %-11s %-11s %s\n", "", "", "IPv4", "IPv6", "in the twin")
	for _, p := range pairs(l.Rows) {
		cell := func(i int) string {
			if p.rows[i] == nil {
				return fmt.Sprintf("%-11s", "")
			}
			return b.state(fmt.Sprintf("%-11s", p.rows[i].Verdict), p.rows[i].State != scenario.Failed)
		}
		state := p.state()
		fmt.Fprintf(&b.b, "  %s  %-60s %s %s %s\n", b.state(fmt.Sprintf("%-8s", state), state == scenario.Held),
			clean(p.name), cell(0), cell(1), b.state(p.twins(), p.proven()))
	}
	b.line("together", "%s", b.state(clean(LeakLine(l)), l.Passed))
}

func (b *board) call(c *Call) {
	b.head("Call from %s to %s", clean(c.From), clean(c.To))
	b.line("level", "%s", clean(c.Level))
	same := c.SASFrom == c.SASTo && c.SASFrom != ""
	b.line("check word (SAS)", "%s shows %s, %s shows %s: %s", clean(c.From), clean(c.SASFrom), clean(c.To), clean(c.SASTo),
		b.state(map[bool]string{true: "the same", false: "DIFFERENT"}[same], same))
	b.line("set-up", "%s ms from dialling to the first decoded audio", number(c.DialToMS))
	for _, w := range c.Ways {
		b.line(w.From+" to "+w.To, "%s", b.state(WayLine(w), (w.BoundMS == 0 || w.OneWayMS <= w.BoundMS) && !w.Unheard && w.Received > 0))
	}
}

func (b *board) outside(o *Outside) {
	b.head("What an outsider saw on the internet link")
	for _, c := range o.Classes {
		b.line(className(c), "%7d frames %10d bytes   %s", c.Frames, c.Bytes, sizes(c))
	}
	if o.Shape != nil {
		b.line("the call's shape", "%s %% of %d frames are %d bytes long, one every %s ms: speech and silence look alike", number(100*o.Shape.MainShare), o.Shape.Frames, o.Shape.MainSize, number(o.Shape.PeriodMedianMS))
	}
	b.line("together", "%s", b.state(fmt.Sprintf("%d of %d frames outside the admitted classes", o.Outside, o.Frames), o.Outside == 0))
	for _, n := range o.Notes {
		b.line("", "%s", clean(n))
	}
}

func (b *board) statistics(all []Statistic) {
	if len(all) == 0 {
		return
	}
	b.head("Times")
	for _, st := range all {
		v := strip(st)
		bound := ""
		if v.Limit != "" {
			bound = ", " + v.Limit
		}
		fmt.Fprintf(&b.b, "  %-52s %s%s\n", clean(st.Name), b.state(v.Value, st.OK), bound)
	}
}

func (b *board) verdict(s *Summary) {
	fmt.Fprintln(&b.b)
	if s.Passed {
		fmt.Fprintf(&b.b, "%s, in %s s.\n", b.state("Every promise that this run tested was kept", true), number(s.Seconds))
		return
	}
	fmt.Fprintf(&b.b, "%s\n", b.state(fmt.Sprintf("%d promises not kept:", len(s.Failures)), false))
	for _, f := range s.Failures {
		fmt.Fprintf(&b.b, "  - %s\n", clean(f))
	}
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
