package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"rempart/board/netns"
	"rempart/boot/report"
	"rempart/tools/lab/bringup"
)

// bootLimit bounds one boot; one that takes longer has failed.
const bootLimit = 30 * time.Second

// span is a part of a boot. Times are nanoseconds after init's first line.
type span struct {
	What   string `json:"what"`
	FromNS int64  `json:"from_ns"`
	ToNS   int64  `json:"to_ns"`
}

// bootSample is one boot.
type bootSample struct {
	UpMS  float64 `json:"up_ms"` // init's first line to tunnel up
	Load  string  `json:"load"`
	Spans []span  `json:"spans"`
}

// boot restarts one handset of a running world again and again. The PIN is
// given as soon as the keystore's door is there, as by a person who has typed
// it already.
func boot(ctx context.Context, o options, r *result) error {
	r.Settings["boots"] = "restarts of handset a, enrolled; b and the gateway run on; times are CLOCK_MONOTONIC"
	return inWorld(ctx, o, r, false, func(w *netns.World, _ *air) error {
		var samples []bootSample
		defer func() { reportBoots(r, samples) }()
		for i := range o.boots {
			s, err := bootOnce(ctx, w, "a")
			if err != nil {
				return fmt.Errorf("boot %d: %w", i+1, err)
			}
			samples = append(samples, s)
		}
		return nil
	})
}

// bootOnce restarts a machine and takes its times.
func bootOnce(ctx context.Context, w *netns.World, name string) (bootSample, error) {
	s := bootSample{Load: loadAverage()}
	m, err := w.Restart(ctx, name, 5*time.Second)
	if err != nil {
		return s, err
	}
	at := func(path string) string { return filepath.Join(m.Paths.Root, path) }
	door := at("/run/rempart/keyd.sock")
	if err := poll(ctx, bootLimit, "the door of keyd", func() (bool, error) { _, err := os.Stat(door); return err == nil, nil }); err != nil {
		return s, err
	}
	typed := monotonic()
	if _, err := w.Phone(ctx, name, []byte(bringup.DefaultPIN+"\n"), "unlock"); err != nil {
		return s, err
	}
	var events []event
	err = poll(ctx, bootLimit, "the tunnel", func() (bool, error) {
		text, err := os.ReadFile(at(report.JournalPath))
		events = readJournal(string(text))
		return first(events, tunnelUp...) != 0, err
	})
	if err != nil {
		return s, err
	}
	// The last steps may end after the tunnel is up.
	var boot *report.Report
	err = poll(ctx, bootLimit, "the end of the boot", func() (bool, error) {
		if boot, err = report.Read(at(report.Path)); err != nil {
			return false, err
		}
		return boot.ReadyNS != 0, nil
	})
	if err != nil {
		return s, err
	}
	s.Spans = spans(boot, events, typed)
	s.UpMS = float64(first(events, tunnelUp...)-boot.StartedNS) / 1e6
	return s, nil
}

// tunnelUp is the event that ends the wait.
var tunnelUp = []string{"daemon", "tunneld", "event", "tunnel.state", "now", "up"}

// spans divides a boot: init's own steps, and what the daemons do meanwhile.
func spans(boot *report.Report, events []event, typed int64) []span {
	var all []span
	add := func(what string, from, to int64) {
		if from != 0 && to != 0 {
			all = append(all, span{what, from - boot.StartedNS, to - boot.StartedNS})
		}
	}
	state := func(now string) int64 { return first(events, "daemon", "tunneld", "event", "tunnel.state", "now", now) }
	started := func(daemon string) int64 { return first(events, "event", "daemon.start", "subject", daemon) }
	if len(boot.Steps) > 0 {
		add("init: before its steps", boot.StartedNS, boot.Steps[0].StartNS)
	}
	for _, step := range boot.Steps {
		add("init: "+step.Name, step.StartNS, step.EndNS)
	}
	ready := first(events, "daemon", "keyd", "event", "keystore.start")
	open := first(events, "daemon", "keyd", "event", "keystore.unlock", "outcome", "success")
	add("egressd: started to gate attached", started("egressd"), first(events, "event", "gate.attach"))
	add("keyd: started to ready", started("keyd"), ready)
	add("PIN: given to keystore open", typed, open)
	add("keyd: ready to keystore open", ready, open)
	add("tunneld: keystore open to its key", max(open, started("tunneld")), state("closed"))
	add("tunneld: its key to admitting", state("closed"), state("admitting"))
	address := first(events, "daemon", "init", "event", "tunnel.address", "outcome", "success")
	add("egressd: admitting to gate in force", state("admitting"), state("connecting"))
	add("init: gate in force to address on wg0", state("connecting"), address)
	add("tunneld: address to handshake complete", address, state("up"))
	return all
}

// reportBoots makes figures of samples.
func reportBoots(r *result, samples []bootSample) {
	r.Raw = samples
	var up []float64
	for _, s := range samples {
		up = append(up, s.UpMS)
	}
	r.add("init's first line to tunnel up", "ms", up, bound{Of: p95, Limit: 1000})
	var spans [][]span
	for _, s := range samples {
		spans = append(spans, s.Spans)
	}
	r.Breakdown = parts(spans)
}

// parts sums the spans of all samples up, in the order of the first one.
func parts(samples [][]span) []breakdown {
	if len(samples) == 0 {
		return nil
	}
	var all []breakdown
	for _, part := range samples[0] {
		var from, to, took []float64
		for _, spans := range samples {
			for _, p := range spans {
				if p.What == part.What {
					from, to = append(from, float64(p.FromNS)/1e6), append(to, float64(p.ToNS)/1e6)
					took = append(took, float64(p.ToNS-p.FromNS)/1e6)
				}
			}
		}
		all = append(all, breakdown{What: part.What, N: len(took), FromMS: p50.of(from), ToMS: p50.of(to), TookMS: p50.of(took), P95MS: p95.of(took)})
	}
	return all
}
