package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rempart/boot/report"
	"rempart/internal/journal"
	"rempart/internal/link"
	"rempart/internal/sandbox"
)

// The uids of the daemons; each also names a group.
const (
	uidEgressd  = 901
	uidKeyd     = 902
	uidTunneld  = 903
	uidVoiced   = 904
	uidGatewayd = 905
	uidWatchd   = 906
	uidLinkd    = 907
	uidShell    = 1000
)

// The pauses before a dead daemon is started again: the first, the longest, and how long it must live for the first again.
const (
	firstPause  = 20 * time.Millisecond
	longPause   = 5 * time.Second
	steadyAfter = 10 * time.Second
)

// daemon is one row of the table of processes: one row, one privilege set.
type daemon struct {
	name    string
	uid     uint32
	ns      func() *link.NS
	caps    []int
	trusted bool                             // a supervisor to the guard
	files   func() ([]sandbox.Handed, error) // beside its listening socket, if it has one; nil for none
	args    func() []string
	greet   func() error // once it runs and is trusted; nil for nothing
	state                // of the running process
}

type state struct {
	pid      int // 0 when down
	started  bool
	restarts int
	since    int64
	pause    time.Duration
	lastExit string
}

// death is a child's end.
type death struct {
	name   string
	status unix.WaitStatus
}

// supervisor starts daemons and learns of their ends. It is PID 1's: it reaps every process of the handset.
type supervisor struct {
	phone  *phone
	mu     sync.Mutex // holds off the reaper while a child is being started and entered
	table  []*daemon
	deaths chan death
	stops  chan struct{} // egressd was stopped
}

func newSupervisor(p *phone) *supervisor {
	black := func() *link.NS { return p.black }
	red := func() *link.NS { return p.red }
	void := func() *link.NS { return p.void }
	one := func(name string, f **os.File) func() ([]sandbox.Handed, error) {
		return func() ([]sandbox.Handed, error) { return []sandbox.Handed{{Name: name, File: *f}}, nil }
	}
	return &supervisor{phone: p, deaths: make(chan death, 64), stops: make(chan struct{}, 1), table: []*daemon{
		{name: "egressd", uid: uidEgressd, ns: black, caps: []int{unix.CAP_NET_ADMIN, unix.CAP_BPF}, trusted: true},
		{name: "watchd", uid: uidWatchd, ns: black, caps: []int{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN, unix.CAP_BPF}, trusted: true,
			files: p.openWatcher, greet: p.greetWatcher},
		{name: "keyd", uid: uidKeyd, ns: void, files: one("tpm", &p.tpm)},
		{name: "linkd", uid: uidLinkd, ns: black, files: p.linkdFiles, args: p.linkdArgs},
		{name: "tunneld", uid: uidTunneld, ns: black, files: one("tun", &p.tun)},
		{name: "voiced", uid: uidVoiced, ns: red},
		{name: "gatewayd", uid: uidGatewayd, ns: red},
	}}
}

func (s *supervisor) daemon(name string) *daemon {
	for _, d := range s.table {
		if d.name == name {
			return d
		}
	}
	return nil
}

// start measures again what was measured, then starts the daemon.
func (s *supervisor) start(name string) error {
	p, d := s.phone, s.daemon(name)
	if d == nil {
		return fmt.Errorf("cannot start %s: it is not in the table of processes", name)
	}
	if err := p.unchanged(name); err != nil {
		return err
	}
	if err := thaw(p.cgroups[name]); err != nil {
		return err
	}
	var files []sandbox.Handed
	if l := p.listeners[name]; l != nil {
		ln, err := l.File()
		if err != nil {
			return err
		}
		defer ln.Close()
		files = append(files, sandbox.Handed{Name: name, File: ln})
	}
	if d.files != nil {
		more, err := d.files()
		if err != nil {
			return err
		}
		files = append(files, more...)
	}
	var args []string
	if d.args != nil {
		args = d.args()
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer w.Close()
	if name == "egressd" {
		// To the guard a bpf call before trust is anyone's. egressd waits for the end of this pipe.
		trusted, trust, err := os.Pipe()
		if err != nil {
			return errors.Join(err, r.Close())
		}
		defer trusted.Close()
		defer trust.Close()
		files = append(files, sandbox.Handed{Name: "trusted", File: trusted})
	}
	s.mu.Lock()
	proc, err := sandbox.Start(sandbox.Spec{
		Path: filepath.Join("/bin", name), Args: args, UID: d.uid, Capabilities: d.caps, NetNS: d.ns().FD(), Cgroup: p.cgroups[name],
		Files: files, Stderr: w,
	})
	if err != nil {
		s.mu.Unlock()
		return errors.Join(err, r.Close())
	}
	if d.started {
		d.restarts++
	}
	d.pid, d.started, d.since = proc.Pid, true, mono()
	if d.trusted {
		err = p.trust(proc.Pid)
	}
	s.mu.Unlock()
	// The reaper waits for every child; this handle would only keep a descriptor.
	err = errors.Join(err, proc.Release())
	go p.console.collect(name, r)
	p.journal.Event(eventStart, name, journal.Success, "pid", fmt.Sprint(d.pid), "restarts", fmt.Sprint(d.restarts))
	if err == nil && d.greet != nil {
		err = d.greet()
	}
	return err
}

// thaw lets the processes of a daemon's cgroup run: one that is born frozen would hold up its supervisor.
func thaw(cgroup *os.File) error {
	if err := os.WriteFile(filepath.Join(cgroup.Name(), "cgroup.freeze"), []byte("0"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot thaw: %w", err)
	}
	return nil
}

// reap collects ended processes for ever: children of this table become events, orphans that the kernel gave us vanish.
func (s *supervisor) reap() {
	child := make(chan os.Signal, 1)
	signal.Notify(child, unix.SIGCHLD)
	go func() {
		for range child {
			for s.reapOne() {
			}
		}
	}()
}

func (s *supervisor) reapOne() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var status unix.WaitStatus
	pid, err := unix.Wait4(-1, &status, unix.WNOHANG|unix.WUNTRACED, nil)
	if errors.Is(err, unix.EINTR) {
		return true
	}
	if err != nil || pid <= 0 {
		return false
	}
	if status.Stopped() {
		if pid == s.daemon("egressd").pid {
			select {
			case s.stops <- struct{}{}:
			default: // said already
			}
		}
		return true
	}
	for _, d := range s.table {
		if d.pid == pid {
			d.pid, d.lastExit = 0, exitText(status)
			select {
			case s.deaths <- death{d.name, status}:
			default:
				// 64 unread deaths: the loop is not reading any more, the phone is going down.
			}
		}
	}
	return true
}

func exitText(w unix.WaitStatus) string {
	if w.Signaled() {
		return "killed by " + unix.SignalName(w.Signal())
	}
	return fmt.Sprintf("exit code %d", w.ExitStatus())
}

// pause returns how long to wait before the next start of d, from 20 ms doubling to 5 s.
func (d *daemon) nextPause() time.Duration {
	if time.Duration(mono()-d.since) > steadyAfter || d.pause == 0 {
		d.pause = firstPause
	} else {
		d.pause = min(2*d.pause, longPause)
	}
	return d.pause
}

// allUp tells whether every daemon that was ever started runs.
func (s *supervisor) allUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.table {
		if d.started && d.pid == 0 {
			return false
		}
	}
	return true
}

func (s *supervisor) report() []report.Daemon {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []report.Daemon
	for _, d := range s.table {
		if d.started {
			all = append(all, report.Daemon{Name: d.name, PID: d.pid, Running: d.pid != 0, Restarts: d.restarts, SinceNS: d.since, LastExit: d.lastExit})
		}
	}
	return all
}

// end stops the daemons one after another, the youngest first: SIGTERM, then after limit SIGKILL.
func (s *supervisor) end(limit time.Duration) {
	for i := len(s.table) - 1; i >= 0; i-- {
		d := s.table[i]
		s.signal(d, unix.SIGTERM)
		for until := time.Now().Add(limit); time.Now().Before(until) && s.running(d); {
			time.Sleep(2 * time.Millisecond)
		}
		s.signal(d, unix.SIGKILL)
	}
}

func (s *supervisor) running(d *daemon) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return d.pid != 0
}

func (s *supervisor) signal(d *daemon, sig unix.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.pid == 0 {
		return
	}
	if err := unix.Kill(d.pid, sig); err != nil {
		s.phone.journal.Event("daemon.signal", d.name, journal.Failure, "reason", err.Error())
	}
}
