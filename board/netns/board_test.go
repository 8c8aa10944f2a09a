package netns

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"rempart/internal/proof"
)

// shared holds the test image, built once per run.
type shared struct {
	once sync.Once
	dir  string
	err  error
}

var built shared // test support; never written by production code

func TestMain(m *testing.M) {
	Stage()
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// image returns an image folder with the test's init.
func image(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		built.dir, built.err = os.MkdirTemp("", "rempart-image-")
		if built.err != nil {
			return
		}
		for _, d := range []string{"bin", "dev", "etc/rempart", "proc", "run", "state", "sys"} {
			built.err = errors.Join(built.err, os.MkdirAll(filepath.Join(built.dir, d), 0o755))
		}
		built.err = errors.Join(built.err, os.Chmod(built.dir, 0o755),
			os.WriteFile(filepath.Join(built.dir, "etc/rempart/policy"), []byte("none\n"), 0o644))
		build := exec.Command("go", "build", "-o", filepath.Join(built.dir, "bin/init"), "./testdata/init")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			built.err = errors.Join(built.err, fmt.Errorf("cannot build the test's init: %w: %s", err, out))
			return
		}
		built.err = errors.Join(built.err, os.Link(filepath.Join(built.dir, "bin/init"), filepath.Join(built.dir, "bin/rempart")))
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.dir
}

// worldName returns a name that no other test run uses.
func worldName() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return "t" + hex.EncodeToString(b[:])
}

// start starts a world and takes it down with the test, then checks that
// nothing is left.
func start(t *testing.T) *World {
	t.Helper()
	proof.NeedRoot(t)
	proof.Need(t, "swtpm", "swtpm_setup", "tcpdump", "go")
	return startNamed(t, worldName(), t.TempDir())
}

func startNamed(t *testing.T, name, state string) *World {
	t.Helper()
	w, err := Start(t.Context(), name, state)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.Release()
		if err := Down(context.Background(), name); err != nil {
			t.Error(err)
		}
		nothingLeft(t, name)
	})
	return w
}

// nothingLeft fails the test if anything of a world exists.
func nothingLeft(t *testing.T, world string) {
	t.Helper()
	h, err := openHierarchy("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	for _, path := range []string{runtimeDir(world), lockPath(world), h.path(world)} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left (%v)", path, err)
		}
	}
	for _, process := range left(world) {
		t.Errorf("process %s is left", process)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), world) {
		t.Errorf("a mount is left (%v)", err)
	}
}

// left returns the processes that have the world's name in their arguments, as
// each of its own has. (Those of its machines are in its control groups.)
func left(world string) (found []string) {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if cmdline, err := os.ReadFile(p); err == nil && strings.Contains(string(cmdline), world) {
			found = append(found, p+": "+string(cmdline))
		}
	}
	return found
}

// add adds a handset with the test's image.
func add(t *testing.T, w *World, name string, number int) {
	t.Helper()
	if _, err := w.Add(t.Context(), Spec{Name: name, Role: "handset", Number: number, Image: image(t)}); err != nil {
		t.Fatal(err)
	}
}

// sight is what the test's init tells.
type sight struct {
	PID, UID, GID                                int
	Args, Env                                    []string
	Descriptors                                  map[string]string
	Mounts                                       string
	Root, Dev                                    []string
	Cgroup, CgroupRoot, Host, CapEff, NoNewPrivs string
	WriteRoot, WriteImage                        string
	Processes, Devices                           []string
}

// on switches a machine on and waits until its init is ready.
func on(t *testing.T, w *World, name string) (Machine, sight) {
	t.Helper()
	before, err := w.Machine(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	told := filepath.Join(before.Paths.State, "sight")
	os.Remove(told)
	m, err := w.PowerOn(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	var data []byte
	eventually(t, "init of "+name+" is ready", func() bool {
		data, err = os.ReadFile(told)
		return err == nil
	})
	var s sight
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	return m, s
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in 10 s: %s", what)
		}
	}
}

func TestMachineSeesItselfAlone(t *testing.T) {
	w := start(t)
	add(t, w, "a", 11)
	m, s := on(t, w, "A")
	if m.State != On || m.PID <= 1 {
		t.Errorf("machine is %+v, want on with a PID", m)
	}
	if s.PID != 1 || s.UID != 0 || s.Host != "a" || s.Cgroup != "/" || s.CgroupRoot != "/" {
		t.Errorf("init sees pid %d uid %d host %q cgroup %q (root %q), want 1 0 a / /", s.PID, s.UID, s.Host, s.Cgroup, s.CgroupRoot)
	}
	if got := strings.Join(s.Env, " "); got != "PATH=/bin REMPART_FDS=tpm" {
		t.Errorf("environment %q", got)
	}
	if got, want := strings.Join(s.Args, " "), "/bin/init radio=wwan0,203.0.113.11/24,2001:db8:113::11/64,203.0.113.254,2001:db8:113::fe,02:52:45:4d:50:fe "+
		"modem=usb1,192.0.2.11/24,2001:db8:2::11/64,192.0.2.254,2001:db8:2::fe,02:52:45:4d:50:fe"; got != want {
		t.Errorf("arguments %q, want %q", got, want)
	}
	// Every descriptor is one of these: null device, console pipe, TPM, and
	// what the Go runtime and this very listing opened inside.
	for fd, target := range s.Descriptors {
		ok := map[string]bool{"0": target == "/dev/null", "1": strings.HasPrefix(target, "pipe:"),
			"2": strings.HasPrefix(target, "pipe:"), "3": strings.HasPrefix(target, "socket:")}
		if want, known := ok[fd]; known && !want || !known && !strings.HasPrefix(target, "anon_inode:") && target != "" && !strings.HasPrefix(target, "/proc/") {
			t.Errorf("descriptor %s is %s", fd, target)
		}
	}
	if strings.Contains(strings.Join(s.Root, " "), "old") || len(s.Root) != 7 {
		t.Errorf("root has %v", s.Root)
	}
	if !strings.Contains(s.WriteRoot, "read-only") || !strings.Contains(s.WriteImage, "read-only") {
		t.Errorf("writing the root gave %q, the image %q", s.WriteRoot, s.WriteImage)
	}
	if n := strings.Count(s.Mounts, "\n"); n != 9 {
		t.Errorf("%d mounts, want root, dev, sound card, run, proc, sys, bpf, cgroup2, state:\n%s", n, s.Mounts)
	}
	for line := range strings.Lines(s.Mounts) {
		f := strings.Fields(line)
		if !strings.Contains(f[5], "nosuid") || f[4] == "/" && !strings.HasPrefix(f[5], "ro,") {
			t.Errorf("mount %s", line)
		}
	}
	if len(s.Processes) != 1 {
		t.Errorf("init sees processes %v", s.Processes)
	}
	if len(s.Devices) != 2 || s.Devices[1] != "wwan0 up=false 02:52:45:4d:00:0b" {
		t.Errorf("init was given devices %v, want lo and wwan0, down", s.Devices)
	}
	if len(s.Dev) != 6 {
		t.Errorf("/dev has %v", s.Dev)
	}
}
