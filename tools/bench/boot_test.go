package main

import (
	"slices"
	"strings"
	"testing"

	"rempart/boot/report"
)

// journalOf is the journal of a boot that began at 1,000,000,000 ns.
const journalOf = `time=x mono=1003000000 daemon=init event=daemon.start subject=egressd outcome=success
time=x mono=1004000000 daemon=egressd event=gate.attach subject=2 outcome=success
time=x mono=1006000000 daemon=init event=daemon.start subject=keyd outcome=success
time=x mono=1009000000 daemon=keyd event=keystore.start subject=keyd outcome=success state=sealed
time=x mono=1010000000 daemon=init event=daemon.start subject=tunneld outcome=success
time=x mono=1011000000 daemon=keyd event=keystore.unlock subject=pin outcome=refused
time=x mono=1020000000 daemon=keyd event=keystore.unlock subject=pin outcome=success
time=x mono=1021000000 daemon=tunneld event=tunnel.state now=closed outcome=success
time=x mono=1022000000 daemon=tunneld event=tunnel.state now=admitting outcome=success
time=x mono=1024000000 daemon=tunneld event=tunnel.state now=connecting outcome=success
time=x mono=1025000000 daemon=init event=tunnel.address subject="[10.77.0.11/16]" outcome=success
time=x mono=1027000000 daemon=tunneld event=tunnel.state now=up outcome=success
time=x mono=1999000000 daemon=tunneld event=tunnel.state now=up outcome=success
`

func bootReport() *report.Report {
	return &report.Report{StartedNS: 1e9, ReadyNS: 1.1e9, Steps: []report.Step{
		{Name: "colours", StartNS: 1.0005e9, EndNS: 1.002e9}, {Name: "gate", StartNS: 1.002e9, EndNS: 1.005e9}, {Name: "applications", StartNS: 1.03e9}}}
}

func TestSpansOfABoot(t *testing.T) {
	got := spans(bootReport(), readJournal(journalOf), 1.008e9)
	want := []span{
		{"init: before its steps", 0, 500000}, {"init: colours", 500000, 2000000}, {"init: gate", 2000000, 5000000},
		{"egressd: started to gate attached", 3000000, 4000000}, {"keyd: started to ready", 6000000, 9000000},
		{"PIN: given to keystore open", 8000000, 20000000}, {"keyd: ready to keystore open", 9000000, 20000000},
		{"tunneld: keystore open to its key", 20000000, 21000000}, {"tunneld: its key to admitting", 21000000, 22000000},
		{"egressd: admitting to gate in force", 22000000, 24000000}, {"init: gate in force to address on wg0", 24000000, 25000000},
		{"tunneld: address to handshake complete", 25000000, 27000000},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

// TestATunneldThatStartsLateIsNotBlamedOnTheKeystore: the key can be fetched
// only by a process that is there.
func TestATunneldThatStartsLateIsNotBlamedOnTheKeystore(t *testing.T) {
	late := strings.Replace(journalOf, "mono=1010000000 daemon=init", "mono=1020500000 daemon=init", 1)
	for _, s := range spans(bootReport(), readJournal(late), 1.008e9) {
		if s.What == "tunneld: keystore open to its key" && s.FromNS != 20500000 {
			t.Errorf("got %v", s)
		}
	}
}

func TestSpansThatAreMissingAreLeftOut(t *testing.T) {
	if got := spans(&report.Report{StartedNS: 1e9}, nil, 0); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

func TestPartsAreMediansOfTheirOwn(t *testing.T) {
	sample := func(up float64, spans ...span) bootSample { return bootSample{UpMS: up, Spans: spans} }
	samples := []bootSample{
		sample(300, span{"init: gate", 1e6, 5e6}, span{"keyd", 2e6, 9e6}),
		sample(1100, span{"init: gate", 3e6, 4e6}, span{"keyd", 3e6, 4e6}),
		sample(400, span{"init: gate", 2e6, 8e6}),
	}
	var spans [][]span
	for _, s := range samples {
		spans = append(spans, s.Spans)
	}
	got := parts(spans)
	if want := (breakdown{"init: gate", 3, 2, 5, 4, 6}); len(got) != 2 || got[0] != want {
		t.Errorf("got %+v, want %+v first", got, want)
	}
	if got[1].N != 2 || got[1].TookMS != 1 || got[1].P95MS != 7 {
		t.Errorf("got %+v", got[1])
	}
	if parts(nil) != nil {
		t.Error("no boots have parts")
	}
	r := &result{Name: "boot"}
	reportBoots(r, samples)
	r.finish(nil)
	if r.Kept || r.Figures[0].P50 != 400 || r.Figures[0].Max != 1100 {
		t.Errorf("a boot over the bound among three was kept: %+v", r.Figures)
	}
	r = &result{Name: "boot"}
	reportBoots(r, nil)
	if r.finish(nil); r.Kept {
		t.Error("no boot at all was kept")
	}
}
