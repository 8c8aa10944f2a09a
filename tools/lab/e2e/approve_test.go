package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"rempart/internal/proof"
)

// keptBy returns the content of every file below a folder.
func keptBy(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files[path] = string(read(t, path))
		}
		return err
	})
	if err != nil || len(files) < 3 {
		t.Fatalf("%s has %d files, %v", dir, len(files), err)
	}
	return files
}

// rebuilt makes programs that do the same and are other bytes.
func rebuilt(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		if err := os.WriteFile(filepath.Join(to, e.Name()), append(read(t, filepath.Join(from, e.Name())), "\nbuilt again"...), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// TestOnlyWhatIsApprovedOpens goes through the life of one handset's secrets:
// enrolled; the same after new binaries; closed to what was not approved; and,
// after an update, closed to what came before it.
func TestOnlyWhatIsApprovedOpens(t *testing.T) {
	proof.SFR(t, "FPT_TUD_EXT.1", "")
	programs := bin(t)
	t.Parallel()
	w := plan(t, "e2eapproved", t.TempDir(), programs)
	w.up(t, "--handsets", "1")
	w.down(t)
	vault := filepath.Join(w.state, "machines", "a", "state", "keyd")
	sealed := keptBy(t, vault)

	t.Run("rebuilt", func(t *testing.T) {
		again := rebuilt(t, programs)
		s := w.tryUp(t, "--handsets", "1", "--bin", again)
		if s.code != 0 || strings.Contains(s.out, "enrolled") || !strings.Contains(s.out, "image of the handset made, policy signed, boot approved") {
			t.Fatalf("up with new binaries: %s", s)
		}
		w.open(t)
		digest := sha256.Sum256(read(t, filepath.Join(again, "voiced")))
		measured := false
		for _, m := range w.look(t, "a").Boot.Measured {
			measured = measured || m.Name == "voiced" && m.Digest == hex.EncodeToString(digest[:])
		}
		if !measured {
			t.Error("what was measured is not the new voiced")
		}
		w.down(t)
		for path, content := range keptBy(t, vault) {
			if sealed[path] != content {
				t.Errorf("%s was written anew", path)
			}
			delete(sealed, path)
		}
		if len(sealed) != 0 {
			t.Errorf("gone: %d files", len(sealed))
		}
	})
	refused := regexp.MustCompile(`^rempart-lab: cannot unlock a: rempart unlock on a: cannot unlock: this image is not the approved one: pcr 1[13] is [0-9a-f]{8}…, approved is [0-9a-f]{8}…
hint: start the handset from an image whose approval the image key has signed \(rempart-policy approve\)
$`)
	t.Run("program changed", func(t *testing.T) {
		image := w.copyImage(t, "changed")
		file := filepath.Join(image, "bin/voiced")
		replace(t, file, append(read(t, file), 0))
		if s := w.tryUp(t, "--handsets", "1", "--image", image); s.code == 0 || !refused.MatchString(s.err) {
			t.Errorf("up with one byte more in voiced: %s", s)
		}
	})
	newPolicy := func(t *testing.T, image, old, new string) {
		t.Helper()
		_, document, _ := bytes.Cut(read(t, filepath.Join(image, "etc/rempart/policy")), []byte("\n\n"))
		source := filepath.Join(t.TempDir(), "policy.json")
		replace(t, source, bytes.Replace(document, []byte(old), []byte(new), 1))
		w.policyTool(t, "sign", "-key", filepath.Join(w.state, "keys/policy"), "-in", source, "-out", filepath.Join(image, "etc/rempart/policy"))
	}
	t.Run("policy changed", func(t *testing.T) {
		image := w.copyImage(t, "resigned")
		newPolicy(t, image, `"name": "lab-handset"`, `"name": "lab-handsex"`)
		if s := w.tryUp(t, "--handsets", "1", "--image", image); s.code == 0 || !refused.MatchString(s.err) {
			t.Errorf("up with another policy, signed, and the old approval: %s", s)
		}
	})
	t.Run("older", func(t *testing.T) {
		image := w.copyImage(t, "newer")
		newPolicy(t, image, `"serial": 1`, `"serial": 2`)
		w.policyTool(t, "approve", "-key", filepath.Join(w.state, "keys/image"), "-image", image, "-out", filepath.Join(image, "etc/rempart/approval"))
		w.up(t, "--handsets", "1", "--image", image)
		if s := w.look(t, "a"); s.Keystore.Floor != 2 || s.Keystore.Serial != 2 || s.Boot.Policy.Serial != 2 {
			t.Errorf("after the update: %+v", s.Keystore)
		}
		w.down(t)
		w.tryUp(t, "--handsets", "1").says(t, `rempart-lab: a did not get ready for its user: machine is off: init: cannot boot past step "policy": `+
			"older than the rollback floor: serial 1 is revoked in this TPM",
			"no link was brought up; a newer policy was accepted on this handset before; install one with its serial or a higher one")
		w.up(t, "--handsets", "1", "--image", image) // the handset is not harmed
	})
}

// upSaysWhy boots from an image whose policy is garbled.
func upSaysWhy(t *testing.T, w *world) {
	image := w.copyImage(t, "garbled")
	replace(t, filepath.Join(image, "etc/rempart/policy"), []byte("nonsense"))
	other := plan(t, w.name+"g", t.TempDir(), w.bin)
	other.tryUp(t, "--handsets", "1", "--image", image).says(t,
		`rempart-lab: a did not get ready for its user: machine is off: init: cannot boot past step "policy": cannot open the policy: garbled: the first line is not "rempart-policy 1"`,
		"no link was brought up; put a bundle signed by the key in /etc/rempart/policy.pub there (rempart-policy sign)")
}
