package main

import (
	"bytes"
	"testing"

	"rempart/internal/journal"
)

// TestEventsAreReadAsTheyAreWritten: the daemons' own journal is the writer.
func TestEventsAreReadAsTheyAreWritten(t *testing.T) {
	var b bytes.Buffer
	j := journal.New(&b, "tunneld")
	j.Event("tunnel.state", "gateway", journal.Success, "was", "locked", "now", "closed", "why", "the key \"is\" here = now=up")
	j.Event("tunnel.state", "gateway", journal.Success, "was", "closed", "now", "up", "why", "")
	j.Event("tunnel.state", "gateway", journal.Failure, "was", "up", "now", "stale", "why", "ä\nevent=x")
	events := readJournal(b.String())
	if len(events) != 3 {
		t.Fatalf("read %d events of:\n%s", len(events), b.String())
	}
	if e := events[0]; e["daemon"] != "tunneld" || e["why"] != "the key \"is\" here = now=up" || e["now"] != "closed" || e.mono() == 0 {
		t.Errorf("read %v", e)
	}
	if e := events[2]; e["outcome"] != "failure" || e["why"] != "ä\nevent=x" || e["event"] != "tunnel.state" {
		t.Errorf("read %v", e)
	}
	if at := first(events, tunnelUp...); at != events[1].mono() || at < events[0].mono() {
		t.Errorf("up at %d", at)
	}
	if at := first(events, "daemon", "keyd"); at != 0 {
		t.Errorf("an event that is not there was at %d", at)
	}
}

func TestWhatIsNoEventIsLeftOut(t *testing.T) {
	for what, text := range map[string]string{
		"half a line":        "time=1 mono=5 daemon=keyd event=keystore.start",
		"a panic":            "panic: runtime error\ngoroutine 1 [running]:\n",
		"open quote":         "mono=5 event=\"keystore\n",
		"no key":             "=5 event=x\n",
		"no event":           "mono=5 daemon=keyd\n",
		"nothing":            "",
		"empty line":         "\n",
		"blank in the key":   "a b=5 event=x\n",
		"words behind event": "event=x and so on\n",
	} {
		if got := readJournal(text); len(got) != 0 {
			t.Errorf("%s: read %v", what, got)
		}
	}
	// A line that breaks does not take its neighbours with it.
	if got := readJournal("event=a mono=1\nbroken\nevent=b mono=x\nevent=c"); len(got) != 2 || got[0].mono() != 1 || got[1].mono() != 0 {
		t.Errorf("read %v", got)
	}
}

func FuzzReadJournal(f *testing.F) {
	f.Add("time=1 mono=5 daemon=keyd event=keystore.start why=\"a b\"\n")
	f.Add("event=\"\\u00e4\" =\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, e := range readJournal(text) {
			if e["event"] == "" {
				t.Errorf("%q gave an event without a name", text)
			}
		}
	})
}
