package eventlog

import (
	"crypto"
	"testing"

	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
)

// TestAnotherReaderAgrees gives our logs to google/go-eventlog, which replays
// them against the PCR values we compute, and must not agree on others.
func TestAnotherReaderAgrees(t *testing.T) {
	log := marshal(t, sample())
	registers := func(values map[int][32]byte) []register.MR {
		var mrs []register.MR
		for index, value := range values {
			mrs = append(mrs, register.PCR{Index: index, Digest: value[:], DigestAlg: crypto.SHA256})
		}
		return mrs
	}
	events, err := tcg.ParseAndReplay(log, registers(Replay(sample())), tcg.ParseOpts{})
	if err != nil {
		t.Fatal(err)
	}
	if len(events) != len(sample()) {
		t.Fatalf("the other reader sees %d events, we wrote %d", len(events), len(sample()))
	}
	for i, want := range sample() {
		got := events[i]
		if got.Index != want.PCR || [32]byte(got.Digest) != want.Digest || string(got.Data) != string(want.Data) || uint32(got.Type) != want.Type {
			t.Errorf("event %d: the other reader sees %+v, we wrote %+v", i, got, want)
		}
	}
	wrong := Replay(sample())
	wrong[13] = [32]byte{1}
	if _, err := tcg.ParseAndReplay(log, registers(wrong), tcg.ParseOpts{}); err == nil {
		t.Error("the other reader accepts any PCR value: it is no oracle")
	}
}
