package talk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"rempart/board/netns"
	"rempart/boot/stage"
	"rempart/internal/run"
	"rempart/tools/lab/bringup"
	"rempart/tools/report"
	"rempart/voice/call"
	"rempart/voice/record"
)

// Version of Result's JSON. Within a version fields are added, never renamed
// or given another meaning.
const Version = 1

// Codec is what carries the speech, in words.
const Codec = "Opus at a constant bit rate, 20 ms a packet"

// The times of a call beyond its length.
const (
	readyPatience = 10 * time.Second // until both are registered
	setUpPatience = 40 * time.Second // ringing, keys, hanging up
	endPatience   = 5 * time.Second  // until the other side's record is complete
)

// MaxSeconds bounds a call, because recordings end there.
const MaxSeconds = 600

// Options say who calls whom with what.
type Options struct {
	From, To string // names of handsets; upper case is accepted
	// Send is the recording for From's microphone, SendBack that for To's:
	// paths of WAV files, 48 kHz, mono, 16 bit. "" is silence.
	Send, SendBack string
	// Receive is where what To heard is copied to, ReceiveBack what From
	// heard. "" is nowhere.
	Receive, ReceiveBack string
	Seconds              float64 // of speech; more than 0
	// BoundMS is how long a way may take, in milliseconds; 0 for no bound.
	BoundMS float64
}

// Result is one call from both ends, as `rempart-lab call --json` prints it.
type Result struct {
	Version int  `json:"version"`
	Passed  bool `json:"passed"`
	// Failures says in words what did not hold.
	Failures []string `json:"failures"`
	report.Call
	// ReceivedFile is where what To heard was copied to.
	ReceivedFile string         `json:"received_file,omitempty"`
	Records      report.Records `json:"records"`
}

// Run makes the call and measures it. The error is of a call that could not
// be tried or did not come about; then the result holds what is known, or is
// nil. A call that came about and broke a promise has no error: Failures says.
func Run(ctx context.Context, w *netns.World, o Options) (*Result, error) {
	o.From, o.To = strings.ToLower(o.From), strings.ToLower(o.To)
	m, err := prepare(ctx, w, o)
	if err != nil {
		return nil, err
	}
	defer m.close()
	limit := time.Duration(o.Seconds*float64(time.Second)) + setUpPatience
	dialCtx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, err := w.Phone(dialCtx, o.From, nil, "call", o.To, "--seconds", fmt.Sprint(o.Seconds), "--json")
	r := &Result{Version: Version, Failures: []string{}, Call: report.Call{From: o.From, To: o.To, Codec: Codec, Ways: []report.Way{}}}
	if jerr := json.Unmarshal(out, &r.Records.From); jerr != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, spoken(fmt.Sprintf("cannot call %s from %s", o.To, o.From), err)
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if a := r.Records.From; a.State == call.Failed.String() {
		r.Failures = append(r.Failures, reason(a))
		return r, run.Hint(fmt.Errorf("cannot call %s from %s: %s", o.To, o.From, reason(a)), "%s", hint(w.Name, o.To, a))
	}
	if r.Records.To, err = otherSide(ctx, w, o.To, r.Records.From.CallID); err != nil {
		return r, err
	}
	r.facts()
	r.Ways, err = m.ways(r.Records, o)
	if err != nil {
		return r, err
	}
	if o.Receive != "" {
		r.ReceivedFile = o.Receive
	}
	r.Judge()
	return r, nil
}

// facts fills in what the records say.
func (r *Result) facts() {
	a, b := r.Records.From, r.Records.To
	r.Level, r.SASFrom, r.SASTo = a.Level, a.SAS, b.SAS
	if a.FirstAudioNS > 0 {
		r.DialToMS = float64(a.FirstAudioNS-a.DialNS) / 1e6
	}
	if a.Started > 0 {
		r.Seconds = float64(a.EndedNS-a.Started) / 1e9
	}
}

// Judge says in Failures which promises the call did not keep.
func (r *Result) Judge() {
	fail := func(format string, args ...any) { r.Failures = append(r.Failures, fmt.Sprintf(format, args...)) }
	a, b := r.Records.From, r.Records.To
	if a.Level != b.Level {
		fail("the levels differ: %s says %q, %s says %q", r.From, a.Level, r.To, b.Level)
	}
	if r.DialToMS <= 0 {
		fail("%s decoded no audio", r.From)
	}
	for _, side := range []struct {
		who string
		rec record.Record
	}{{r.From, a}, {r.To, b}} {
		if side.rec.State != call.Ended.String() {
			fail("the call of %s is %s: %s", side.who, side.rec.State, reason(side.rec))
		}
		if side.rec.BytesPerPacket < 0 {
			fail("%s sent packets of different sizes", side.who)
		}
	}
	r.Failures = append(r.Failures, r.Call.Broken()...)
	r.Passed = len(r.Failures) == 0
}

// otherSide waits until the callee's record of the call is complete.
func otherSide(ctx context.Context, w *netns.World, name, callID string) (record.Record, error) {
	end := time.Now().Add(endPatience)
	for {
		s, err := bringup.StatusOf(ctx, w, name)
		if err == nil && s.Telephone != nil && s.Telephone.Last != nil && s.Telephone.Last.CallID == callID && s.Telephone.Last.Over() {
			return *s.Telephone.Last, nil
		}
		if time.Now().After(end) {
			return record.Record{}, errors.Join(fmt.Errorf("%s has no record of the call", name), err)
		}
		select {
		case <-ctx.Done():
			return record.Record{}, context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Ready waits until a handset is registered and free, and is an error with a
// hint if it does not become so.
func Ready(ctx context.Context, w *netns.World, name string, patience time.Duration) (netns.Machine, error) {
	m, err := w.Machine(ctx, name)
	if err != nil {
		return m, err
	}
	if m.Role != stage.Handset {
		return m, run.Hint(fmt.Errorf("cannot telephone with %s: it is no handset", m.Name), "its role is %s", m.Role)
	}
	for end := time.Now().Add(patience); ; {
		s, err := bringup.StatusOf(ctx, w, m.Name)
		if errors.Is(err, netns.ErrOff) || ctx.Err() != nil {
			return m, errors.Join(context.Cause(ctx), err)
		}
		if err == nil {
			if err = free(w.Name, m.Name, s); err == nil {
				return m, nil
			}
		}
		if errors.Is(err, errBusy) || time.Now().After(end) {
			return m, err
		}
		select {
		case <-ctx.Done():
			return m, context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// errBusy means that waiting a little will not help.
var errBusy = errors.New("it is in a call already")

// free tells what keeps a handset from telephoning.
func free(world, name string, s bringup.PhoneStatus) error {
	t := s.Telephone
	switch {
	case t == nil || s.Errors["voiced"] != "":
		return run.Hint(fmt.Errorf("cannot telephone with %s: its voice daemon does not answer: %s", name, s.Errors["voiced"]),
			"`rempart-lab phone --world %s %s doctor` says what is wrong", world, name)
	case t.Registration.State != "registered":
		return run.Hint(fmt.Errorf("cannot telephone with %s: it is %s: %s", name, t.Registration.State, t.Registration.Reason),
			"`rempart-lab phone --world %s %s doctor` says what is missing", world, name)
	case t.Current != nil:
		return run.Hint(fmt.Errorf("cannot telephone with %s: %w, with %s", name, errBusy, t.Current.Peer),
			"`rempart-lab phone --world %s %s hangup` ends it", world, name)
	}
	return nil
}

// spoken makes one line and a hint of the error of a command of the phone,
// which carries what the phone printed: its own error line and hint.
func spoken(what string, err error) error {
	if err == nil {
		return fmt.Errorf("%s: the phone gave no record", what)
	}
	text, hint := err.Error(), ""
	if before, after, ok := strings.Cut(text, "\nhint: "); ok {
		text, hint = before, after
	}
	if _, after, ok := strings.Cut(text, ": rempart: "); ok {
		text = after
	}
	out := fmt.Errorf("%s: %s", what, strings.ReplaceAll(strings.TrimSpace(text), "\n", "; "))
	if hint == "" {
		return out
	}
	return run.Hint(out, "%s", strings.ReplaceAll(strings.TrimSpace(hint), "\n", "; "))
}

// reason is why a call ended, for a person.
func reason(r record.Record) string {
	if r.Explanation != "" {
		return r.Explanation
	}
	if r.Reason != "" {
		return r.Reason
	}
	return "no reason is known"
}

// hint says what to do about a failed call.
func hint(world, callee string, r record.Record) string {
	switch call.Reason(r.Reason) {
	case call.ReasonBusy:
		return fmt.Sprintf("`rempart-lab phone --world %s %s hangup` ends its call", world, callee)
	case call.ReasonNotRegistered, call.ReasonNotReady, call.ReasonNoAnswer, call.ReasonGatewayGone:
		return fmt.Sprintf("`rempart-lab phone --world %s %s doctor` says what is missing there", world, callee)
	}
	if r.Detail != "" {
		return fmt.Sprintf("%s: %s", r.Reason, strings.ReplaceAll(r.Detail, "\n", "; "))
	}
	return "reason " + r.Reason
}

// checkOptions refuses a call that makes no sense.
func checkOptions(o Options) error {
	if o.From == o.To {
		return run.Hint(fmt.Errorf("cannot call %s from itself", o.From), "name two different handsets")
	}
	if !(o.Seconds > 0 && o.Seconds <= MaxSeconds) {
		return run.Hint(fmt.Errorf("cannot call for %g seconds", o.Seconds), "more than 0 and at most %d", MaxSeconds)
	}
	for _, f := range []string{o.Receive, o.ReceiveBack} {
		if f != "" && filepath.Ext(f) != ".wav" {
			return run.Hint(fmt.Errorf("cannot write %s: what is received is a WAV file", f), "name it FILE.wav")
		}
	}
	return nil
}
