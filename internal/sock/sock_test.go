package sock

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/proof"
)

// TestMain lets the test binary be a second process that connects or takes inherited descriptors.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "sock-connect":
		c, err := net.Dial("unix", os.Args[2])
		if err != nil {
			os.Exit(3)
		}
		buf := make([]byte, 1)
		c.Read(buf)
		os.Exit(0)
	case len(os.Args) == 2 && os.Args[1] == "sock-inherit":
		ln, err := Listener("b")
		if err != nil {
			os.Stdout.WriteString(err.Error())
			os.Exit(3)
		}
		_, missing := Inherited("c")
		_, notSocket := Listener("a")
		os.Stdout.WriteString(ln.Addr().String() + "\n" + missing.Error() + "\n" + notSocket.Error())
		ln.Close()
		if _, err := os.Stat(ln.Addr().String()); err != nil {
			os.Stdout.WriteString("\nclosing removed the socket")
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func listen(t *testing.T) *net.UnixListener {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func TestPeerIsToldByTheKernel(t *testing.T) {
	ln := listen(t)
	own, err := cgroupOf(os.Getpid())
	if err != nil {
		proof.Missing(t, "a cgroup2 hierarchy: "+err.Error())
	}
	cmd := exec.Command(os.Args[0], "sock-connect", ln.Addr().String())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := ln.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	p, err := PeerOf(c)
	if err != nil {
		t.Fatal(err)
	}
	if p.PID != cmd.Process.Pid || p.UID != uint32(os.Getuid()) || p.Cgroup != own {
		t.Errorf("peer %+v, want pid %d in %s", p, cmd.Process.Pid, own)
	}
	if !p.Is(uint32(os.Getuid()), own) || p.Is(p.UID, own+"x") || p.Is(p.UID+1, own) {
		t.Error("Is does not compare both")
	}
	// A peer that has ended may have left its pid to another: it is nobody.
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if p, err := PeerOf(c); err == nil {
		t.Errorf("a dead peer is %v", p)
	}
	c.Close()
}

func TestPeerOutsideThePidNamespaceIsRefused(t *testing.T) {
	proof.NeedRoot(t)
	ln := listen(t)
	// The child listens in a pid namespace of its own; seen from in there, we are outside.
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelperAcceptInside$")
	f, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = append(os.Environ(), "SOCK_INSIDE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	c, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	out, _ := cmd.CombinedOutput()
	if !strings.Contains(string(out), "inside: "+ErrOutside.Error()) {
		t.Errorf("accepted a peer from outside: %s", out)
	}
}

func TestHelperAcceptInside(t *testing.T) {
	if os.Getenv("SOCK_INSIDE") != "1" {
		t.Skip("only as the child of TestPeerOutsideThePidNamespaceIsRefused")
	}
	ln, err := net.FileListener(os.NewFile(3, "ln"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := ln.(*net.UnixListener).AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	_, err = PeerOf(c)
	if !errors.Is(err, ErrOutside) {
		t.Fatalf("peer error %v", err)
	}
	os.Stdout.WriteString("inside: " + err.Error() + "\n")
}

func TestInheritedByName(t *testing.T) {
	ln := listen(t)
	f, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd := exec.Command(os.Args[0], "sock-inherit")
	cmd.ExtraFiles = []*os.File{null, f}
	cmd.Env = append(os.Environ(), EnvFDs+"=a:b")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := strings.Split(string(out), "\n")
	if len(lines) != 3 || lines[0] != ln.Addr().String() || !strings.Contains(lines[1], `"c"`) || !strings.Contains(lines[2], `"a"`) {
		t.Errorf("child said %q", out)
	}
}

func TestAcceptLoopBoundsItsCallers(t *testing.T) {
	ln := listen(t)
	var now, most atomic.Int32
	done := make(chan error, 1)
	go func() {
		done <- AcceptLoop(ln, 3, func(c *net.UnixConn) {
			defer c.Close()
			n := now.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			buf := make([]byte, 1)
			c.Read(buf)
			now.Add(-1)
		})
	}()
	var conns []net.Conn
	for range 10 {
		c, err := net.Dial("unix", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	for deadline := time.Now().Add(5 * time.Second); now.Load() < 3 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	for _, c := range conns {
		c.Close()
	}
	for deadline := time.Now().Add(5 * time.Second); now.Load() > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	ln.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("ended with %v", err)
	}
	if most.Load() != 3 {
		t.Errorf("%s callers were served at once, want 3", strconv.Itoa(int(most.Load())))
	}
}
