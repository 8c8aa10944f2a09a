package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/frame"
	"rempart/internal/link"
	"rempart/internal/proof"
	"rempart/internal/sandbox"
	"rempart/internal/sock"
	"rempart/vpn/egress"
	"rempart/vpn/egress/ask"
	"rempart/vpn/enforce"
)

// Every operation by every kind of peer.
func TestAllowed(t *testing.T) {
	peers := map[string]sock.Peer{
		"init":                    {PID: 1, UID: 0, Cgroup: "/init"},
		"tunneld":                 {PID: 2, UID: 903, Cgroup: "/tunneld"},
		"voiced":                  {PID: 3, UID: 904, Cgroup: "/voiced"},
		"root of the desk":        {PID: 4, UID: 0, Cgroup: "/desk"},
		"root in tunneld's":       {PID: 5, UID: 0, Cgroup: "/tunneld"},
		"tunneld's uid in init's": {PID: 6, UID: 903, Cgroup: "/init"},
		"tunneld's uid elsewhere": {PID: 7, UID: 903, Cgroup: "/tunneld/x"},
	}
	want := map[egress.Op][]string{
		egress.OpTable: {"init"}, egress.OpAttach: {"init"}, egress.OpAdmit: {"tunneld"}, egress.OpClose: {"init", "tunneld"},
		egress.OpLink: {"init"}, egress.OpLevels: {"init"},
	}
	for op := range egress.Op(10) {
		for name, peer := range peers {
			if got := allowed(op, peer); got != (op == egress.OpStatus || op == egress.OpDrops || slices.Contains(want[op], name)) {
				t.Errorf("%v by %s: %v", op, name, got)
			}
		}
	}
}

// A gate that could not be closed is open for all that egressd knows: the table that
// init closes the phone with must not be answered as if it had closed it.
func TestTableIsNoWordOfAGateThatDidNotClose(t *testing.T) {
	e := newEngine(t.TempDir(), "", nil)
	e.admitted = "one"
	e.gates[1] = &enforce.Gate{} // every change of it fails
	if err := e.act(sock.Peer{PID: 2, UID: uidTunneld, Cgroup: cgroupTunneld}, egress.Request{Op: egress.OpClose}); err == nil {
		t.Fatal("a gate that cannot change was closed")
	}
	fromInit := sock.Peer{PID: 1, UID: uidInit, Cgroup: cgroupInit}
	for range 2 {
		if err := e.act(fromInit, egress.Request{Op: egress.OpTable}); err == nil {
			t.Error("the table was taken while a gate may be open")
		}
	}
	delete(e.gates, 1)
	if err := e.act(fromInit, egress.Request{Op: egress.OpTable}); err != nil {
		t.Error(err)
	}
}

// handset is the world of one egressd, as init sees it: the test process is in
// cgroup /init of a cgroup namespace of its own.
type handset struct {
	t       *testing.T
	cgroups string
	dir     string
	black   *link.NS
	ifindex int
}

// TestInHandset runs the tests below in a cgroup namespace, where the daemons'
// cgroups have the names that they have in a handset.
func TestInHandset(t *testing.T) {
	proof.NeedRoot(t)
	proof.Need(t, "go")
	root := cgroup2(t)
	dir := filepath.Join(root, fmt.Sprintf("rempart-egressd-%d", os.Getpid()))
	for _, d := range []string{dir, dir + "/init", dir + "/egressd", dir + "/tunneld", dir + "/voiced"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		defer func() {
			var err error
			for range 100 {
				if err = os.Remove(d); err == nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Error(err)
		}()
	}
	fd, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	// Not t.TempDir: its parents are closed to other uids.
	bin, err := os.MkdirTemp("", "egressd")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(bin)
	if err := os.Chmod(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", bin+"/egressd", ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestInside", "-test.v")
	cmd.Env = append(os.Environ(), "EGRESSD_INSIDE="+dir, "EGRESSD_BINARY="+bin+"/egressd")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWCGROUP | unix.CLONE_NEWNS, UseCgroupFD: true, CgroupFD: int(fd.Fd())}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "--- PASS: TestInside") != 8 {
		t.Errorf("%v: %s", err, out)
	}
}

func cgroup2(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); strings.Contains(line, " - cgroup2 ") && f[3] == "/" {
			return f[4]
		}
	}
	proof.Missing(t, "a cgroup2 mount")
	return ""
}

func inside(t *testing.T) *handset {
	t.Helper()
	h := &handset{t: t, cgroups: os.Getenv("EGRESSD_INSIDE")}
	if h.cgroups == "" {
		t.Skip("runs in TestInHandset")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(h.cgroups+"/init/cgroup.procs", []byte("0"), 0))
	var err error
	h.dir, err = os.MkdirTemp("", "egressd")
	must(err)
	t.Cleanup(func() { must(os.RemoveAll(h.dir)) })
	must(os.Chmod(h.dir, 0o755))
	must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must(unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, "mode=0755"))
	t.Cleanup(func() { must(unix.Unmount("/sys/fs/bpf", 0)) })
	// As in a handset: its own cgroup is the root.
	must(unix.Mount("cgroup2", cgroupDir, "cgroup2", 0, ""))
	t.Cleanup(func() { must(unix.Unmount(cgroupDir, 0)) })
	h.cgroups = cgroupDir
	must(os.Mkdir(pinDir, 0o700))
	must(os.Chown(pinDir, 901, 901))
	h.black, err = link.Create("")
	must(err)
	t.Cleanup(func() { must(h.black.Close()) })
	must(h.black.Do(func() error {
		if err := link.AddVeth(link.Port{Name: "wwan0"}, link.Port{Name: "far0"}); err != nil {
			return err
		}
		var err error
		if h.ifindex, err = link.Index("wwan0"); err != nil {
			return err
		}
		return enforce.AttachFloor(h.ifindex)
	}))
	return h
}

// start runs egressd, exactly as init does: uid 901, two
// capabilities, its cgroup, black.
func (h *handset) start() *os.Process {
	h.t.Helper()
	_ = os.Remove(h.socket())
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.socket(), Net: "unix"})
	if err != nil {
		h.t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	defer ln.Close()
	if err := os.Chmod(h.socket(), 0o666); err != nil {
		h.t.Fatal(err)
	}
	f, err := ln.File()
	if err != nil {
		h.t.Fatal(err)
	}
	defer f.Close()
	cg, err := os.Open(h.cgroups + "/egressd")
	if err != nil {
		h.t.Fatal(err)
	}
	defer cg.Close()
	trusted, trust, err := os.Pipe()
	if err != nil {
		h.t.Fatal(err)
	}
	defer trusted.Close()
	defer trust.Close() // this test has no guard
	p, err := sandbox.Start(sandbox.Spec{Path: os.Getenv("EGRESSD_BINARY"), UID: 901, Capabilities: []int{unix.CAP_NET_ADMIN, unix.CAP_BPF},
		NetNS: h.black.FD(), Cgroup: cg, Files: []sandbox.Handed{{Name: "egressd", File: f}, {Name: "trusted", File: trusted}}, Stderr: os.Stderr})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = p.Kill() }) // after a failed test; else it has ended
	return p
}

func (h *handset) stop(p *os.Process, signal os.Signal) *os.ProcessState {
	h.t.Helper()
	if err := p.Signal(signal); err != nil {
		h.t.Fatal(err)
	}
	state, err := p.Wait()
	if err != nil {
		h.t.Fatal(err)
	}
	return state
}

func (h *handset) socket() string { return filepath.Join(h.dir, "egressd.sock") }

func (h *handset) dial() *ask.Client {
	h.t.Helper()
	c, err := ask.Dial(h.socket())
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

func (h *handset) table() egress.Policy {
	return egress.Policy{Classes: []egress.Class{
		{Gateway: "one", Addr: netip.MustParseAddr("203.0.113.1"), Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 7},
		{Gateway: "two", Addr: netip.MustParseAddr("203.0.113.2"), Proto: egress.UDP, Port: 51820, Purpose: egress.Tunnel, Cgroup: 7},
	}}
}

// inForce reads back what the kernel has.
func (h *handset) inForce(want egress.Policy) { h.withFacts(want, egress.LinkFacts{}) }

func (h *handset) withFacts(want egress.Policy, facts egress.LinkFacts) {
	h.t.Helper()
	var r enforce.Report
	if err := h.black.Do(func() (err error) { r, err = enforce.ReadBack(h.ifindex, want, facts); return err }); err != nil {
		h.t.Fatal(err)
	}
	if err := r.Err(); err != nil {
		h.t.Error(err)
	}
}

// as asks egressd as another uid in another cgroup and returns its answer.
func (h *handset) as(uid uint32, cgroup, op, gateway string) string {
	h.t.Helper()
	dir, err := os.Open(h.cgroups + cgroup)
	if err != nil {
		h.t.Fatal(err)
	}
	defer dir.Close()
	// The test binary lies in a folder of root's: it is passed as a descriptor.
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		h.t.Fatal(err)
	}
	defer self.Close()
	cmd := exec.Command("/proc/self/fd/3", "-test.run=^TestAsk$")
	cmd.ExtraFiles = []*os.File{self}
	cmd.Dir = "/"
	cmd.Env = []string{"EGRESSD_ASK=" + op + " " + gateway, "EGRESSD_SOCKET=" + h.socket(), "TMPDIR=/tmp"}
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		h.t.Fatalf("%v: %s", err, out)
	}
	_, answer, _ := strings.Cut(string(out), "answer: ")
	answer, _, _ = strings.Cut(answer, "\n")
	return answer
}

// TestAsk is the other process of handset.as.
func TestAsk(t *testing.T) {
	op, gateway, ok := strings.Cut(os.Getenv("EGRESSD_ASK"), " ")
	if !ok {
		t.Skip("not a child")
	}
	c, err := ask.Dial(os.Getenv("EGRESSD_SOCKET"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	var s egress.Status
	switch op {
	case "admit":
		s, err = c.Admit(ctx, gateway)
	case "close":
		s, err = c.CloseGate(ctx)
	case "hold":
		s, err = hold(c, gateway)
	case "status":
		s, err = c.Status(ctx)
	case "table":
		s, err = c.Table(ctx, egress.DenyAll())
	case "levels":
		s, err = c.Levels(ctx, egress.LevelTable{})
	}
	if err != nil {
		fmt.Printf("answer: %v\n", err)
		return
	}
	fmt.Printf("answer: admitted %q\n", s.Admitted)
}

func TestInsideLife(t *testing.T) {
	h := inside(t)
	ctx := t.Context()
	p := h.start()
	init := h.dial()
	expect := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	if _, err := init.Attach(ctx, h.ifindex); err != nil {
		t.Fatal(err)
	}
	h.inForce(egress.DenyAll())
	expect("admit before a table", h.as(903, "/tunneld", "admit", "one"), `cannot admit: egressd: gateway "one" is not in the table`)
	if _, err := init.Table(ctx, h.table()); err != nil {
		t.Fatal(err)
	}
	h.inForce(egress.DenyAll())
	expect("admit", h.as(903, "/tunneld", "admit", "one"), `admitted "one"`)
	h.inForce(h.table().For("one"))
	expect("another gateway", h.as(903, "/tunneld", "admit", "two"), `admitted "two"`)
	h.inForce(h.table().For("two"))
	expect("status by voiced", h.as(904, "/voiced", "status", ""), `admitted "two"`)
	expect("close by voiced", h.as(904, "/voiced", "close", ""), "cannot close: egressd: uid 904 in /voiced may not close")
	expect("table by tunneld", h.as(903, "/tunneld", "table", ""), "cannot table: egressd: uid 903 in /tunneld may not table")
	expect("admit by voiced in tunneld's name", h.as(904, "/voiced", "admit", "one"), "cannot admit: egressd: uid 904 in /voiced may not admit")
	var refused *ask.RefusedError
	if _, err := init.Admit(ctx, "one"); !errors.As(err, &refused) {
		t.Errorf("admit by init: %v, want a refusal", err)
	}
	h.inForce(h.table().For("two"))
	expect("unknown gateway", h.as(903, "/tunneld", "admit", "three"), `cannot admit: egressd: gateway "three" is not in the table`)
	h.inForce(h.table().For("two"))
	// The facts of the link are beside the policy: init's alone to tell, gone with the next attach.
	facts := egress.LinkFacts{MAC: [6]byte{2, 0, 0, 0, 0, 1}, Addr4: netip.MustParseAddr("203.0.113.11"), Router4: netip.MustParseAddr("203.0.113.254")}
	if s, err := init.Link(ctx, h.ifindex, facts); err != nil || s.Admitted != "two" {
		t.Errorf("link facts: %+v, %v", s, err)
	}
	h.withFacts(h.table().For("two"), facts)
	if _, err := init.Link(ctx, h.ifindex+100, facts); err == nil {
		t.Error("a device without a gate took link facts")
	}
	if _, err := init.Link(ctx, h.ifindex, egress.LinkFacts{}); err != nil {
		t.Error(err)
	}
	h.inForce(h.table().For("two"))
	// init's table without the admitted gateway closes.
	s, err := init.Table(ctx, h.table().For("one"))
	if err != nil || s.Admitted != "" || s.Digest != egress.DenyAll().Digest() {
		t.Errorf("a narrower table: %+v, %v", s, err)
	}
	h.inForce(egress.DenyAll())
	expect("admit again", h.as(903, "/tunneld", "admit", "one"), `admitted "one"`)
	if s, err := init.Table(ctx, h.table()); err != nil || s.Admitted != "one" {
		t.Errorf("a wider table with the same gateway: %+v, %v", s, err)
	}
	// kill -9 leaves the policy; the next egressd denies before it answers.
	h.stop(p, unix.SIGKILL)
	h.inForce(h.table().For("one"))
	p = h.start()
	init = h.dial()
	if s, err := init.Status(ctx); err != nil || s.Admitted != "" || len(s.Devices) != 1 {
		t.Errorf("the next egressd: %+v, %v", s, err)
	}
	h.inForce(egress.DenyAll())
	// A severed gate is attached anew.
	if err := h.black.Do(func() error { return enforce.Sever(h.ifindex) }); err != nil {
		t.Fatal(err)
	}
	if _, err := init.Table(ctx, h.table()); err != nil {
		t.Error(err)
	}
	if s, err := init.Attach(ctx, h.ifindex); err != nil || len(s.Devices) != 1 {
		t.Errorf("attach after sever: %+v, %v", s, err)
	}
	h.inForce(egress.DenyAll())
	// SIGTERM leaves deny-all.
	expect("admit once more", h.as(903, "/tunneld", "admit", "two"), `admitted "two"`)
	if state := h.stop(p, unix.SIGTERM); !state.Success() {
		t.Errorf("after SIGTERM: %v", state)
	}
	h.inForce(egress.DenyAll())
}

func TestInsideAttachRefusals(t *testing.T) {
	h := inside(t)
	p := h.start()
	defer h.stop(p, unix.SIGTERM)
	c := h.dial()
	if s, err := c.Attach(t.Context(), h.ifindex+100); err == nil || len(s.Devices) != 0 {
		t.Errorf("attach to no device: %+v, %v", s, err)
	}
	// A device with no floor gets no gate.
	var bare int
	if err := h.black.Do(func() (err error) { bare, err = link.Index("far0"); return err }); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Attach(t.Context(), bare); err == nil || !strings.Contains(err.Error(), "floor") {
		t.Errorf("attach without a floor: %v", err)
	}
}

// Clients that send nothing, half a message, rubbish, or many connections stall no one.
func TestInsideSlowClients(t *testing.T) {
	h := inside(t)
	p := h.start()
	defer h.stop(p, unix.SIGTERM)
	init := h.dial()
	if _, err := init.Attach(t.Context(), h.ifindex); err != nil {
		t.Fatal(err)
	}
	raw := func(b []byte) net.Conn {
		t.Helper()
		c, err := net.Dial("unix", h.socket())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := c.Write(b); err != nil && !errors.Is(err, unix.EPIPE) {
			t.Fatal(err)
		}
		return c
	}
	half := raw([]byte{0, 0, 0, 9, 1})
	for _, bad := range [][]byte{{0xff, 0xff, 0xff, 0xff}, {0, 0, 0, 1, 99}, {0, 0, 0, 2, byte(egress.OpStatus), 0}} {
		c := raw(bad)
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if b, err := frame.Read(c, egress.MaxReply); err == nil {
			t.Errorf("%x was answered: %x", bad, b)
		}
	}
	for range 40 {
		raw(nil)
	}
	if answer := h.as(903, "/tunneld", "status", ""); answer != `admitted ""` {
		t.Errorf("tunneld beside a flood: %s", answer)
	}
	if _, err := init.Status(t.Context()); err != nil {
		t.Errorf("init's first connection beside a flood: %v", err)
	}
	if err := half.SetReadDeadline(time.Now().Add(messageTime + 3*time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := half.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("half a message after %v: %d, %v; want the connection closed", messageTime, n, err)
	}
}

// Concurrent requests never leave a policy that nobody asked for.
func TestInsideConcurrent(t *testing.T) {
	h := inside(t)
	p := h.start()
	defer h.stop(p, unix.SIGTERM)
	init := h.dial()
	if _, err := init.Attach(t.Context(), h.ifindex); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var answers bytes.Buffer
	for i := range 3 {
		c := h.dial()
		wg.Go(func() {
			for range 10 {
				table := h.table().For([]string{"one", "two", "none"}[i])
				if _, err := c.Table(context.Background(), table); err != nil {
					mu.Lock()
					fmt.Fprintln(&answers, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if answers.Len() != 0 {
		t.Error(answers.String())
	}
	h.inForce(egress.DenyAll())
}
