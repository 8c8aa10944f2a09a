package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"rempart/board/netns"
	"rempart/board/scenario"
	"rempart/internal/run"
	"rempart/tools/lab/bringup"
	"rempart/tools/lab/leak"
	"rempart/tools/lab/talk"
	"rempart/tools/report"
)

// World is the demo's world, so that it disturbs no other.
const World = "demo"

const (
	talkSeconds = 6
	// oneWayMS is the promise for mouth to ear, jitter buffer included.
	oneWayMS = 80
	// dialMS is the promise for dialling to the first decoded audio.
	dialMS = 1000
	// powerGrace is how long a machine gets to go off in order.
	powerGrace = 3 * time.Second
	// registered is how long both handsets get to be ready for the call.
	registered = 20 * time.Second
)

// Options say how to run the demo. The zero value of each is its default.
type Options struct {
	Out      string // folder of what it writes; required
	World    string // "" means World
	Handsets int    // 0 means 2, which is the least
	Bin      string // folder of the daemons; "" means that of this program
	Keep     bool   // leave the world running
	Machine  string // kernel and processors, for the reader of the figures
}

// show is one run.
type show struct {
	o     Options
	out   string // absolute
	t     *report.Terminal
	start time.Time
	w     *netns.World

	mu sync.Mutex // guards sum and the terminal: bring-up tells from several goroutines
	// sum is what the run has shown so far.
	sum report.Summary
	err error // of the terminal: nobody reads any more
}

// Run runs the demo and prints it. The error is either of a run that could
// not be made, or lists the promises that were not kept.
func Run(ctx context.Context, o Options, to io.Writer) (err error) {
	s, err := newShow(o, to)
	if err != nil {
		return err
	}
	up := bringup.Options{State: filepath.Join(s.out, "state"), Handsets: s.o.Handsets, Bin: s.o.Bin}
	if up, err = up.Complete(); err != nil {
		return err
	}
	if s.w, err = netns.Start(ctx, s.o.World, up.State); err != nil {
		return err
	}
	kept := false
	defer func() {
		if kept {
			return
		}
		err = s.takeDown(ctx, err)
	}()
	if err := s.run(ctx, up); err != nil {
		return err
	}
	if o.Keep {
		if err := errors.Join(s.w.Keep(ctx), s.w.Release()); err != nil {
			return err
		}
		kept = true
	}
	if !s.sum.Passed {
		return run.Hint(fmt.Errorf("promises not kept: %d, listed above", len(s.sum.Failures)),
			"%s shows them with what was seen", filepath.Join(o.Out, "report.html"))
	}
	return nil
}

// takeDown removes the world, and after an interruption what the run wrote.
func (s *show) takeDown(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = errors.New("interrupted: everything was taken down again")
	}
	hint := run.HintOf(err)
	err = errors.Join(err, s.w.Release(), netns.Down(context.WithoutCancel(ctx), s.o.World))
	if ctx.Err() != nil {
		err = errors.Join(err, clear(s.out))
	}
	if hint != "" {
		err = run.Hint(err, "%s", hint)
	}
	return err
}

func newShow(o Options, to io.Writer) (*show, error) {
	if o.World == "" {
		o.World = World
	}
	if o.Handsets == 0 {
		o.Handsets = 2
	}
	if o.Handsets < 2 {
		return nil, run.Hint(errors.New("cannot show a call with one handset"), "--handsets 2 or more")
	}
	// First of all: a refusal must not cost the results of an earlier run.
	if err := netns.Need(); err != nil {
		return nil, err
	}
	out, err := filepath.Abs(o.Out)
	if err != nil {
		return nil, fmt.Errorf("cannot use %s: %w", o.Out, err)
	}
	if err := prepare(out); err != nil {
		return nil, err
	}
	s := &show{o: o, out: out, t: report.NewTerminal(to), start: time.Now()}
	s.sum.Made, s.sum.Machine = s.start, o.Machine
	return s, nil
}

// run makes everything happen. Its error is of a run that cannot be told
// about; a promise that breaks is a failed step, and the run goes on.
func (s *show) run(ctx context.Context, up bringup.Options) error {
	capture, err := s.w.Capture(ctx, s.file("internet.pcapng"))
	if err != nil {
		return err
	}
	s.note("lab", "capturing the internet link, without a filter; every machine is off")
	if s.step(ctx, "bring-up", func() (string, error) { return s.bringUp(ctx, up) }) {
		s.step(ctx, "leak test", func() (string, error) { return s.leakTest(ctx, up) })
		s.step(ctx, "call", func() (string, error) { return s.call(ctx) })
	}
	s.step(ctx, "checks", func() (string, error) { return s.check(ctx, up.State) })
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	rules, err := s.rules(ctx)
	if err != nil {
		return err
	}
	if !s.o.Keep {
		s.step(ctx, "power-off", func() (string, error) { return s.powerOff(ctx) })
	}
	result, err := capture.Stop()
	if err == nil && !result.Complete() {
		err = incomplete(result)
	}
	if err != nil {
		s.sum.Failures = append(s.sum.Failures, "capture: "+err.Error())
	}
	s.step(ctx, "outside", func() (string, error) { return s.outside(ctx, rules) })
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return s.finish()
}

// step runs one part, tells how it ended, and whether it ended well.
func (s *show) step(ctx context.Context, name string, part func() (string, error)) bool {
	if ctx.Err() != nil {
		return false
	}
	st := report.Step{Name: name, Start: s.since(), OK: true}
	detail, err := part()
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		st.OK, detail = false, strings.ReplaceAll(err.Error(), "\n", "; ")
		if hint := run.HintOf(err); hint != "" {
			detail += " (" + strings.ReplaceAll(hint, "\n", "; ") + ")"
		}
	}
	st.Took, st.Detail = s.since()-st.Start, detail
	s.tell(st)
	return err == nil
}

// note tells of something that happened now.
func (s *show) note(who, what string) {
	s.tell(report.Step{Name: who, Start: s.since(), OK: true, Detail: what})
}

func (s *show) tell(st report.Step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sum.Steps = append(s.sum.Steps, st)
	s.err = errors.Join(s.err, s.t.Step(st))
}

func (s *show) since() float64 { return float64(time.Since(s.start).Microseconds()) / 1000 }

func (s *show) file(name string) string { return filepath.Join(s.out, name) }

// bringUp boots, enrols, unlocks, and waits for the tunnels.
func (s *show) bringUp(ctx context.Context, up bringup.Options) (string, error) {
	err := bringup.Up(ctx, s.w, up, func(line string) {
		// Its own clock starts with the bring-up; this run's did earlier.
		if _, text, ok := strings.Cut(line, " s  "); ok {
			line = text
		}
		who, what, ok := strings.Cut(line, ": ")
		if !ok {
			who, what = "lab", line
		}
		s.note(who, strings.ReplaceAll(what, s.out+"/", ""))
	})
	return fmt.Sprintf("a gateway and %d handsets in their tunnels", s.o.Handsets), err
}

// leakTest tries every way out of the first handset.
func (s *show) leakTest(ctx context.Context, up bringup.Options) (string, error) {
	s.note("leak test", "every way out of handset a, and each again in a twin without the layers that stop it; a row tells both")
	r, err := leak.Test(ctx, leak.Options{World: s.w, Machine: "a", Bin: up.Bin, PIN: up.PIN,
		Log: func(line string) { s.note("leak test", line) },
		Done: func(row scenario.RowResult) {
			if ctx.Err() != nil {
				return // rows that an interruption ended tell nothing
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.err = errors.Join(s.err, s.t.Row(row))
		}})
	if err != nil {
		return "", err
	}
	s.sum.Leaks = r
	return report.LeakLine(r), nil // what did not hold is in the summary's failures
}

// call lets the first two handsets talk with recorded speech.
func (s *show) call(ctx context.Context) (string, error) {
	for _, name := range []string{"a", "b"} {
		if _, err := talk.Ready(ctx, s.w, name, registered); err != nil {
			return "", err
		}
	}
	if err := writeSpeech(s.out); err != nil {
		return "", err
	}
	s.note("call", fmt.Sprintf("a calls b; both speak at once, for %d s", talkSeconds))
	r, err := talk.Run(ctx, s.w, talk.Options{From: "a", To: "b", Seconds: talkSeconds, BoundMS: oneWayMS,
		Send: s.file("sent-a.wav"), SendBack: s.file("sent-b.wav"), Receive: s.file("received-b.wav"), ReceiveBack: s.file("received-a.wav")})
	if err != nil {
		return "", err
	}
	s.sum.Call = &r.Call
	s.sum.Records = &report.Records{From: r.Records.From, To: r.Records.To}
	// The summary judges the call itself; only what it cannot see is added.
	for _, f := range r.Failures {
		if !slices.Contains(r.Broken(), f) {
			s.sum.Failures = append(s.sum.Failures, "call: "+f)
		}
	}
	return fmt.Sprintf("level %s, both show %s, first sound %.0f ms after dialling, %.0f ms from mouth to ear",
		r.Level, r.SASFrom, r.DialToMS, r.Ways[0].OneWayMS), nil
}

// powerOff switches everything off in order, handsets first.
func (s *show) powerOff(ctx context.Context) (string, error) {
	status, err := s.w.Status(ctx)
	if err != nil {
		return "", err
	}
	var last []string
	errs := make([]error, len(status.Machines))
	var wait sync.WaitGroup
	for i, m := range status.Machines {
		if m.Name == bringup.GatewayName {
			last = append(last, m.Name)
		} else if m.State != netns.Off {
			wait.Go(func() { errs[i] = s.w.PowerOff(ctx, m.Name, powerGrace) })
		}
	}
	wait.Wait()
	for _, name := range last {
		errs = append(errs, s.w.PowerOff(ctx, name, powerGrace))
	}
	return "every machine is off; the capture ends now", errors.Join(errs...)
}

// finish judges, prints the board and writes the files.
func (s *show) finish() error {
	s.sum.Seconds = time.Since(s.start).Seconds()
	s.sum.Statistics = figures(s.sum)
	s.sum.Finish()
	if err := report.Write(s.out, &s.sum); err != nil {
		return run.Hint(err, "is the disk full? du -sh %s", s.out)
	}
	if err := errors.Join(s.err, s.t.Board(&s.sum)); err != nil {
		return fmt.Errorf("cannot print what was shown: %w", err)
	}
	for _, name := range results {
		if _, err := os.Stat(s.file(name)); err == nil {
			if err := s.t.Line(filepath.Join(s.o.Out, name)); err != nil {
				return fmt.Errorf("cannot print what was shown: %w", err)
			}
		}
	}
	return nil
}
