package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rempart/board/scenario/watch"
)

func someResult() *result {
	r := &result{Name: "boot", Machine: describe(), Settings: map[string]string{"links": "plain", "boots": "two"}}
	r.add("kept", "ms", []float64{5, 7}, bound{Of: p95, Limit: 10})
	r.add("told", "ms", []float64{1234.5}, bound{})
	return r
}

func TestVerdictOfARun(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*result)
		err    error
		kept   bool
	}{
		"all kept":   {func(*result) {}, nil, true},
		"one broken": {func(r *result) { r.add("x", "", []float64{2}, bound{Of: largest, Limit: 1}) }, nil, false},
		"unmeasured": {func(r *result) { r.add("x", "", nil, bound{Of: largest, Limit: 1}) }, nil, false},
		"no end":     {func(*result) {}, errors.New("the world fell"), false},
		"no figures": {func(r *result) { r.Figures = nil }, nil, false},
	} {
		r := someResult()
		c.change(r)
		r.finish(c.err)
		if r.Kept != c.kept || (c.err != nil) != (r.Error != "") {
			t.Errorf("%s: kept %v, error %q", what, r.Kept, r.Error)
		}
	}
}

// TestRawSamplesAndFactsAreKept: another reader finds everything in the file.
func TestRawSamplesAndFactsAreKept(t *testing.T) {
	dir := t.TempDir()
	r := someResult()
	r.Raw = []bootSample{{UpMS: 5, Load: "1 2 3", Spans: []span{{"init: gate", 1, 2}}}}
	r.finish(nil)
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "boot.json"))
	if err != nil {
		t.Fatal(err)
	}
	var back struct {
		Machine machine
		Figures []figure
		Raw     []bootSample
		Kept    bool
	}
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	m := back.Machine
	if m.Cores < 1 || m.Kernel == "" || !strings.HasPrefix(m.Go, "go") || len(strings.Fields(m.LoadBefore)) != 3 || len(strings.Fields(m.LoadAfter)) != 3 {
		t.Errorf("facts are %+v", m)
	}
	if len(back.Figures) != 2 || back.Figures[0].Samples[1] != 7 || !back.Kept || back.Raw[0].Spans[0].What != "init: gate" {
		t.Errorf("came back as %+v", back)
	}
}

// TestUnmeasuredIsWritable: JSON has no NaN.
func TestUnmeasuredIsWritable(t *testing.T) {
	r := &result{Name: "tcp"}
	r.add("nothing", "ms", nil, bound{Of: p95, Limit: 1})
	r.finish(errors.New("it ended early"))
	if err := r.write(t.TempDir()); err != nil {
		t.Error(err)
	}
}

func TestTableForAPerson(t *testing.T) {
	r := someResult()
	r.add("over", "ms", []float64{99.25}, bound{Of: largest, Limit: 80})
	r.Breakdown = []breakdown{{What: "init: gate", N: 2, FromMS: 1.5, ToMS: 20, TookMS: 18.5, P95MS: 19}}
	r.Air = &watch.Summary{Outside: 1, Strange: []watch.Sighting{{Interface: "radio-a", Size: 60, What: "ARP"}}}
	r.finish(errors.New("the world fell"))
	var b strings.Builder
	if err := r.show(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"boot: ", "cores", "links: plain", "p95 ≤ 10", "kept", "max ≤ 80", "BROKEN", "1234", "99.2", "init: gate", "18.5",
		"outside 1: ARP on radio-a, 60 bytes", "did not end: the world fell"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in:\n%s", want, b.String())
		}
	}
	if strings.Index(b.String(), "boots: two") > strings.Index(b.String(), "links: plain") {
		t.Error("the settings have no order")
	}
}

func TestShortNumbers(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 96960: "96960", 0.9512: "0.951", 12.345: "12.3", 557.4: "557", -0.25: "-0.250", -22.22: "-22.2"} {
		if got := short(v); got != want {
			t.Errorf("%g is %q, want %q", v, got, want)
		}
	}
}
