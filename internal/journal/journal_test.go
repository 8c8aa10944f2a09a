package journal

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"
)

func TestEventIsOneLineWithItsFields(t *testing.T) {
	var buf bytes.Buffer
	j := New(&buf, "keyd")
	j.Event("keystore.unlock", "pin", Refused, "tries_left", "9", "reason", "wrong PIN", "odd")
	line := buf.String()
	if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
		t.Fatalf("not one line: %q", line)
	}
	for _, want := range []string{" daemon=keyd ", " event=keystore.unlock ", " subject=pin ", " outcome=refused ", " tries_left=9 ", ` reason="wrong PIN" `, ` odd=""`, "time=20", " mono="} {
		if !strings.Contains(line, want) {
			t.Errorf("missing %q in %q", want, line)
		}
	}
}

func TestHostileValuesCannotForge(t *testing.T) {
	var buf bytes.Buffer
	j := New(&buf, "gatewayd")
	j.Event("sip.register", "x\ntime=1 daemon=keyd event=keystore.unlock", Success, "k outcome=success", "a\"b=c d\u202e", "long", strings.Repeat("é", 4000))
	line := buf.String()
	if strings.Count(line, "\n") != 1 {
		t.Errorf("a value forged a second line: %q", line)
	}
	if strings.Count(line, " daemon=") != 1+strings.Count(line, `daemon=keyd event=keystore.unlock"`) {
		t.Errorf("a value forged a pair: %q", line)
	}
	if strings.Contains(line, "\u202e") || len(line) > 4096 {
		t.Errorf("control text or unbounded value: %d bytes", len(line))
	}
}

func TestNilIsSilentAndLossIsCounted(t *testing.T) {
	var none *Journal
	none.Event("a", "b", Success)
	w := &failing{fail: true}
	j := New(w, "init")
	j.Event("a", "b", Success)
	j.Event("a", "b", Success)
	w.fail = false
	j.Event("a", "b", Success)
	j.Event("a", "b", Success)
	lines := strings.Split(strings.TrimSpace(w.String()), "\n")
	if len(lines) != 2 || !strings.HasSuffix(lines[0], " lost=2") || strings.Contains(lines[1], "lost=") {
		t.Errorf("lines %q, want lost=2 on the first alone", lines)
	}
}

func TestConcurrentEventsDoNotMix(t *testing.T) {
	w := &failing{}
	j := New(w, "init")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { j.Event("x.y", "s", Success) })
	}
	wg.Wait()
	for _, l := range strings.Split(strings.TrimSpace(w.String()), "\n") {
		if !strings.HasPrefix(l, "time=") || strings.Count(l, "time=") != 1 {
			t.Fatalf("mixed line %q", l)
		}
	}
}

type failing struct {
	bytes.Buffer
	fail bool
}

func (f *failing) Write(p []byte) (int, error) {
	if f.fail {
		return 0, errors.New("disk full")
	}
	return f.Buffer.Write(p)
}
