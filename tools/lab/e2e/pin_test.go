package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// locked restarts a handset, which is then locked.
func (w *world) locked(t *testing.T, name string) {
	t.Helper()
	if _, err := w.Restart(t.Context(), name, 3*time.Second); err != nil {
		t.Fatal(err)
	}
	w.await(t, name, "locked", 10*time.Second, func(s seen) bool { return s.Keystore.State == "sealed" && s.Boot != nil && s.Boot.ReadyNS != 0 })
}

// wrongPIN gives wrong PINs and then the right one.
func wrongPIN(t *testing.T, w *world) {
	w.locked(t, "a")
	tries := w.look(t, "a").Keystore.TriesLeft
	if tries < 3 {
		t.Fatalf("the TPM takes %d tries, too few for this test", tries)
	}
	for i := range 2 {
		left := tries - 1 - i
		w.phone(t, "a", wrong+"\n", "unlock").says(t, fmt.Sprintf("rempart: cannot unlock: wrong PIN, the TPM takes %d more", left), "after that it takes none for a while, not even the right one")
		if s := w.look(t, "a"); s.Keystore.TriesLeft != left || s.Keystore.State != "sealed" || s.Tunnel.State != "locked" || s.Gate == nil || s.Gate.Admitted != "" {
			t.Errorf("after a wrong PIN: %+v", s)
		}
	}
	w.phone(t, "a", "12\n", "unlock").says(t, "rempart: cannot use the PIN: a pin has 4 to 64 bytes, this one has 2", "give it as one line on the standard input, or with --pin-file")
	w.unlock(t, "a")
	w.awaitReady(t, "a")
	if s := w.look(t, "a"); s.Keystore.TriesLeft != tries {
		t.Errorf("after the right PIN the TPM takes %d tries, before it took %d", s.Keystore.TriesLeft, tries)
	}
}

// cutAroundUnlocks cuts the power of a locked handset, TPM and all (SIGKILL to
// every process), twelve times before, in and after an unlock.
func cutAroundUnlocks(t *testing.T, w *world) {
	w.locked(t, "a")
	at := time.Now()
	w.unlock(t, "a")
	took := time.Since(at)
	w.locked(t, "a")
	lowest := w.look(t, "a").Keystore.TriesLeft
	opened := 0
	for i := range 12 {
		done := make(chan said, 1)
		go func() { done <- w.phone(t, "a", pin+"\n", "unlock") }()
		time.Sleep(time.Duration(i) * took / 8)
		if err := w.PowerOff(t.Context(), "a", 0); err != nil {
			t.Fatal(err)
		}
		if s := <-done; s.code == 0 {
			opened++
		} else if strings.Contains(s.err, "wrong PIN") || strings.Contains(s.err, "locked out") {
			t.Errorf("cut %d: the right PIN was refused: %s", i, s)
		}
		if _, err := w.PowerOn(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		s := w.await(t, "a", "locked", 10*time.Second, func(s seen) bool { return s.Keystore.State == "sealed" && s.Boot != nil && s.Boot.ReadyNS != 0 })
		if s.Keystore.LockoutSeconds != 0 {
			t.Fatalf("locked out after %d cuts: %+v", i, s.Keystore)
		}
		lowest = min(lowest, s.Keystore.TriesLeft)
	}
	t.Logf("an unlock takes %s; %d of 12 unlocks were told to have succeeded; at least %d tries were left all the time", took.Round(time.Millisecond), opened, lowest)
	w.unlock(t, "a")
	w.awaitReady(t, "a")
}
