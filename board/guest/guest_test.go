package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"rempart/internal/proof"
)

func TestMain(m *testing.M) {
	Stage()
	os.Exit(m.Run())
}

// need skips at a desk where there is no QEMU or no kernel, and fails in CI.
func need(t *testing.T) Kernel {
	t.Helper()
	proof.Need(t, emulator)
	k, err := FindKernel()
	if err != nil {
		proof.Missing(t, err.Error())
	}
	return k
}

// TestGuest is two boots for all: what this package promises of output and endings, then
// the tests that this desk's kernel cannot run.
func TestGuest(t *testing.T) {
	k := need(t)
	var out, errs, big, late, spoilt, left bytes.Buffer
	commands := []Command{
		{Argv: []string{"sh", "-c", "uname -r; pwd; cat /proc/net/dev; echo aside >&2; exit 7"}, Stdout: &out, Stderr: &errs},
		{Argv: []string{"/bin/sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; printf end"}, Stdout: &big},
		{Argv: []string{"/bin/sh", "-c", "sleep 60 & echo begun; sleep 60"}, Timeout: time.Second, Stdout: &late},
		{Argv: []string{"/bin/sh", "-c", "touch doc.go run.go new.go && ls new.go && kill -9 $$"}, Stdout: &spoilt},
		{Argv: []string{"/bin/sh", "-c", "cat /proc/[0-9]*/comm | grep -x sleep; echo none"}, Stdout: &left},
	}
	suites := suites(t)
	var more []Command // in a guest of their own, beside the first: each has one processor
	for i, s := range suites {
		if i == 0 {
			commands = append(commands, s.command())
		} else {
			more = append(more, s.command())
		}
	}
	before := sum(t, "doc.go")
	begin := time.Now()
	var beside []Ending
	var besideErr error
	var both sync.WaitGroup
	both.Go(func() { beside, besideErr = RunEach(t.Context(), Options{Kernel: k, Timeout: 10 * time.Minute}, more) })
	ends, err := RunEach(t.Context(), Options{Kernel: k, Timeout: 10 * time.Minute}, commands)
	both.Wait()
	if err := errors.Join(err, besideErr); err != nil {
		t.Fatal(err)
	}
	ends = append(ends, beside...)
	t.Logf("%s: %v", k.Package, time.Since(begin).Round(100*time.Millisecond))
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	if ends[0].Code != 7 || lines[0] != k.Release || lines[1] != here || errs.String() != "aside\n" {
		t.Errorf("%+v, %q, %q", ends[0], lines, &errs)
	}
	if devices := strings.Count(out.String(), ":"); devices != 1 {
		t.Errorf("the guest has %d network devices, want lo alone: %s", devices, &out)
	}
	if want := strings.Repeat("x", 3000000) + "end"; big.String() != want || ends[1].Err() != nil {
		t.Errorf("%d bytes of output, want %d; %+v", big.Len(), len(want), ends[1])
	}
	if e := ends[2]; !e.TimedOut || e.Signal != 9 || e.Took > 10*time.Second || late.String() != "begun\n" {
		t.Errorf("a command beyond its limit: %+v, %q", e, &late)
	}
	if e := ends[3]; e.Signal != 9 || e.Code != -1 || e.TimedOut || spoilt.String() != "new.go\n" {
		t.Errorf("a killed command: %+v, %q", e, &spoilt)
	}
	if left.String() != "none\n" {
		t.Errorf("processes of an earlier command live: %q", &left)
	}
	if _, err := os.Stat("new.go"); err == nil || sum(t, "doc.go") != before {
		t.Error("the guest wrote to the desk's file system")
	}
	for i, s := range suites {
		t.Run(s.name, func(t *testing.T) { s.judge(t, ends[len(ends)-len(suites)+i]) })
	}
}

func sum(t *testing.T, path string) string {
	t.Helper()
	i, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(i.ModTime(), sha256.Sum256(data))
}

// TestGuestEnds: a guest that is no longer wanted, or cannot do its work, is gone and leaves nothing.
func TestGuestEnds(t *testing.T) {
	k := need(t)
	t.Run("cancelled", func(t *testing.T) {
		t.Setenv("TMPDIR", t.TempDir())
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		begin := time.Now()
		if _, err := Run(ctx, Options{Kernel: k}, "sleep", "100"); err == nil || time.Since(begin) > 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		empty(t)
	})
	t.Run("out of time", func(t *testing.T) {
		t.Setenv("TMPDIR", t.TempDir())
		_, err := Run(t.Context(), Options{Kernel: k, Timeout: 300 * time.Millisecond}, "sleep", "100")
		if err == nil || !strings.Contains(err.Error(), "not done within 300ms") {
			t.Errorf("%v", err)
		}
		empty(t)
	})
	t.Run("no such program", func(t *testing.T) {
		t.Setenv("TMPDIR", t.TempDir())
		_, err := Run(t.Context(), Options{Kernel: k, Memory: 256}, "/no/such/program")
		if err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("%v", err)
		}
		empty(t)
	})
}

// empty says that neither a file nor a QEMU of ours is left.
func empty(t *testing.T) {
	t.Helper()
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	if err != nil || len(bytes.TrimSpace(children)) > 0 {
		t.Errorf("children: %s, %v", children, err)
	}
}

func TestOrdersThatCannotBeCarriedOut(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON": "{", "no command": "{}", "no program": `{"Commands":[{"Timeout":1}]}`, "no limit": `{"Commands":[{"Argv":["x"]}]}`,
	} {
		if o, err := parseOrder([]byte(text)); err == nil {
			t.Errorf("%s: %+v", name, o)
		}
	}
	if _, err := RunEach(t.Context(), Options{Kernel: Kernel{Release: "1"}}, nil); err == nil {
		t.Error("an order of no commands was taken")
	}
}

func TestWhatTheGuestSaysIsReadBack(t *testing.T) {
	var b bytes.Buffer
	want := said{saidErr, 3, []byte("text")}
	if err := want.write(&b); err != nil {
		t.Fatal(err)
	}
	if got, err := readSaid(&b); err != nil || got.kind != want.kind || got.command != want.command || !bytes.Equal(got.body, want.body) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range [][]byte{{0, 0, 0, 1, 1}, {0, 0, 0, 2, 9, 0}, {0, 0, 0, 9, 1}, {1, 0, 0, 0}} {
		if s, err := readSaid(bytes.NewReader(bad)); err == nil {
			t.Errorf("% x was read as %+v", bad, s)
		}
	}
	for _, e := range []Ending{{Code: 1}, {Signal: 9}, {TimedOut: true}} {
		if e.Err() == nil {
			t.Errorf("%+v is no error", e)
		}
	}
	var speaksOfAnother bytes.Buffer
	if err := (said{saidOut, 1, nil}).write(&speaksOfAnother); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(&speaksOfAnother, make([]Command, 2)); err == nil {
		t.Error("output of a command that does not run was taken")
	}
}

func TestModulesAreLoadedAfterWhatTheyNeed(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := kernelIn(dir); err == nil {
		t.Error("a kernel was found in an empty folder")
	}
	write("package", "Package: linux-image-1\nVersion: 1-1\n")
	if _, err := kernelIn(dir); err == nil {
		t.Error("a kernel without an image was found")
	}
	write("boot/vmlinuz-1", "")
	write("lib/modules/1/modules.dep", "a/one.ko.xz: b/two.ko.xz c/three.ko.xz\nb/two.ko.xz: c/three.ko.xz\nc/three.ko.xz:\n")
	k, err := kernelIn(dir)
	if err != nil || k.Release != "1" || k.Package != "linux-image-1 1-1" {
		t.Fatalf("%+v, %v", k, err)
	}
	got, err := k.before([]string{"two", "one"})
	for i := range got {
		got[i] = filepath.Base(got[i])
	}
	if want := []string{"three.ko.xz", "two.ko.xz", "one.ko.xz"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if _, err := k.before([]string{"four"}); err == nil {
		t.Error("a module that is not there was found")
	}
	write("package", "nothing\n")
	if _, err := kernelIn(dir); err == nil {
		t.Error("a kernel without a version was found")
	}
}

// TestDiskIsWhatCpioReads: an independent reader unpacks the RAM disk.
func TestDiskIsWhatCpioReads(t *testing.T) {
	proof.Need(t, "cpio")
	var b bytes.Buffer
	d := &disk{w: &b}
	d.folder("dev")
	want := map[string]string{"one": "1", "four": "1234", "five": "12345", "none": ""}
	for name, text := range want {
		d.file("dev/"+name, 0o755, []byte(text))
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command("cpio", "-i", "--quiet", "--no-absolute-filenames")
	cmd.Dir, cmd.Stdin = dir, &b
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	for name, text := range want {
		got, err := os.ReadFile(filepath.Join(dir, "dev", name))
		if i, serr := os.Stat(filepath.Join(dir, "dev", name)); err != nil || string(got) != text || serr != nil || i.Mode() != 0o755 {
			t.Errorf("%s: %q, %v, %v", name, got, err, serr)
		}
	}
	if d.copy("x", 0, filepath.Join(dir, "nothing")); d.close() == nil {
		t.Error("a missing file made no error")
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var all bytes.Buffer
	c := &tail{next: &all}
	for range 3 * tailSize / 8 {
		fmt.Fprint(c, "1234567\n")
	}
	fmt.Fprint(c, "the end\n")
	if s := c.String(); len(s) > tailSize || !strings.HasSuffix(s, "the end") || all.Len() != 3*tailSize+8 {
		t.Errorf("%d bytes kept, %d passed on", len(s), all.Len())
	}
}
