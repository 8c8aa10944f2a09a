package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rempart/internal/proof"
	"rempart/internal/run"
	"rempart/tools/lab/talk"
)

// speechFile is recorded speech of Debian's alsa-utils, 1.4 s, 48 kHz mono.
const speechFile = "/usr/share/sounds/alsa/Front_Center.wav"

func TestCallCarriesSpeech(t *testing.T) {
	const world = "labcall"
	needs(t, world)
	if os.Getenv("REMPART_BIN") == "" {
		proof.Missing(t, "REMPART_BIN (the folder of the daemons)")
	}
	if _, err := os.Stat(speechFile); err != nil {
		proof.Missing(t, "recorded speech (run make setup)")
	}
	dir := t.TempDir()
	if out, err := lab(t, "up", "--world", world, "--state", filepath.Join(dir, "state"), "--bin", os.Getenv("REMPART_BIN")); err != nil {
		t.Fatalf("%v\n%s\nhint: %s", err, out, run.HintOf(err))
	}
	refusals(t, world, dir)
	heard := filepath.Join(dir, "heard.wav")
	out, err := lab(t, "call", "--world", world, "A", "b", "--send", speechFile, "--receive", heard, "--seconds", "2", "--json")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	proof.SFR(t, "FCO_VOC_EXT.1", "")
	var r talk.Result
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	a, b := r.Records.From, r.Records.To
	if !r.Passed || r.SASFrom == "" || r.SASFrom != r.SASTo || r.Level != "restricted" || r.DialToMS <= 0 || a.CallID != b.CallID {
		t.Errorf("%+v", r)
	}
	if len(r.Ways) != 2 || r.Ways[0].OneWayMS <= 0 || r.Ways[0].OneWayMS > 500 || r.Ways[0].Quality == nil || r.Ways[0].PacketBytes != r.Ways[1].PacketBytes {
		t.Errorf("the ways: %+v", r.Ways)
	}
	if st, err := os.Stat(heard); err != nil || st.Size() < 48000*2 {
		t.Errorf("what b heard: %v, %v", st, err)
	}
	// The recording is off the microphone again, and a person reads the same.
	out, err = lab(t, "call", "--world", world, "b", "a", "--seconds", "0.5")
	if err != nil || !strings.Contains(out, "the same on both sides") || !strings.Contains(out, "sent silence") {
		t.Errorf("%v\n%s", err, out)
	}
}

// refusals are calls that cannot be: each one line and a hint.
func refusals(t *testing.T, world, dir string) {
	t.Helper()
	music := filepath.Join(dir, "music.mp3")
	if err := os.WriteFile(music, []byte("ID3 and no WAV"), 0o600); err != nil {
		t.Fatal(err)
	}
	for line, says := range map[string]string{
		"a a":                           "itself",
		"a z":                           "no such machine",
		"a gateway":                     "no handset",
		"a":                             "two handsets",
		"a b --seconds 0":               "0 seconds",
		"a b --send " + music:           "expected 16-bit PCM, mono, 48,000",
		"a b --send /no/such.wav":       "no such file",
		"a b --receive " + dir + "/x/y": "WAV file",
		"a b --receive /no/such/x.wav":  "folder is not there",
	} {
		_, err := lab(t, append([]string{"call", "--world", world}, strings.Fields(line)...)...)
		if err == nil || !strings.Contains(fmt.Sprint(err), says) || run.HintOf(err) == "" || strings.Contains(err.Error(), "\n") {
			t.Errorf("call %s: %v (hint %q), want %q", line, err, run.HintOf(err), says)
		}
	}
}
