package measure

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/boot/eventlog"
	"rempart/boot/stage"
	"rempart/internal/proof"
)

// pcrs is a TPM's SHA-256 bank as far as extending goes; fails at the call of
// that number, from 1.
type pcrs struct {
	values map[int][32]byte
	calls  int
	fails  int
}

var errTPM = errors.New("TPM_RC_FAILURE")

func (p *pcrs) Extend(pcr int, digest [32]byte) error {
	if p.calls++; p.calls == p.fails {
		return errTPM
	}
	p.values[pcr] = eventlog.Extend(p.values[pcr], digest)
	return nil
}

func put(t testing.TB, dir, name, content string, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// image makes an image folder with every stage of both roles.
func image(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, role := range []string{stage.Handset, stage.Gateway} {
		stages, err := stage.For(role)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range append(stage.Firmware(), stages...) {
			if s.Kind != stage.Root {
				put(t, dir, s.Path, "the bytes of "+s.Name, 0o755)
			}
		}
	}
	return dir
}

func TestLogReplaysToThePCRs(t *testing.T) {
	proof.SFR(t, "FPT_TST_EXT.1", "TestFailureStops")
	dir := image(t)
	tpm := &pcrs{values: map[int][32]byte{}}
	var out bytes.Buffer
	log := NewLog(tpm, eventlog.NewWriter(&out))
	stages, err := stage.For(stage.Handset)
	if err != nil {
		t.Fatal(err)
	}
	stages = append(stage.Firmware(), stages...)
	for _, s := range stages {
		digest, err := log.Measure(dir, s)
		if err != nil {
			t.Fatal(err)
		}
		if want := sha256.Sum256([]byte("the bytes of " + s.Name)); s.Kind != stage.Root && digest != want {
			t.Errorf("%s measured as %x, want %x", s.Name, digest, want)
		}
	}
	events, err := eventlog.Parse(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range stages {
		if string(events[i].Data) != s.Name || events[i].PCR != s.PCR {
			t.Errorf("event %d is %q in PCR %d, want %q in %d", i, events[i].Data, events[i].PCR, s.Name, s.PCR)
		}
	}
	replayed := eventlog.Replay(events)
	if fmt.Sprint(replayed) != fmt.Sprint(tpm.values) {
		t.Errorf("the log replays to %x, the TPM holds %x", replayed, tpm.values)
	}
}

// full is a log's disk that is full from the n-th write on.
type full struct{ n int }

func (f *full) Write(b []byte) (int, error) {
	if f.n--; f.n < 0 {
		return 0, io.ErrShortWrite
	}
	return len(b), nil
}

// TestFailureStops: whichever half fails, nothing is measured afterwards, and
// a failed extend leaves no event behind.
func TestFailureStops(t *testing.T) {
	dir := image(t)
	stages, err := stage.For(stage.Handset)
	if err != nil {
		t.Fatal(err)
	}
	for at := range stages {
		var out bytes.Buffer
		tpm := &pcrs{values: map[int][32]byte{}, fails: at + 1}
		log := NewLog(tpm, eventlog.NewWriter(&out))
		for i, s := range stages {
			_, err := log.Measure(dir, s)
			if (err == nil) != (i < at) {
				t.Fatalf("TPM fails at %d: stage %d gave %v", at, i, err)
			}
			if err != nil && (!errors.Is(err, errTPM) || !strings.Contains(err.Error(), stages[at].Name)) {
				t.Errorf("error %v does not name %s and its cause", err, stages[at].Name)
			}
		}
		if tpm.calls != at+1 {
			t.Errorf("the TPM failed at call %d and was called %d times", at+1, tpm.calls)
		}
		if err := log.Add(13, "more", [32]byte{}); !errors.Is(err, errTPM) {
			t.Errorf("Add after the failure: %v", err)
		}
		if events, err := eventlog.Parse(out.Bytes()); at > 0 && (err != nil || len(events) != at) {
			t.Errorf("TPM fails at %d: the log has %d events, %v", at, len(events), err)
		}

		tpm = &pcrs{values: map[int][32]byte{}}
		log = NewLog(tpm, eventlog.NewWriter(&full{at}))
		for i, s := range stages {
			if _, err := log.Measure(dir, s); (err == nil) != (i < at) {
				t.Fatalf("log fails at %d: stage %d gave %v", at, i, err)
			}
		}
		if tpm.calls != at+1 {
			t.Errorf("the log failed at %d and the TPM was called %d times", at+1, tpm.calls)
		}
	}
}

func TestMissingFileStops(t *testing.T) {
	dir := image(t)
	if err := os.Remove(filepath.Join(dir, "bin/keyd")); err != nil {
		t.Fatal(err)
	}
	tpm := &pcrs{values: map[int][32]byte{}}
	log := NewLog(tpm, eventlog.NewWriter(io.Discard))
	_, err := log.Measure(dir, stage.Stage{Name: "keyd", Kind: stage.Program, PCR: stage.PCRStages, Path: "bin/keyd"})
	if !errors.Is(err, os.ErrNotExist) || tpm.calls != 0 {
		t.Errorf("got %v after %d extends", err, tpm.calls)
	}
	if err := log.Add(stage.PCRStages, "x", [32]byte{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("went on after it: %v", err)
	}
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "a", "bytes", 0o644)
	put(t, dir, "empty", "", 0o644)
	for name, content := range map[string]string{"a": "bytes", "empty": ""} {
		if got, err := File(filepath.Join(dir, name)); err != nil || got != sha256.Sum256([]byte(content)) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
	if err := os.Symlink("a", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "pipe", ".", "none"} {
		if got, err := File(filepath.Join(dir, name)); err == nil || got != [32]byte{} {
			t.Errorf("%s has digest %x, %v", name, got, err)
		}
	}
}

func TestRootDigestIsAsWritten(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "bin/b", "two", 0o755)
	put(t, dir, "bin-a", "one", 0o644)
	put(t, dir, "etc/rempart/approval", "not covered", 0o644)
	put(t, dir, "z", "", 0o600)
	if err := os.Chmod(filepath.Join(dir, "z"), 0o600|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	// Sorted by bytes: '-' before '/'.
	lines := fmt.Sprintf("0644 bin-a %x\n0755 bin/b %x\n4600 z %x\n",
		sha256.Sum256([]byte("one")), sha256.Sum256([]byte("two")), sha256.Sum256(nil))
	got, err := RootDigest(dir)
	if want := sha256.Sum256([]byte(lines)); err != nil || got != want {
		t.Errorf("root digest %x, %v; want %x", got, err, want)
	}
}

func TestRootDigestSeesEveryChange(t *testing.T) {
	base := func() string {
		dir := image(t)
		put(t, dir, "etc/rempart/approval", "approval", 0o644)
		return dir
	}
	want, err := RootDigest(base())
	if err != nil {
		t.Fatal(err)
	}
	changes := map[string]struct {
		change func(dir string) error
		seen   bool
	}{
		"nothing": {func(string) error { return nil }, false},
		"times": {func(d string) error {
			return os.Chtimes(filepath.Join(d, "bin/init"), time.Unix(0, 0), time.Unix(0, 0))
		}, false},
		"an empty folder":    {func(d string) error { return os.Mkdir(filepath.Join(d, "empty"), 0o755) }, false},
		"the approval":       {func(d string) error { return os.WriteFile(filepath.Join(d, "etc/rempart/approval"), nil, 0o644) }, false},
		"no approval":        {func(d string) error { return os.Remove(filepath.Join(d, "etc/rempart/approval")) }, false},
		"a byte":             {func(d string) error { return os.WriteFile(filepath.Join(d, "bin/init"), []byte("x"), 0o755) }, true},
		"a mode":             {func(d string) error { return os.Chmod(filepath.Join(d, "bin/init"), 0o744) }, true},
		"setuid":             {func(d string) error { return os.Chmod(filepath.Join(d, "bin/init"), 0o755|os.ModeSetuid) }, true},
		"setgid":             {func(d string) error { return os.Chmod(filepath.Join(d, "bin/init"), 0o755|os.ModeSetgid) }, true},
		"sticky":             {func(d string) error { return os.Chmod(filepath.Join(d, "bin/init"), 0o755|os.ModeSticky) }, true},
		"a name":             {func(d string) error { return os.Rename(filepath.Join(d, "bin/init"), filepath.Join(d, "bin/init2")) }, true},
		"one more":           {func(d string) error { return os.WriteFile(filepath.Join(d, "bin/more"), nil, 0o755) }, true},
		"one less":           {func(d string) error { return os.Remove(filepath.Join(d, "bin/voiced")) }, true},
		"an approval astray": {func(d string) error { return os.WriteFile(filepath.Join(d, "bin/approval"), nil, 0o644) }, true},
		"two swapped":        {swap, true},
	}
	for name, c := range changes {
		dir := base()
		if err := c.change(dir); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := RootDigest(dir)
		if err != nil || (got != want) != c.seen {
			t.Errorf("%s: seen %v, %v; want %v", name, got != want, err, c.seen)
		}
	}
}

func swap(dir string) error {
	a, b, c := filepath.Join(dir, "bin/init"), filepath.Join(dir, "bin/keyd"), filepath.Join(dir, "bin/c")
	return errors.Join(os.Rename(a, c), os.Rename(b, a), os.Rename(c, b))
}

func TestRootDigestRefuses(t *testing.T) {
	for name, change := range map[string]func(dir string) error{
		"a link":              func(d string) error { return os.Symlink("init", filepath.Join(d, "bin/other")) },
		"a link to a folder":  func(d string) error { return os.Symlink("/", filepath.Join(d, "lib")) },
		"a pipe":              func(d string) error { return unix.Mkfifo(filepath.Join(d, "pipe"), 0o644) },
		"a name of two lines": func(d string) error { return os.WriteFile(filepath.Join(d, "a\nb"), nil, 0o644) },
		"a link as approval": func(d string) error {
			return errors.Join(os.MkdirAll(filepath.Join(d, "etc/rempart"), 0o755), os.Symlink("/", filepath.Join(d, "etc/rempart/approval")))
		},
		"no files": os.RemoveAll,
	} {
		dir := image(t)
		if err := change(dir); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, err := RootDigest(dir); err == nil || got != [32]byte{} {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
	if got, err := RootDigest(t.TempDir()); err == nil {
		t.Errorf("an empty folder has digest %x", got)
	}
}
