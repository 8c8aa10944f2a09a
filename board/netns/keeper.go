package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// keeperSpec is what the keeper is told.
type keeperSpec struct {
	World string
	State string // absolute
}

// The keeper's descriptors beyond the standard ones.
const (
	fdKeeperLock  = iota // the world's lock
	fdReady              // "ok", or why not; closed afterwards
	fdKeeperState        // the state folder, locked: no other world may use its TPMs
)

// keeper owns a world. It runs in the internet's network namespace.
type keeper struct {
	spec    keeperSpec
	h       *hierarchy
	lock    *os.File
	factory *factory
	started time.Time
	stop    context.CancelFunc

	mu       sync.Mutex
	machines []*machine
	janitor  int // PID
	kept     bool

	captures captures
	provider provider // needs mu
}

// keeperMain is the keeper: it builds the internet, starts the janitor, and
// serves the world's socket until it is told to stop.
func keeperMain(text string) error {
	ready := inherited(fdReady, "ready")
	err := keep(text, ready)
	if err != nil {
		fmt.Fprint(ready, err) // no one reads it once the world is up
	}
	return err
}

func keep(text string, ready *os.File) error {
	var spec keeperSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil || spec.World == "" {
		return errors.Join(errors.New("cannot be the keeper: no world named"), err)
	}
	h, err := openHierarchy("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	unix.CloseOnExec(3 + fdKeeperLock)
	unix.CloseOnExec(3 + fdReady)
	unix.CloseOnExec(3 + fdKeeperState) // and open as long as this process lives
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	k := &keeper{
		spec: spec, h: h, lock: inherited(fdKeeperLock, "lock"), started: time.Now(), stop: stop,
		factory: &factory{dir: filepath.Join(spec.State, "manufacturer")},
	}
	k.provider.k = k
	if err := k.startJanitor(ctx); err != nil {
		return err
	}
	// From here on the janitor cleans up, whatever happens.
	if err := buildInternet(); err != nil {
		return err
	}
	ln, err := net.Listen("unix", socketPath(spec.World))
	if err != nil {
		return fmt.Errorf("cannot listen for commands: %w", err)
	}
	server := &http.Server{Handler: k.handler(), ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	if _, err := io.WriteString(ready, "ok"); err == nil {
		_ = ready.Close() // a pipe: written is delivered
	}
	select {
	case <-ctx.Done():
	case err = <-served:
	}
	err = errors.Join(err, k.shutdown())
	// Answers under way (that of "stop" among them) get a moment to leave.
	end, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if server.Shutdown(end) != nil {
		_ = server.Close() // clients that wait on a stopped world
	}
	return err
}

func socketPath(world string) string { return filepath.Join(runtimeDir(world), "keeper.sock") }

// startJanitor starts the janitor, and another each time one dies.
func (k *keeper) startJanitor(ctx context.Context) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("cannot start the janitor: %w", err)
	}
	group, err := makeGroup(k.h.path(k.spec.World, groupJanitor))
	if err != nil {
		return err
	}
	start := func() (*exec.Cmd, error) {
		cmd, err := again(stageJanitor, janitorSpec{World: k.spec.World})
		if err != nil {
			return nil, err
		}
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.ExtraFiles = []*os.File{r, k.lock}
		cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())}
		if err := cmd.Start(); err != nil {
			return nil, fmt.Errorf("cannot start the janitor: %w", err)
		}
		k.mu.Lock()
		k.janitor = cmd.Process.Pid
		k.mu.Unlock()
		return cmd, nil
	}
	cmd, err := start()
	if err != nil {
		return err
	}
	go func() {
		defer w.Close() // keeps w alive: its closing is the keeper's end
		for {
			fmt.Fprintf(os.Stderr, "the janitor is gone: %v\n", cmd.Wait())
			if ctx.Err() != nil {
				return
			}
			if cmd, err = start(); err != nil {
				// Without one, a kill of this process would leave things behind.
				fmt.Fprintln(os.Stderr, err)
				k.stop()
				return
			}
		}
	}()
	return nil
}

// shutdown switches everything off. The janitor removes the rest.
func (k *keeper) shutdown() error {
	k.mu.Lock()
	machines := slices.Clone(k.machines)
	k.mu.Unlock()
	errs := make([]error, len(machines))
	var wait sync.WaitGroup
	for i, m := range machines {
		wait.Go(func() { errs[i] = m.powerOff(context.Background(), 2*time.Second, "the world was taken down") })
	}
	wait.Wait()
	k.captures.endAll()
	k.mu.Lock()
	defer k.mu.Unlock()
	return errors.Join(append(errs, k.provider.stop())...)
}

// add makes a machine known; it is off.
func (k *keeper) add(s Spec) (*machine, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range k.machines {
		if m.spec.Name == s.Name {
			return nil, fmt.Errorf("cannot add machine %s: world %s has one of that name", s.Name, k.spec.World)
		}
		if m.spec.Number == s.Number {
			return nil, fmt.Errorf("cannot add machine %s: machine %s has number %d", s.Name, m.spec.Name, s.Number)
		}
	}
	m := newMachine(k, s)
	k.machines = append(k.machines, m)
	if s.DHCP {
		return m, k.provider.provide(k.provider.what)
	}
	return m, nil
}

// find returns a machine by name.
func (k *keeper) find(name string) (*machine, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var names []string
	for _, m := range k.machines {
		if m.spec.Name == name {
			return m, nil
		}
		names = append(names, m.spec.Name)
	}
	return nil, fmt.Errorf("cannot find machine %s in world %s, which has: %s: %w",
		name, k.spec.World, strings.Join(names, " "), ErrNoMachine)
}

// status describes the world.
func (k *keeper) status() Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := Status{
		World: k.spec.World, State: k.spec.State, Keeper: os.Getpid(), Janitor: k.janitor,
		Internet: procPath(os.Getpid(), "ns/net"), Started: k.started, Machines: []Machine{},
	}
	for _, m := range k.machines {
		s.Machines = append(s.Machines, m.describe())
	}
	return s
}
