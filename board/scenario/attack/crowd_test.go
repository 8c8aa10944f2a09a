package attack_test

import (
	"bytes"
	"context"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"rempart/board/scenario/attack"
)

// crowdJobs are jobs of one kind each with a marker of its own; those with a time go on.
func crowdJobs(spans ...time.Duration) []attack.Job {
	var jobs []attack.Job
	for i, d := range spans {
		jobs = append(jobs, attack.Job{Kind: attack.Multicast, Family: attack.IPv4, Device: "wwan0", Marker: attack.Marker{byte(i + 1)}, For: d})
	}
	return jobs
}

func crowd(t *testing.T, ctx context.Context, jobs []attack.Job, script func(attack.Job) string) []attack.Line {
	t.Helper()
	var out bytes.Buffer
	if err := attack.Crowd(ctx, jobs, 2, &out, func(j attack.Job) *exec.Cmd { return exec.Command("/bin/sh", "-c", script(j)) }); err != nil {
		t.Fatal(err)
	}
	var all []attack.Line
	for text := range strings.Lines(out.String()) {
		l, err := attack.ParseLine([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	return all
}

const (
	begins = `echo '{"kind":"multicast","family":4,"started":true,"errno":"","sent":0}'; `
	ends   = `echo '{"kind":"multicast","family":4,"errno":"","sent":7}'`
)

func TestACrowdGivesEachAttemptsResult(t *testing.T) {
	lines := crowd(t, t.Context(), crowdJobs(0, 0, 0), func(j attack.Job) string {
		if j.Marker[0] == 2 {
			return "kill -9 $$"
		}
		return ends
	})
	got, ready := map[string]attack.Result{}, 0
	for _, l := range lines {
		if l.Ready {
			ready++
			continue
		}
		got[l.Marker[:2]] = *l.Result
	}
	if ready != 1 || len(got) != 3 || got["01"].Sent != 7 || got["02"].Errno != "SIGKILL" || got["03"].Sent != 7 {
		t.Errorf("%d times ready, %+v", ready, got)
	}
}

// TestACrowdIsReadyWhenAllAreAtWork: an event must not begin before the last sender has.
func TestACrowdIsReadyWhenAllAreAtWork(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	lines := crowd(t, ctx, crowdJobs(time.Minute, time.Minute, time.Minute), func(j attack.Job) string {
		switch j.Marker[0] {
		case 1:
			return "kill -9 $$" // each of its lives
		case 2:
			return "sleep 0.2; " + begins + ends // ends before it is stopped
		}
		return "end() { " + ends + "; exit 0; }; trap end TERM; " + begins + "while :; do sleep 0.01; done"
	})
	if len(lines) != 4 {
		t.Fatalf("%+v", lines)
	}
	results := 0
	for i, l := range lines {
		if l.Ready && i > 1 {
			t.Errorf("ready only after %d ends", i)
		}
		if l.Result != nil {
			results++
		}
	}
	if results != 3 {
		t.Errorf("%d results", results)
	}
}

func TestJobsAreReadAsTheyAreWritten(t *testing.T) {
	jobs := crowdJobs(0, time.Second)
	var b bytes.Buffer
	if err := attack.WriteJobs(&b, jobs); err != nil {
		t.Fatal(err)
	}
	got, err := attack.ReadJobs(&b)
	if err != nil || !reflect.DeepEqual(got, jobs) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"{}\n", "[\"smoke\"]\n", "[]\n"} {
		if _, err := attack.ReadJobs(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	for _, bad := range []string{"", "{}", `{"ready":true,"result":{}}`, strings.Repeat(" ", 5000)} {
		if _, err := attack.ParseLine([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
