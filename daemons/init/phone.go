package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"rempart/boot/manifest"
	"rempart/boot/measure"
	"rempart/boot/report"
	"rempart/internal/journal"
	"rempart/internal/link"
	"rempart/internal/sandbox/guard"
	"rempart/keystore/extend"
	"rempart/vpn/egress"
	"rempart/vpn/egress/ask"
	"rempart/vpn/enforce"
	"rempart/vpn/enforce/backstop"
)

// errRestart asks for a restart of the whole handset: the keystore is gone and its boot secrets are capped.
var errRestart = errors.New("the handset must restart")

// Places inside the handset.
const (
	runDir    = "/run/rempart"
	netnsDir  = "/run/netns"
	stateDir  = "/state"
	confDir   = "/etc/rempart"
	bpffsDir  = "/sys/fs/bpf"
	cgroupDir = "/sys/fs/cgroup"
	audioDir  = "/dev/rempart-audio"
)

// phone is everything init knows. After the boot only the goroutine of loop uses it.
type phone struct {
	root    string // "" on a handset; a test gives another root for what is published
	journal *journal.Journal
	console *console
	report  record
	radios  []radio

	own              *link.NS // where init lives and devices are born
	red, black, void *link.NS
	cgroups          map[string]*os.File
	listeners        map[string]*net.UnixListener
	guard            *guard.Guard
	backstop         *backstop.Backstop

	tpm       *os.File // nil once keyd has it
	door      *extend.Door
	log       *measure.Log
	eventFile *os.File
	measured  map[string][32]byte

	policy   *manifest.Policy
	table    egress.Policy
	gate     *ask.Client
	pulse    *ask.Client // asks whether egressd lives while gate waits
	opened   bool        // egressd has the table, or may have: the gate may admit one of its rows
	severing bool        // the gate links are being taken off
	severed  bool        // the gate links are off and the floor alone holds
	lost     string      // why the radios are down until a restart: nothing releases the phone any more
	tun      *os.File
	inner    []netip.Prefix // granted to wg0 in this boot

	dynamic       map[string]*dynamic // radios that lease their addresses, by name
	linkdCgroup   uint64
	levels        egress.LevelTable // the policy's
	levelsUnknown bool              // egressd is new, or was not done with the last one
	levelsNow     egress.LevelTable // the one that egressd has put in force last
	readHooks     func(cgroup string, want egress.LevelTable, others ...uint32) (enforce.LevelReport, error)
	told          map[string]egress.LinkFacts // what egressd was last told of a radio's link

	sup      *supervisor
	changing bool         // what stands behind the gate
	watcher  *watcher     // nil: no watchd runs
	progress atomic.Int64 // when the loop last went on, mono
	reports  chan heard
}

func newPhone(started int64, j *journal.Journal, tpm *os.File, radios []radio) *phone {
	p := &phone{journal: j, tpm: tpm, radios: radios, cgroups: map[string]*os.File{}, listeners: map[string]*net.UnixListener{}, measured: map[string][32]byte{}, dynamic: map[string]*dynamic{}, told: map[string]egress.LinkFacts{}, reports: make(chan heard, 64)}
	p.report.StartedNS = started
	p.report.Closed, p.report.Reason = true, "booting"
	p.sup, p.readHooks = newSupervisor(p), enforce.ReadBackLevels
	return p
}

// runPhone boots, then supervises until ctx ends or the handset must restart.
func runPhone(ctx context.Context, p *phone) error {
	if err := os.MkdirAll(filepath.Join(p.root, runDir), 0o755); err != nil {
		return err
	}
	c, err := openConsole(os.Stderr, filepath.Join(p.root, report.JournalPath))
	if err != nil {
		return err
	}
	p.console = c
	p.journal = journal.New(c, "init")
	p.limits()
	p.sup.reap()
	if err := p.boot(ctx); err != nil {
		p.shutdown("boot stopped")
		return err
	}
	err = p.loop(ctx)
	p.shutdown(err.Error())
	return err
}

// blackDo runs fn on a thread in the black namespace.
func (p *phone) blackDo(fn func() error) error { return p.black.Do(fn) }

// limits are inherited by every daemon: no core file of anyone, and keyd may lock its memory. A supervisor that may not raise
// a limit (no CAP_SYS_RESOURCE) says so; keyd then runs only where there is no swap, and checks that itself.
func (p *phone) limits() {
	for name, l := range map[string]struct {
		which int
		to    uint64
	}{"core": {unix.RLIMIT_CORE, 0}, "memlock": {unix.RLIMIT_MEMLOCK, unix.RLIM_INFINITY}} {
		if err := unix.Setrlimit(l.which, &unix.Rlimit{Cur: l.to, Max: l.to}); err != nil {
			p.journal.Event(eventLimit, name, journal.Failure, "reason", err.Error())
		}
	}
}
