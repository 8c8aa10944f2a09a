package e2e_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rempart/internal/proof"
)

// calls: who can be called, and what a caller hears of who cannot. a, b and c
// are ready.
func calls(t *testing.T, w *world) {
	proof.SFR(t, "FDP_IFC_EXT.1", "")
	for _, to := range []string{"a", "b"} { // the third calls the others: nothing was changed for it
		w.talks(t, "c", to)
	}
	failed := func(from, to, reason, line, hint string) {
		t.Helper()
		r, s := w.call(t, from, to)
		if r.State != "failed" || r.Reason != reason || r.Started != 0 || r.FramesSent != 0 || r.SAS != "" {
			t.Errorf("call of %s to %s: %+v", from, to, r)
		}
		s.says(t, line, hint)
	}
	failed("a", "nobody", "unknown_callee", "rempart: cannot call nobody: no handset of that name is known to the gateway",
		"reason unknown_callee; refused with 404 Not Found")
	// Enrolled, but at the gateway's own name there is no handset.
	failed("a", "gateway", "unknown_callee", "rempart: cannot call gateway: no handset of that name is known to the gateway", "reason unknown_callee")
	const callee = "rempart: cannot call: not the name of another handset of this network: "
	for to, line := range map[string]string{
		"a":                       callee + "sip:a@handsets.example is this handset",
		"x y":                     callee + `cannot use name "x y": not an address of record of this network`,
		"sip:b@elsewhere.example": callee + "sip:b@elsewhere.example is not of handsets.example",
	} {
		w.phone(t, "a", "", "call", to).says(t, line, "a name such as b")
	}

	busy := make(chan said)
	go func() { busy <- w.phone(t, "a", "", "call", "b", "--seconds", "4", "--json") }()
	w.await(t, "a", "in a call", 5*time.Second, func(s seen) bool {
		return s.Telephone != nil && s.Telephone.Current != nil && s.Telephone.Current.State == "active"
	})
	failed("c", "b", "busy", "rempart: cannot call b: the callee is in another call", "reason busy; refused with 486 Busy Here")
	w.phone(t, "a", "", "call", "c").says(t, "rempart: this handset is in a call already", "rempart hangup ends it")
	if s := <-busy; s.code != 0 || !strings.Contains(s.out, `"reason":"hung_up_here"`) {
		t.Errorf("the call that was on: %s", s)
	}
	// The caller's command does not wait for the callee to have heard of the end.
	w.await(t, "b", "out of the call", 2*time.Second, func(s seen) bool { return s.Telephone != nil && s.Telephone.Current == nil })
}

// otherFormat puts a recording in another format into the microphone.
func otherFormat(t *testing.T, w *world) {
	mic := filepath.Join(w.machine(t, "a").Paths.Audio, "mic.wav")
	old, oldErr := os.ReadFile(mic)
	if err := os.WriteFile(mic, wav(44100, 2), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := os.Remove(mic)
		if oldErr == nil {
			err = os.WriteFile(mic, old, 0o644)
		}
		if err != nil {
			t.Error(err)
		}
	})
	w.phone(t, "a", "", "call", "b").says(t, "rempart: cannot use this handset's sound devices: cannot use /dev/rempart-audio/mic.wav as a microphone: "+
		"not a 48 kHz mono 16-bit PCM WAV file: found 44100 Hz, 2 channel(s), 16-bit PCM; expected 48000 Hz, 1 channel, 16-bit PCM",
		"give the sound card a recording of the expected format")
	if s := w.look(t, "b"); s.Telephone == nil || s.Telephone.Current != nil {
		t.Errorf("b was called: %+v", s.Telephone)
	}
}

// wav is a tenth of a second of silence, 16 bits.
func wav(rate, channels int) []byte {
	data := make([]byte, rate/10*channels*2)
	var h []byte
	u32 := func(v int) { h = binary.LittleEndian.AppendUint32(h, uint32(v)) }
	u16 := func(v int) { h = binary.LittleEndian.AppendUint16(h, uint16(v)) }
	h = append(h, "RIFF"...)
	u32(36 + len(data))
	h = append(h, "WAVEfmt "...)
	u32(16)
	u16(1)
	u16(channels)
	u32(rate)
	u32(rate * channels * 2)
	u16(channels * 2)
	u16(16)
	h = append(h, "data"...)
	u32(len(data))
	return append(h, data...)
}

// notRegistered calls a handset that is off, and one that is on and locked.
func notRegistered(t *testing.T, w *world) {
	const line = "rempart: cannot call b: the callee's handset is not registered at the gateway now"
	if err := w.PowerOff(t.Context(), "b", 3*time.Second); err != nil {
		t.Fatal(err)
	}
	r, s := w.call(t, "a", "b")
	if r.State != "failed" || r.Reason != "not_registered" {
		t.Errorf("call to a handset that was switched off: %+v", r)
	}
	s.says(t, line, "reason not_registered; ")
	if _, err := w.PowerOn(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	w.await(t, "b", "locked", 10*time.Second, func(s seen) bool { return s.Keystore.State == "sealed" })
	if r, _ = w.call(t, "a", "b"); r.Reason != "not_registered" {
		t.Errorf("call to a handset that is locked: %+v", r)
	}
	w.phone(t, "b", "", "call", "a").says(t, "rempart: cannot telephone yet: the keystore is not open", "rempart status says what is missing; rempart unlock opens the keystore")
	w.unlock(t, "b")
	w.awaitReady(t, "b")
	w.talks(t, "a", "b")
}
