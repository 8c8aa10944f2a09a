package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"rempart/internal/run"
	"rempart/tools/lab/talk"
	"rempart/tools/report"
)

func callCommand() command {
	c := command{
		name: "call", usage: "[--world NAME] A B [--send WAV] [--send-back WAV] [--receive WAV] [--seconds N] [--json]",
		what: "lets handset A call B: what A says is --send, what B heard goes to --receive; reports both ends, latency, loss, quality",
	}
	c.run = func(ctx context.Context, args []string, s streams) error {
		f, world := flagSet(c)
		var o talk.Options
		f.StringVar(&o.Send, "send", "", "WAV file for A's microphone: 48 kHz, mono, 16 bit; none is silence")
		f.StringVar(&o.SendBack, "send-back", "", "WAV file for B's microphone; none is silence")
		f.StringVar(&o.Receive, "receive", "", "WAV file that gets what B heard")
		f.Float64Var(&o.Seconds, "seconds", 5, "how long to talk")
		asJSON := f.Bool("json", false, "everything, as JSON")
		words, rest, err := parse(c, f, args)
		if err != nil {
			return err
		}
		if len(words) != 2 || rest != nil {
			return errUsage(c, "call takes two handsets")
		}
		o.From, o.To = words[0], words[1]
		w, err := open(ctx, *world)
		if err != nil {
			return err
		}
		r, err := talk.Run(ctx, w, o)
		if r != nil && *asJSON {
			e := json.NewEncoder(s.out)
			e.SetIndent("", "  ")
			if jerr := e.Encode(r); jerr != nil {
				return errors.Join(err, jerr)
			}
		} else if r != nil && err == nil {
			showCall(s.out, r)
		}
		if ctx.Err() != nil {
			return errors.New("interrupted: the call was hung up")
		}
		if err != nil {
			return err
		}
		if !r.Passed {
			return run.Hint(fmt.Errorf("the call did not keep its promises: %s", strings.Join(r.Failures, "; ")),
				"`rempart-lab phone --world %s HANDSET doctor` checks each handset", *world)
		}
		return nil
	}
	return c
}

// showCall prints a call for a person.
func showCall(w io.Writer, r *talk.Result) {
	line := func(what, format string, args ...any) {
		fmt.Fprintf(w, "%-16s %s\n", what, fmt.Sprintf(format, args...))
	}
	line("call", "%s to %s, %.1f s", r.From, r.To, r.Seconds)
	line("level", "%s", r.Level)
	same := "the same on both sides"
	if r.SASFrom != r.SASTo {
		same = "NOT the same on both sides"
	}
	line("SAS", "%s shows %s, %s shows %s: %s", r.From, r.SASFrom, r.To, r.SASTo, same)
	line("set-up", "%.0f ms from dialling to the first decoded audio", r.DialToMS)
	for _, way := range r.Ways {
		line(way.From+" to "+way.To, "%s", report.WayLine(way))
	}
	if r.ReceivedFile != "" {
		line("received", "%s", r.ReceivedFile)
	}
}
