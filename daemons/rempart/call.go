package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"time"

	"rempart/internal/run"
	"rempart/internal/sock/httpsock"
	"rempart/voice/record"
)

// watch is how often a call is looked at.
const watch = 20 * time.Millisecond

// telephone is voiced.
type telephone struct {
	client *http.Client
}

func (e env) telephone() telephone { return telephone{httpsock.Client(e.socket("voiced"))} }

func (t telephone) do(ctx context.Context, method, path string, in, out any) error {
	return explain("voiced", httpsock.Call(ctx, t.client, method, path, in, out))
}

// callName dials, shows what happens, and ends with the call's record.
func callName(ctx context.Context, args []string, e env) error {
	var seconds float64
	var asJSON bool
	words, err := parse("call", args, 1, func(f *flag.FlagSet) {
		f.Float64Var(&seconds, "seconds", 0, "")
		f.BoolVar(&asJSON, "json", false, "")
	})
	if err != nil {
		return err
	}
	if len(words) != 1 || seconds < 0 || seconds > 86400 {
		return run.Hint(fmt.Errorf("%w of call", errUsage), "rempart call NAME [--seconds N] [--json]")
	}
	t := e.telephone()
	var dialled struct {
		ID string `json:"id"`
	}
	if err := t.do(ctx, http.MethodPost, "/v1/calls", map[string]string{"callee": words[0]}, &dialled); err != nil {
		return err
	}
	show := func(format string, args ...any) {
		if !asJSON {
			fmt.Fprintf(e.stdout, format+"\n", args...)
		}
	}
	rec, err := t.follow(ctx, dialled.ID, time.Duration(seconds*float64(time.Second)), show)
	if err != nil {
		return err
	}
	if asJSON {
		err = writeJSON(e.stdout, rec)
	} else {
		showRecord(show, rec)
	}
	if rec.State == "failed" {
		return errors.Join(err, run.Hint(fmt.Errorf("cannot call %s: %s", words[0], rec.Explanation), "reason %s; %s", rec.Reason, rec.Detail))
	}
	return err
}

// follow watches a call to its end; limit, if not zero, is how long it may be
// active. The end of ctx hangs up.
func (t telephone) follow(ctx context.Context, id string, limit time.Duration, show func(string, ...any)) (record.Record, error) {
	var rec record.Record
	state, heard, hung := "", false, false
	var end time.Time
	tick := time.NewTicker(watch)
	defer tick.Stop()
	for {
		// The question outlives ctx: the record is wanted after Ctrl-C too.
		if err := t.do(context.WithoutCancel(ctx), http.MethodGet, "/v1/calls/"+id, nil, &rec); err != nil {
			return rec, err
		}
		if rec.State != state {
			state = rec.State
			show("%8.3f s  %s", time.Duration(since(rec)).Seconds(), state)
			if state == "active" {
				show("            level %s, SAS %s (read it to each other), spoken to before: %v", rec.Level, rec.SAS, rec.PeerSeenBefore)
				if limit > 0 {
					end = time.Now().Add(limit)
				}
			}
		}
		if !heard && rec.FirstAudioNS != 0 {
			heard = true
			show("%8.3f s  first sound", time.Duration(rec.FirstAudioNS-rec.DialNS).Seconds())
		}
		if rec.Over() {
			return rec, nil
		}
		if !hung && (ctx.Err() != nil || (!end.IsZero() && time.Now().After(end))) {
			hung = true
			err := t.do(context.WithoutCancel(ctx), http.MethodDelete, "/v1/calls/"+id, nil, nil)
			var gone *httpsock.Error
			if err != nil && !(errors.As(err, &gone) && gone.Status == http.StatusNotFound) {
				return rec, err
			}
		}
		<-tick.C
	}
}

// since is how long after the dialling the record's newest event was.
func since(r record.Record) int64 {
	newest := r.DialNS
	for _, at := range []int64{r.RingingNS, r.AnsweredNS, r.Started, r.EndedNS} {
		newest = max(newest, at)
	}
	return newest - r.DialNS
}

func showRecord(show func(string, ...any), r record.Record) {
	show("%-12s %s", "peer", r.PeerURI)
	show("%-12s %s", "end", reasoned(r.State, r.Explanation))
	if r.Detail != "" {
		show("%-12s %s", "detail", r.Detail)
	}
	if r.Started == 0 {
		show("%-12s %s", "sound", "none was opened")
		return
	}
	show("%-12s %s", "level", r.Level)
	show("%-12s %s", "SAS", r.SAS)
	show("%-12s %d sent, %d received, %d lost, %d late, %d bad, %d bytes each", "frames", r.FramesSent, r.FramesReceived, r.FramesLost, r.FramesLate, r.FramesBad, r.BytesPerPacket)
	if r.FirstAudioNS != 0 {
		show("%-12s %d ms from dial to first sound", "set-up", (r.FirstAudioNS-r.DialNS)/1e6)
	}
}

// current is the id of the call that is on.
func (t telephone) current(ctx context.Context) (string, error) {
	var s record.Status
	if err := t.do(ctx, http.MethodGet, "/v1/status", nil, &s); err != nil {
		return "", err
	}
	if s.Current == nil {
		return "", errors.New("there is no call")
	}
	return s.Current.ID, nil
}

// hangup ends the call that is on.
func hangup(ctx context.Context, args []string, e env) error {
	return onCurrent(ctx, "hangup", args, e, http.MethodDelete, "")
}

// answer accepts the call that rings.
func answer(ctx context.Context, args []string, e env) error {
	return onCurrent(ctx, "answer", args, e, http.MethodPost, "/answer")
}

func onCurrent(ctx context.Context, command string, args []string, e env, method, path string) error {
	if _, err := parse(command, args, 0, func(*flag.FlagSet) {}); err != nil {
		return err
	}
	t := e.telephone()
	id, err := t.current(ctx)
	if err != nil {
		return fmt.Errorf("cannot %s: %w", command, err)
	}
	return t.do(ctx, method, "/v1/calls/"+id+path, nil, nil)
}
