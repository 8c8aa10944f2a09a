package main

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/proof"
	"rempart/internal/run"
	"rempart/keystore/client"
)

const childEnv = "REMPART_TEST_HIDE"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
	}
	os.Exit(m.Run())
}

// child hides its memory and prints what the kernel says of it.
func child() {
	if err := hideMemory(); err != nil {
		os.Stdout.WriteString(err.Error())
		os.Exit(1)
	}
	kept := make([]byte, 4<<20)
	for i := range kept {
		kept[i] = 1
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil || dumpable != 0 {
		os.Stdout.WriteString("dumpable ")
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		os.Exit(1)
	}
	limits, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		os.Exit(1)
	}
	os.Stdout.Write(append(status, limits...))
	os.Exit(int(kept[0]) - 1)
}

// hidden runs the child as keyd runs: with its uid and no capability.
func hidden(t *testing.T) string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 902, Gid: 902, Groups: []uint32{}}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func TestMemoryIsHidden(t *testing.T) {
	proof.NeedRoot(t)
	// The test binary must be where uid 902 may run it.
	for dir := filepath.Dir(os.Args[0]); dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		t.Fatal(err)
	}
	unlimited := limit
	unlimited.Cur, unlimited.Max = unix.RLIM_INFINITY, unix.RLIM_INFINITY
	locks := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unlimited) == nil // takes CAP_SYS_RESOURCE
	t.Logf("memory can be locked here: %v", locks)
	out := hidden(t)
	if strings.Contains(out, "dumpable") {
		t.Error("it can be dumped")
	}
	seen := 0
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "VmLck:"):
			seen++
			if locked, err := strconv.Atoi(fields[1]); err != nil || locks && locked < 4<<10 {
				t.Errorf("locked memory: %s", line)
			}
		case strings.HasPrefix(line, "Max core file size"):
			seen++
			if fields[4] != "0" || fields[5] != "0" {
				t.Errorf("core files: %s", line)
			}
		}
	}
	if seen != 2 {
		t.Errorf("the kernel said %d of 2 things", seen)
	}
}

func TestSwapless(t *testing.T) {
	const heading = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
	for list, want := range map[string]bool{
		heading: true,
		heading + "/dev/vda2                               partition\t999420\t0\t-2\n": false,
		"": false, "Filename": false, "\n": false,
	} {
		if swapless(list) != want {
			t.Errorf("%q: not %v", list, want)
		}
	}
}

// TestServe is keyd from its descriptors to its end: the wiring. What it serves
// is tested where it is made, in keystore/server.
func TestServe(t *testing.T) {
	proof.Need(t, "swtpm")
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "swtpm")
	tpm := exec.Command("swtpm", "socket", "--tpm2", "--fd", "3", "--flags", "not-need-init,startup-clear", "--tpmstate", "dir="+t.TempDir())
	tpm.ExtraFiles = []*os.File{theirs}
	if err := tpm.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	t.Cleanup(func() {
		tpm.Process.Kill()
		tpm.Wait()
	})
	path := filepath.Join(t.TempDir(), "keyd.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- serve(ctx, config{state: t.TempDir(), image: t.TempDir()}, deps{tpm: os.NewFile(uintptr(fds[0]), "tpm"), listener: ln})
	}()
	asking, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	s, err := client.New(path).Status(asking)
	if err != nil || s.State != client.Empty || !strings.Contains(s.Reason, "not enrolled") {
		t.Errorf("%+v, %v", s, err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, run.ErrStopped) {
		t.Errorf("end: %v", err)
	}
}

func TestServeWithoutATPM(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fds[1])
	err = serve(t.Context(), config{state: t.TempDir(), image: t.TempDir()}, deps{tpm: os.NewFile(uintptr(fds[0]), "tpm")})
	if err == nil || !strings.Contains(err.Error(), "tpm is gone") {
		t.Errorf("without a tpm: %v", err)
	}
}
