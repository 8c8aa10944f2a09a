package predict

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"rempart/boot/eventlog"
	"rempart/boot/manifest"
	"rempart/boot/measure"
	"rempart/boot/stage"
)

func put(t testing.TB, dir, name string, content []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o755); err != nil {
		t.Fatal(err)
	}
}

func image(t testing.TB, role string) string {
	t.Helper()
	dir := t.TempDir()
	stages, err := stage.For(role)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range append(stage.Firmware(), stages...) {
		if s.Kind != stage.Root {
			put(t, dir, s.Path, []byte("the bytes of "+s.Name))
		}
	}
	return dir
}

// TestPredictionIsTheBoot computes by hand what the firmware and init extend.
func TestPredictionIsTheBoot(t *testing.T) {
	for _, role := range []string{stage.Handset, stage.Gateway} {
		dir := image(t, role)
		values, err := PCRs(Image{Dir: dir, Role: role})
		if err != nil {
			t.Fatal(err)
		}
		root, err := measure.RootDigest(dir)
		if err != nil {
			t.Fatal(err)
		}
		want11 := eventlog.Extend(eventlog.Extend([32]byte{}, sha256.Sum256([]byte("the bytes of init"))), root)
		if values[11] != want11 {
			t.Errorf("%s: PCR 11 is %x, want %x", role, values[11], want11)
		}
		fourth := map[string]string{stage.Handset: "voiced", stage.Gateway: "gatewayd"}[role]
		var want13 [32]byte
		names := []string{"egressd", "policy", "watchd", "keyd", "tunneld", fourth, "rempart"}
		if role == stage.Handset {
			names = slices.Insert(names, 4, "linkd")
		}
		for _, name := range names {
			want13 = eventlog.Extend(want13, sha256.Sum256([]byte("the bytes of "+name)))
		}
		if values[13] != want13 {
			t.Errorf("%s: PCR 13 is %x, want %x", role, values[13], want13)
		}
		if v, ok := values[15]; !ok || v != [32]byte{} || len(values) != 3 {
			t.Errorf("%s: values are %x, want PCR 11, 13 and 15 at zero", role, values)
		}
	}
}

func TestEveryMeasuredFileCounts(t *testing.T) {
	dir := image(t, stage.Handset)
	before, err := PCRs(Image{Dir: dir, Role: stage.Handset})
	if err != nil {
		t.Fatal(err)
	}
	stages, err := stage.For(stage.Handset)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range stages {
		put(t, dir, s.Path, []byte("other"))
		after, err := PCRs(Image{Dir: dir, Role: stage.Handset})
		if err != nil {
			t.Fatal(err)
		}
		if after[11] == before[11] || after[13] == before[13] {
			t.Errorf("another %s changes neither or one of PCR 11 and 13", s.Name)
		}
		put(t, dir, s.Path, []byte("the bytes of "+s.Name))
	}
	if again, err := PCRs(Image{Dir: dir, Role: stage.Handset}); err != nil || again[11] != before[11] || again[13] != before[13] {
		t.Errorf("the same image gives other values: %v", err)
	}
}

func TestPredictRefuses(t *testing.T) {
	dir := image(t, stage.Handset)
	for name, image := range map[string]Image{
		"another role's image": {dir, stage.Gateway},
		"an unknown role":      {dir, "phone"},
		"no folder":            {filepath.Join(dir, "none"), stage.Handset},
	} {
		if values, err := PCRs(image); err == nil || values != nil {
			t.Errorf("%s: %x, %v", name, values, err)
		}
	}
	// Without a role the signed policy is asked, and this one is noise.
	if _, err := PCRs(Image{Dir: dir}); !errors.Is(err, manifest.ErrMissing) {
		t.Errorf("no anchor: %v, want %v", err, manifest.ErrMissing)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	anchor, err := manifest.MarshalPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, "etc/rempart/policy.pub", []byte(anchor))
	if _, err := PCRs(Image{Dir: dir}); !errors.Is(err, manifest.ErrGarbled) {
		t.Errorf("a garbled policy: %v, want %v", err, manifest.ErrGarbled)
	}
}
