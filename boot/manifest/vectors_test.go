package manifest

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/vectors anew, with new keys")

// vectorDir holds one bundle per file, each with one fault at most: the name
// of the file begins with the reason to refuse it, or with "accepted". Other
// implementations can be held to it. The private key was thrown away: a
// vector that no longer reads as it did is a fault of the reader, since
// bundles like it are in the field.
const vectorDir = "testdata/vectors"

// minVectors keeps a lost folder from being taken for a pass.
const minVectors = 25

func slug(s string) string { return strings.ReplaceAll(strings.ReplaceAll(s, " ", "-"), "'", "") }

func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	anchor, err := os.ReadFile(filepath.Join(vectorDir, "policy.pub"))
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := ParsePublicKeys(anchor)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(vectorDir, "*.bundle"))
	if err != nil || len(files) < minVectors {
		t.Fatalf("found %d vectors, %v; want %d at least", len(files), err, minVectors)
	}
	seen := map[string]int{}
	for _, file := range files {
		bundle, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		want, _, ok := strings.Cut(filepath.Base(file), "--")
		if !ok {
			t.Errorf("%s: the name has no reason", file)
		}
		got := "accepted"
		if _, err := Open(bundle, trusted); err != nil {
			got = slug(Reason(err))
		}
		if got != want {
			t.Errorf("%s: %s", file, got)
		}
		seen[want]++
	}
	for _, reason := range []error{ErrTooLarge, ErrUnsigned, ErrGarbled, ErrVersion, ErrWrongKey, ErrBadSignature, ErrInvalid, errors.New("accepted")} {
		if seen[slug(reason.Error())] == 0 {
			t.Errorf("no vector for %q", reason)
		}
	}
}

func writeVectors(t *testing.T) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(vectorDir), os.MkdirAll(vectorDir, 0o755)); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	write := func(name string, content []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(vectorDir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("policy.pub", []byte(publicPEM(t, w.policy)))
	write("accepted--handset.bundle", w.bundle(t, w.document(t)))
	write("accepted--gateway.bundle", w.bundle(t, strings.Replace(w.document(t), `"handset"`, `"gateway"`, 1)))
	for _, c := range faultyBundles(t, w) {
		if len(c.bundle) < MaxDocument { // the others only are long
			write(slug(c.want.Error())+"--"+slug(c.name)+".bundle", []byte(c.bundle))
		}
	}
}
