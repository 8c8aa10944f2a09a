package e2e_test

import (
	"bytes"
	"encoding/hex"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rempart/board/netns"
	"rempart/boot/eventlog"
	"rempart/boot/manifest/load"
	"rempart/boot/predict"
	"rempart/boot/report"
	"rempart/boot/stage"
	"rempart/internal/proof"
)

// secretState calls and then looks for the call in a copy of the folder that
// outlives the handset.
func secretState(t *testing.T, w *world) {
	proof.SFR(t, "FDP_DAR_EXT.1", "")
	var hidden []string
	for _, to := range []string{"b", "c"} {
		r := w.talks(t, "a", to)
		hidden = append(hidden, r.SAS, r.CallID, r.PeerURI, r.PeerCertificate, "handsets.example/"+to)
	}
	m := w.machine(t, "a")
	s := w.look(t, "a")
	if s.Telephone.Last == nil || s.Telephone.Last.Peer != "c" {
		t.Fatalf("the handset does not know its last call: %+v", s.Telephone)
	}
	// The log is written without anybody waiting for it.
	log := filepath.Join(m.Paths.State, "voiced", "calls")
	time.Sleep(300 * time.Millisecond)
	dir := filepath.Join(t.TempDir(), "copy")
	if s := command(t, "", "cp", "-a", m.Paths.State, dir); s.code != 0 {
		t.Fatal(s)
	}
	files := keptBy(t, dir)
	if len(read(t, log)) < 1000 {
		t.Errorf("the call log has %d bytes: is it written?", len(read(t, log)))
	}
	for path, content := range files {
		for _, word := range append(hidden, "hung_up", "outgoing", "\"sas\"") {
			if raw, err := hex.DecodeString(word); err == nil && len(raw) > 3 && bytes.Contains([]byte(content), raw) {
				t.Errorf("%s shows %q in binary", path, word)
			}
			if word != "" && strings.Contains(strings.ToLower(content), strings.ToLower(word)) {
				t.Errorf("%s shows %q", path, word)
			}
		}
	}
	// It is in the log all the same: the next call remembers the peer.
	if r := w.talks(t, "a", "b"); !r.PeerSeenBefore {
		t.Error("the handset has forgotten whom it spoke to")
	}
}

// measuredAll holds against each other what init says it extended, its event
// log, what the image predicts and what the image key approved. The TPM itself
// has judged too: keyd opened, and it opens for no other values of PCR 11 and 13
// than the approved ones.
func measuredAll(t *testing.T, w *world) {
	proof.SFR(t, "FPT_TST_EXT.1", "TestOnlyWhatIsApprovedOpens")
	for name, role := range map[string]string{"a": stage.Handset, "gateway": stage.Gateway} {
		m, s := w.machine(t, name), w.look(t, name)
		stages, err := stage.For(role)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		claimed := [32]byte{}
		for _, one := range s.Boot.Measured {
			names = append(names, one.Name)
			digest, err := hex.DecodeString(one.Digest)
			if err != nil || one.PCR != stage.PCRStages {
				t.Fatalf("%s: %+v, %v", name, one, err)
			}
			claimed = eventlog.Replay([]eventlog.Event{{PCR: one.PCR, Digest: [32]byte(digest)}})[one.PCR]
		}
		var want []string
		for _, one := range stages {
			want = append(want, one.Name)
		}
		if strings.Join(names, " ") != strings.Join(want, " ") || claimed == [32]byte{} {
			t.Errorf("%s measured %q, want %q", name, names, want)
		}
		events, err := eventlog.Parse(read(t, filepath.Join(m.Paths.Root, report.EventLogPath)))
		if err != nil {
			t.Fatal(err)
		}
		replayed := eventlog.Replay(events)[stage.PCRStages]
		predicted, err := predict.PCRs(predict.Image{Dir: m.Image})
		if err != nil {
			t.Fatal(err)
		}
		policy, _, err := load.Policy(filepath.Join(m.Image, "etc/rempart"))
		if err != nil {
			t.Fatal(err)
		}
		approval, err := load.Approval(filepath.Join(m.Image, "etc/rempart"), policy)
		if err != nil {
			t.Fatal(err)
		}
		approved, _ := approval.For("rempart-boot")
		if v := approved.Values()[stage.PCRStages]; replayed != predicted[stage.PCRStages] || v != replayed {
			t.Errorf("%s: PCR 13 replays to %x, predicted is %x, approved %x", name, replayed, predicted[stage.PCRStages], v)
		}
		if s.Keystore.State != "capped" {
			t.Errorf("%s: the TPM has not opened for these values: %+v", name, s.Keystore)
		}
	}
}

// doctors: the doctor finds nothing on a good handset, and what is broken.
func doctors(t *testing.T, w *world) {
	proof.Need(t, "nsenter", "tc")
	wrong := func(s said) (all []string) {
		for line := range strings.Lines(s.out) {
			if rest, ok := strings.CutPrefix(line, "WRONG"); ok {
				all = append(all, strings.TrimSpace(rest))
			}
		}
		return all
	}
	healthy := func(name string) {
		t.Helper()
		s := w.phone(t, name, "", "doctor")
		for _, line := range wrong(s) {
			t.Errorf("the doctor of %s: %s", name, line)
		}
		if strings.Count(s.out, "\nok ") < 10 {
			t.Errorf("the doctor of %s: %s", name, s)
		}
	}
	healthy("a")
	healthy("gateway")
	for _, c := range []struct {
		what   string
		change func(m netns.Machine) []string
		names  []string // what the doctor says is wrong
	}{
		{"the floor was removed", func(m netns.Machine) []string {
			return []string{"--net=" + m.Paths.Black, "tc", "qdisc", "del", "dev", "wwan0", "clsact"}
		}, []string{"gate on wwan0", "floor"}},
		{"a device was moved into red", func(m netns.Machine) []string {
			return []string{"--net=" + m.Paths.Own, "sh", "-c", "ip link add stray0 type veth peer name stray1 && ip link set stray0 netns " + m.Paths.Red}
		}, []string{"is not the tunnel's"}},
	} {
		if s := command(t, "", "nsenter", c.change(w.machine(t, "a"))...); s.code != 0 {
			t.Fatalf("%s: it was not: %s", c.what, s)
		}
		at := time.Now()
		w.await(t, "a", "closed", time.Second, func(s seen) bool { return s.Boot != nil && s.Boot.Closed && !s.Boot.Devices[0].Up })
		t.Logf("closed, radio down, %s after %s", time.Since(at).Round(time.Millisecond), c.what)
		s := w.phone(t, "a", "", "doctor")
		found := strings.Join(wrong(s), "\n")
		for _, name := range c.names {
			if !strings.Contains(found, name) {
				t.Errorf("%s: the doctor does not name %s: %s", c.what, name, s)
			}
		}
		if s.code == 0 {
			t.Errorf("%s: the doctor of the handset: %s", c.what, s)
		}
		w.locked(t, "a")
		w.unlock(t, "a")
		w.awaitReady(t, "a")
		healthy("a")
	}
}
