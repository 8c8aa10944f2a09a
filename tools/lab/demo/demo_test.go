package demo

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rempart/board/netns"
	"rempart/board/scenario/watch"
	"rempart/boot/eventlog"
	bootreport "rempart/boot/report"
	"rempart/boot/stage"
	"rempart/internal/proof"
	"rempart/internal/run"
	"rempart/keystore/client"
	"rempart/tools/lab/bringup"
	"rempart/tools/report"
	"rempart/tools/sound"
	"rempart/voice/record"
)

// healthy are the facts of a handset on which everything is as it should be.
func healthy(t *testing.T) facts {
	t.Helper()
	events := []eventlog.Event{{PCR: stage.PCRStages, Type: eventlog.TypeIPL, Digest: sha256.Sum256([]byte("egressd")), Data: []byte("egressd")}}
	log, err := eventlog.Marshal(events)
	if err != nil {
		t.Fatal(err)
	}
	const started = int64(1e9)
	wall := time.Date(2026, 11, 22, 6, 0, 10, 0, time.UTC)
	f := facts{machine: netns.Machine{Name: "a", Role: stage.Handset}, log: log, predicted: eventlog.Replay(events), wall: wall, monotonic: started + 10e9}
	f.status.Boot = &bootreport.Report{StartedNS: started, ReadyNS: started + 500e6,
		Steps:    []bootreport.Step{{Name: "floor", StartNS: started, EndNS: started + 100e6}, {Name: "gate", StartNS: started + 100e6, EndNS: started + 500e6}},
		Measured: []bootreport.Measured{{Name: "egressd", PCR: 13, Digest: "00"}},
		Devices:  []bootreport.Device{{Name: "wwan0", Floor: true, InForce: true}}, Daemons: []bootreport.Daemon{{Name: "tunneld", Running: true}}}
	f.status.Keystore = client.Status{State: client.Capped, TriesLeft: 10, Since: wall.Add(-9 * time.Second)}
	f.status.Tunnel = bringup.Tunnel{State: "up", Since: wall.Add(-8900 * time.Millisecond), LastHandshake: wall.Add(-3 * time.Second), Gateway: "gateway"}
	f.status.Gate = &bringup.Gate{Admitted: "gateway"}
	f.status.Gate.Devices = append(f.status.Gate.Devices, struct {
		Egress  map[string]uint64 `json:"egress"`
		Ingress map[string]uint64 `json:"ingress"`
	}{map[string]uint64{"admitted": 7, "no-class": 2}, map[string]uint64{"admitted": 5, "no-class": 1}})
	f.findings = []report.Finding{{Promise: "measured log", OK: true}}
	return f
}

// judged is what a summary with that one handset fails for.
func judged(f facts) string {
	s := report.Summary{Handsets: []report.Handset{f.handset()}}
	s.Finish()
	return strings.Join(s.Failures, "\n")
}

func TestAHealthyHandsetIsToldAsSuch(t *testing.T) {
	f := healthy(t)
	if failures := judged(f); failures != "" {
		t.Errorf("failures: %s", failures)
	}
	h := f.handset()
	if h.Gate.Passed != 12 || h.Gate.Drops["no-class"] != 3 || h.Tunnel.Handshake != 3 || h.TPM.Tries != 10 {
		t.Errorf("%+v", h)
	}
	want := []report.Step{{Name: "floor", Start: 0, Took: 100, OK: true}, {Name: "gate", Start: 100, Took: 400, OK: true},
		{Name: stepPIN, Start: 500, Took: 500, OK: true}, {Name: stepTunnel, Start: 1000, Took: 100, OK: true}}
	if len(h.Boot) != len(want) {
		t.Fatalf("timeline %+v", h.Boot)
	}
	for i := range want {
		if h.Boot[i] != want[i] {
			t.Errorf("step %d: %+v, want %+v", i, h.Boot[i], want[i])
		}
	}
}

// TestNothingKnownIsNothingProven: a handset that did not answer fails every
// check.
func TestNothingKnownIsNothingProven(t *testing.T) {
	failures := judged(facts{machine: netns.Machine{Name: "a", Role: stage.Handset}})
	for _, want := range []string{"does not replay", "not the predicted ones", "gate or floor", "the tunnel is"} {
		if !strings.Contains(failures, want) {
			t.Errorf("no %q in %s", want, failures)
		}
	}
}

func TestEachFactCounts(t *testing.T) {
	for says, spoil := range map[string]func(*facts){
		"predicted":        func(f *facts) { f.predicted = map[int][32]byte{stage.PCRStages: {1}} },
		"not the predict":  func(f *facts) { f.log = nil },
		"the PCRs are":     func(f *facts) { f.status.Keystore.State = client.Sealed },
		"replay":           func(f *facts) { f.findings[0].OK = false },
		"gate or floor":    func(f *facts) { f.status.Boot.Devices[0].Floor = false },
		"wwan0: altered":   func(f *facts) { f.status.Boot.Devices[0].InForce, f.status.Boot.Devices[0].Gate = false, "altered" },
		`the tunnel is "d`: func(f *facts) { f.status.Tunnel.State = "down" },
		`"gate" failed`:    func(f *facts) { f.status.Boot.Steps[1].Error = "no" },
		"guard":            func(f *facts) { f.findings = append(f.findings, report.Finding{Promise: "guard", Why: "gone"}) },
	} {
		f := healthy(t)
		spoil(&f)
		if failures := judged(f); !strings.Contains(failures, says) {
			t.Errorf("no %q in %q", says, failures)
		}
	}
}

func TestTheCallsFramesAreCutOut(t *testing.T) {
	at := time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC)
	r := record.Record{At: at, DialNS: 1e9, Started: 1.1e9, EndedNS: 3e9}
	var points []watch.Point
	add := func(after time.Duration, port string, dir watch.Direction, size int) {
		points = append(points, watch.Point{At: at.Add(after), Interface: port, Class: "tunnel", Direction: dir, Size: size})
	}
	add(-time.Second, "radio-a", watch.Out, 999) // before
	add(50*time.Millisecond, "radio-a", watch.Out, 500)
	for i := range 50 {
		add(200*time.Millisecond+time.Duration(i)*20*time.Millisecond, "radio-a", watch.Out, 202)
		add(201*time.Millisecond+time.Duration(i)*20*time.Millisecond, "radio-gateway", watch.In, 202)
	}
	add(5*time.Second, "radio-a", watch.Out, 999) // after
	var o report.Outside
	during(&o, points, r, "radio-a")
	if len(o.Points) != 101 || o.Shape == nil || o.Shape.Frames != 50 || o.Shape.MainSize != 202 || o.Shape.MainShare != 1 || o.Shape.PeriodMedianMS != 20 {
		t.Errorf("%d points, shape %+v", len(o.Points), o.Shape)
	}
	var none report.Outside
	during(&none, points, record.Record{}, "radio-a")
	if none.Points != nil || none.Shape != nil {
		t.Error("a call that never began has a shape")
	}
}

func TestFiguresOfARun(t *testing.T) {
	s := report.Summary{Handsets: []report.Handset{healthy(t).handset()}, Call: &report.Call{DialToMS: 1100, Ways: []report.Way{{OneWayMS: 70}, {OneWayMS: 72}}}}
	all := figures(s)
	if len(all) != 4 || all[0].Max != 500 || all[1].Max != 100 || !all[0].OK || all[2].OK || !all[3].OK || len(all[3].Samples) != 2 {
		t.Errorf("%+v", all)
	}
	if len(figures(report.Summary{})) != 0 {
		t.Error("figures of nothing")
	}
}

func TestWhatACaptureLacks(t *testing.T) {
	err := incomplete(netns.CaptureResult{Ports: []netns.PortCount{{Port: "radio-a", Missed: 2, KernelDrops: 1}, {Port: "radio-b"}}, Error: "disk full"})
	if s := err.Error(); !strings.Contains(s, "3 frames of radio-a") || strings.Contains(s, "radio-b") || !strings.Contains(s, "disk full") {
		t.Error(s)
	}
}

func TestAFolderThatCannotTakeTheResults(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{file, filepath.Join(file, "below"), "/proc/self/out"} {
		if err := prepare(out); err == nil || run.HintOf(err) == "" || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, hint %q", out, err, run.HintOf(err))
		}
	}
	// What an earlier run left goes; the lab's state stays.
	keep := filepath.Join(dir, "state")
	for _, name := range append(results[:], "state") {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := prepare(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range results {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s of an earlier run is still there", name)
		}
	}
	if _, err := os.Stat(keep); err != nil {
		t.Error(err)
	}
}

func TestOneHandsetCannotCall(t *testing.T) {
	dir := t.TempDir()
	if _, err := newShow(Options{Out: dir, Handsets: 1}, &bytes.Buffer{}); err == nil || run.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
}

func TestBothSidesSaySomethingElse(t *testing.T) {
	if _, err := os.Stat(recordingsDir); err != nil {
		proof.Missing(t, "recorded speech (run make setup)")
	}
	dir := t.TempDir()
	if err := writeSpeech(dir); err != nil {
		t.Fatal(err)
	}
	var clips []sound.Clip
	for name := range recordings {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		c, err := sound.ReadMicrophone(f)
		if err != nil || c.Length() != talkSeconds*time.Second {
			t.Errorf("%s: %v, %v", name, c.Length(), err)
		}
		clips = append(clips, c)
	}
	if a, err := sound.Align(clips[0], clips[1]); err == nil {
		t.Errorf("one side could be heard for the other: correlation %g", a.Confidence)
	}
}
