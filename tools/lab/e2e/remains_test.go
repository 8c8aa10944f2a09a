package e2e_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"rempart/board/netns"
)

// traces are the kernel objects of a world that runs, by names that the kernel
// does not use again: what must be gone when the world is.
type traces struct {
	cookies  map[uint64]string // of network namespaces
	links    map[uint32]string // BPF links that are pinned in a handset
	programs map[uint32]string // and what they run
	unseen   []string          // what could not be noted, and why
}

// bpf is bpf(2) with a plain attribute.
func bpf(command uintptr, attr []byte) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(unsafe.Pointer(&attr[0])), uintptr(len(attr)))
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// pinned opens a pin (BPF_OBJ_GET) and returns the ids that its fdinfo tells.
func pinned(t *testing.T, path string) (link, program uint32) {
	t.Helper()
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		t.Fatal(err)
	}
	attr := make([]byte, 16)
	*(*uint64)(unsafe.Pointer(&attr[0])) = uint64(uintptr(unsafe.Pointer(name)))
	fd, err := bpf(unix.BPF_OBJ_GET, attr)
	runtime.KeepAlive(name)
	if err != nil {
		return 0, 0 // it went away
	}
	defer unix.Close(fd)
	for line := range strings.Lines(string(read(t, fmt.Sprintf("/proc/self/fdinfo/%d", fd)))) {
		name, value, _ := strings.Cut(line, ":")
		id, _ := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
		switch name {
		case "link_id":
			link = uint32(id)
		case "prog_id":
			program = uint32(id)
		}
	}
	return link, program
}

// exists asks the kernel for a link or a program by its id.
func exists(command uintptr, id uint32) bool {
	attr := make([]byte, 16)
	*(*uint32)(unsafe.Pointer(&attr[0])) = id
	fd, err := bpf(command, attr)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err == nil
}

// cookie returns the kernel's own name of a network namespace, which it gives
// once.
func cookie(path string) (uint64, error) {
	type answer struct {
		cookie uint64
		err    error
	}
	done := make(chan answer, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		c, err := func() (uint64, error) {
			f, err := os.Open(path)
			if err != nil {
				return 0, err
			}
			defer f.Close()
			if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
				return 0, err
			}
			s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return 0, err
			}
			defer unix.Close(s)
			return unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		}()
		done <- answer{c, err}
	}()
	a := <-done
	return a.cookie, a.err
}

// trace notes what a world consists of now.
func (w *world) trace(t *testing.T) traces {
	t.Helper()
	tr := traces{cookies: map[uint64]string{}, links: map[uint32]string{}, programs: map[uint32]string{}}
	s, err := w.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	spaces := map[string]string{"the internet": s.Internet}
	for _, m := range s.Machines {
		if m.State != netns.On {
			continue
		}
		spaces[m.Name+"'s own"], spaces[m.Name+"'s red"], spaces[m.Name+"'s black"] = m.Paths.Own, m.Paths.Red, m.Paths.Black
		spaces[m.Name+"'s void"] = filepath.Join(filepath.Dir(m.Paths.Red), "void")
		// A machine may be going while this looks: what is not there is not noted.
		_ = filepath.WalkDir(filepath.Join(m.Paths.Root, "sys/fs/bpf"), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil
			}
			link, program := pinned(t, path)
			if link != 0 {
				tr.links[link] = path
			}
			if program != 0 {
				tr.programs[program] = path
			}
			return nil
		})
	}
	for name, path := range spaces {
		if c, err := cookie(path); err == nil {
			tr.cookies[c] = name
		} else {
			tr.unseen = append(tr.unseen, name+": "+err.Error())
		}
	}
	return tr
}

// left returns what exists of a world, in words.
func (w *world) left(tr traces) (all []string) {
	say := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	for _, path := range []string{"/run/rempart-lab/" + w.name, "/run/rempart-lab/" + w.name + ".lock", "/sys/fs/cgroup/rempart-lab/" + w.name} {
		if _, err := os.Lstat(path); err == nil {
			say("%s", path)
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	known := map[string]bool{}
	for _, p := range procs {
		if filepath.Base(p) == strconv.Itoa(os.Getpid()) {
			continue
		}
		text := func(name string) []byte { data, _ := os.ReadFile(filepath.Join(p, name)); return data }
		cmdline := bytes.ReplaceAll(text("cmdline"), []byte{0}, []byte{' '})
		if bytes.Contains(text("cgroup"), []byte("/rempart-lab/"+w.name+"/")) || bytes.Contains(cmdline, []byte(`"World":"`+w.name+`"`)) || bytes.Contains(cmdline, []byte(w.state+"/")) {
			say("process %s: %s", filepath.Base(p), cmdline)
		}
		for line := range bytes.Lines(text("mountinfo")) {
			if bytes.Contains(line, []byte("/run/rempart-lab/"+w.name+"/")) || bytes.Contains(line, []byte(w.state+"/")) {
				say("mount in process %s: %s", filepath.Base(p), line)
			}
		}
		spaces, _ := filepath.Glob(filepath.Join(p, "fd", "*"))
		for _, path := range append(spaces, filepath.Join(p, "ns/net")) {
			name, err := os.Readlink(path)
			if err != nil || !strings.HasPrefix(name, "net:[") || known[name] {
				continue
			}
			if c, err := cookie(path); err == nil {
				known[name] = true
				if of, ours := tr.cookies[c]; ours {
					say("%s network namespace, held by process %s: %s", of, filepath.Base(p), cmdline)
				}
			}
		}
	}
	for id, path := range tr.links {
		if exists(unix.BPF_LINK_GET_FD_BY_ID, id) {
			say("BPF link %d of %s", id, path)
		}
	}
	for id, path := range tr.programs {
		if exists(unix.BPF_PROG_GET_FD_BY_ID, id) {
			say("BPF program %d of %s", id, path)
		}
	}
	return all
}

// gone waits until nothing is left of a world: the kernel takes namespaces and
// programs away a moment after their last holder, seconds on a busy machine. It fails after limit.
func (w *world) gone(t *testing.T, what string, tr traces, limit time.Duration) {
	t.Helper()
	start := time.Now()
	until(t, limit, func() bool { return len(w.left(tr)) == 0 }, func() string { return what + " left:\n" + strings.Join(w.left(tr), "\n") })
	t.Logf("%s: %d namespaces, %d links, %d programs gone, the last seen to go after %s", what, len(tr.cookies), len(tr.links), len(tr.programs), time.Since(start).Round(time.Millisecond))
}

// full fails the test if a trace of a world that is up lacks something, so that
// an empty one proves nothing by accident.
func (tr traces) full(t *testing.T) traces {
	t.Helper()
	if len(tr.cookies) != 9 || len(tr.links) < 4 || len(tr.programs) < 4 {
		t.Fatalf("a world of a gateway and a handset has network namespaces %v (unseen: %q), links %v, programs %v", tr.cookies, tr.unseen, tr.links, tr.programs)
	}
	return tr
}

// TestNothingIsLeft ends worlds in every rude way.
func TestNothingIsLeft(t *testing.T) {
	programs := bin(t)
	t.Parallel()
	w := plan(t, "e2eleft", t.TempDir(), programs)
	w.up(t, "--handsets", "1")
	tr := w.trace(t).full(t)
	w.down(t)
	w.gone(t, "down", tr, 10*time.Second)

	for _, at := range []string{"gateway: TPM and init started", "a: TPM and init started", "a: unlocked"} {
		t.Run("Ctrl-C at "+at, func(t *testing.T) { w.interrupted(t, at, unix.SIGINT) })
	}
	t.Run("kill -9 of up", func(t *testing.T) { w.interrupted(t, "a: TPM and init started", unix.SIGKILL) })
	t.Run("kill -9 of the keeper", func(t *testing.T) {
		w.up(t, "--handsets", "1")
		tr := w.trace(t).full(t)
		s, err := w.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		kill9(t, s.Keeper)
		w.gone(t, "kill -9 of the keeper", tr, 10*time.Second)
		w.down(t)
	})
	t.Run("kill -9 of both", func(t *testing.T) {
		w.up(t, "--handsets", "1")
		tr := w.trace(t).full(t)
		s, err := w.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		kill9(t, s.Janitor)
		janitor := s.Janitor
		until(t, 5*time.Second, func() bool {
			if s, err = w.Status(t.Context()); err != nil {
				t.Fatal(err)
			}
			return s.Janitor != janitor && s.Janitor != 0
		}, func() string { return "no other janitor came" })
		// Stopped first, so that neither sees the other's end.
		for _, pid := range []int{s.Keeper, s.Janitor} {
			if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		}
		kill9(t, s.Keeper)
		kill9(t, s.Janitor)
		if len(w.left(tr)) == 0 {
			t.Error("nothing is left although nobody was there to clean up: this test sees nothing")
		}
		w.up(t, "--handsets", "1") // cleans up first
		second := w.trace(t).full(t)
		for c := range tr.cookies {
			if _, both := second.cookies[c]; both {
				t.Error("the new world has a namespace of the old")
			}
		}
		w.down(t)
		for c, name := range second.cookies {
			tr.cookies[c] = name
		}
		for id, path := range second.links {
			tr.links[id] = path
		}
		w.gone(t, "kill -9 of both, up and down", tr, 10*time.Second)
	})
}

// interrupted signals up, as a terminal does, when it has printed a line.
func (w *world) interrupted(t *testing.T, at string, signal unix.Signal) {
	var errs bytes.Buffer
	cmd := exec.Command(filepath.Join(w.bin, "rempart-lab"), "up", "--world", w.name, "--state", w.state, "--handsets", "1")
	cmd.Stderr = &errs
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var tr traces
	seen := ""
	for scan := bufio.NewScanner(out); scan.Scan(); {
		seen += scan.Text() + "\n"
		if strings.Contains(scan.Text(), at) {
			w.open(t)
			tr = w.trace(t)
			if err := unix.Kill(-cmd.Process.Pid, signal); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || tr.cookies == nil {
		t.Fatalf("up ended with %v after\n%s%s", err, seen, &errs)
	}
	if signal == unix.SIGKILL {
		w.gone(t, "kill -9 of up", tr, 10*time.Second)
		return
	}
	if errs.String() != "rempart-lab: interrupted: the world was taken down again\n" {
		t.Errorf("an interrupted up says %q", errs.String())
	}
	w.gone(t, "Ctrl-C", tr, 10*time.Second)
}
