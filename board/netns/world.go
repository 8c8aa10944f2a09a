package netns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/run"
	"rempart/internal/sock/httpsock"
	"rempart/keystore/client/identity"
)

// World is a running world, as seen by a client of its keeper.
type World struct {
	Name   string
	client *http.Client
	guard  io.Closer // nil for a world that was opened, not started
}

// DefaultState returns the state folder of a world that names none.
func DefaultState(world string) string { return filepath.Join("/var/lib/rempart-lab", world) }

// checkName refuses a world name that could not be a folder and group name.
func checkName(world string) error {
	if !identity.ValidName(world) {
		return run.Hint(fmt.Errorf("cannot use world name %q", world), "up to 32 lower-case letters, digits and hyphens, a letter first")
	}
	return nil
}

// Need tells, in one error with a hint, what the board lacks on this desk.
func Need() error {
	if os.Geteuid() != 0 {
		return run.Hint(errors.New("cannot run a world: not root"), "namespaces and control groups need root: use sudo")
	}
	for _, tool := range []string{"swtpm", "swtpm_setup", "tcpdump"} {
		if _, err := exec.LookPath(tool); err != nil {
			return run.Hint(fmt.Errorf("cannot run a world: %s is not installed", tool), "run `make setup`")
		}
	}
	return nil
}

// Start starts a world without machines: its keeper, its janitor and its
// internet. state is the folder of what outlives it (TPMs, the machines'
// /state); "" means [DefaultState].
//
// The world goes with the calling process, or with [World.Release], unless
// [World.Keep] is called. What a crash left of an earlier world of that name
// is removed first; one that runs is an error.
func Start(ctx context.Context, world, state string) (w *World, err error) {
	if err := errors.Join(checkName(world), Need()); err != nil {
		return nil, err
	}
	if state == "" {
		state = DefaultState(world)
	}
	if state, err = filepath.Abs(state); err != nil {
		return nil, fmt.Errorf("cannot use the state folder: %w", err)
	}
	lock, err := lockIdle(ctx, world)
	if errors.Is(err, errRunning) {
		return nil, run.Hint(fmt.Errorf("cannot start world %s: %w", world, err),
			"`rempart-lab down --world %s` takes it down, another --world runs beside it", world)
	}
	if err != nil {
		return nil, err
	}
	h, err := openHierarchy("/proc/self/mountinfo")
	if err != nil {
		return nil, errors.Join(err, removeLock(world, lock))
	}
	defer h.close()
	if err := clean(h, world); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot clean up an earlier world %s: %w", world, err), lock.Close())
	}
	if err := startKeeper(h, world, state, lock); err != nil {
		return nil, err
	}
	w = connect(world)
	resp, err := w.post(context.Background(), "/v1/guard", nil)
	if err != nil {
		return nil, errors.Join(err, Down(context.Background(), world))
	}
	w.guard = resp.Body
	return w, nil
}

// lockIdle takes the lock of a world that does not run. A lock without a
// keeper that answers is a janitor at work: it gets ten seconds.
func lockIdle(ctx context.Context, world string) (*os.File, error) {
	for end := time.Now().Add(10 * time.Second); ; {
		lock, err := lockWorld(world)
		if !errors.Is(err, errRunning) {
			return lock, err
		}
		ask, cancel := context.WithTimeout(ctx, 2*time.Second)
		w := connect(world)
		_, answer := w.Status(ask)
		cancel()
		w.client.CloseIdleConnections()
		if answer == nil || time.Now().After(end) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// startKeeper starts the keeper of a locked world in a network namespace of
// its own and waits until it serves. The keeper and the janitor inherit the
// lock; this process's copy is closed.
func startKeeper(h *hierarchy, world, state string, lock *os.File) (err error) {
	clear := func(err error) error {
		return errors.Join(err, clean(h, world), removeLock(world, lock))
	}
	if err := errors.Join(os.MkdirAll(runtimeDir(world), 0o700), os.MkdirAll(state, 0o700)); err != nil {
		return clear(fmt.Errorf("cannot make the world's folders: %w", err))
	}
	folder, err := lockState(world, state)
	if err != nil {
		return clear(err)
	}
	defer folder.Close()
	log, err := os.OpenFile(filepath.Join(runtimeDir(world), "keeper.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return clear(fmt.Errorf("cannot open the keeper's log: %w", err))
	}
	defer log.Close()
	group, err := makeGroup(h.path(world, groupKeeper))
	if err != nil {
		return clear(err)
	}
	defer group.Close()
	cmd, err := again(stageKeeper, keeperSpec{World: world, State: state})
	if err != nil {
		return clear(err)
	}
	r, ready, err := os.Pipe()
	if err != nil {
		return clear(err)
	}
	defer r.Close()
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{lock, ready, folder}
	cmd.SysProcAttr = &unix.SysProcAttr{
		Setsid: true, Cloneflags: unix.CLONE_NEWNET, UseCgroupFD: true, CgroupFD: int(group.Fd()),
	}
	err = cmd.Start()
	_ = ready.Close() // the keeper has its own
	if err != nil {
		return clear(fmt.Errorf("cannot start the keeper: %w", err))
	}
	go func() { _ = cmd.Wait() }() // only so that it is no zombie while this process lives
	said, err := io.ReadAll(io.LimitReader(r, 4096))
	if err == nil && string(said) == "ok" {
		_ = lock.Close() // a copy: the keeper and the janitor hold the lock
		return nil
	}
	if err == nil {
		err = fmt.Errorf("cannot start the keeper: %s", strings.TrimSpace(string(said)))
	}
	// Its janitor may be cleaning already; both can do the same work twice.
	return clear(err)
}

// lockState locks a state folder, or says that another world uses it: two TPMs on one state would ruin it.
func lockState(world, state string) (*os.File, error) {
	f, err := os.Open(state)
	if err != nil {
		return nil, fmt.Errorf("cannot use the state folder: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close() // nothing was written
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, run.Hint(fmt.Errorf("cannot start world %s: the state folder %s is in use", world, state),
			"another world runs on it: give this one a --state of its own")
	}
	return nil, fmt.Errorf("cannot lock the state folder %s: %w", state, err)
}

// connect returns a client of a world's keeper, without asking it anything.
func connect(world string) *World {
	return &World{Name: world, client: httpsock.Client(socketPath(world))}
}

// Open returns the running world of that name, or an error that wraps
// [ErrNoWorld].
func Open(world string) (*World, error) {
	if err := checkName(world); err != nil {
		return nil, err
	}
	w := connect(world)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := w.Status(ctx); err != nil {
		if os.Geteuid() != 0 {
			return nil, run.Hint(fmt.Errorf("cannot reach world %s: not root", world), "use sudo")
		}
		return nil, run.Hint(fmt.Errorf("cannot reach world %s: %w", world, ErrNoWorld), "start it: `rempart-lab up --world %s`", world)
	}
	return w, nil
}

// Keep lets the world outlive the calling process.
func (w *World) Keep(ctx context.Context) error {
	return w.call(ctx, http.MethodPost, "/v1/keep", nil, nil)
}

// Release takes the world down unless it is kept. It returns at once; [Down]
// waits.
func (w *World) Release() error {
	w.client.CloseIdleConnections()
	if w.guard == nil {
		return nil
	}
	return w.guard.Close()
}

// Down takes a world down and repairs whatever is left of it, however it
// ended. It returns when no process, namespace, mount, device, control group
// or pin of it is left. A world that does not exist is not an error.
func Down(ctx context.Context, world string) error {
	if err := checkName(world); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return run.Hint(errors.New("cannot take a world down: not root"), "use sudo")
	}
	h, err := openHierarchy("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer h.close()
	asked := false
	for wait, force := 2*time.Millisecond, time.Now().Add(15*time.Second); ; wait = min(2*wait, 50*time.Millisecond) {
		lock, err := lockWorld(world)
		if err == nil {
			err = errors.Join(clean(h, world), removeLock(world, lock))
			awaitStages(world)
			return err
		}
		if !errors.Is(err, errRunning) {
			return err
		}
		if !asked {
			w := connect(world)
			askCtx, cancel := context.WithTimeout(ctx, 5*time.Second)
			asked = w.call(askCtx, http.MethodPost, "/v1/stop", nil, nil) == nil
			cancel()
			w.client.CloseIdleConnections()
		}
		if time.Now().After(force) {
			// A keeper or janitor that hangs: end both, their locks go too.
			if err := clean(h, world); err != nil {
				return err
			}
			force = time.Now().Add(15 * time.Second)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot take world %s down: %w", world, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// awaitStages waits, at most five seconds, for the end of a keeper and a
// janitor that have done their work: the lock is free a moment before its last
// holder is gone.
func awaitStages(world string) {
	end := time.Now().Add(5 * time.Second)
	procs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	for _, p := range procs {
		cmdline, err := os.ReadFile(filepath.Join(p, "cmdline"))
		if err != nil || !isStageOf(world, cmdline) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(p)) // digits, by the pattern
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		for time.Now().Before(end) {
			if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100); n > 0 {
				break
			}
		}
		_ = unix.Close(fd) // only a reference
	}
}

// isStageOf tells whether a command line is that of a world's keeper or
// janitor.
func isStageOf(world string, cmdline []byte) bool {
	args := strings.Split(string(cmdline), "\x00")
	return len(args) > 2 && (args[1] == stageKeeper || args[1] == stageJanitor) &&
		strings.Contains(args[2], `"World":"`+world+`"`)
}

// Worlds returns the names of the worlds that have a runtime folder.
func Worlds() ([]string, error) {
	entries, err := os.ReadDir(runtimeTop)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot list worlds: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Status asks the keeper for everything it knows.
func (w *World) Status(ctx context.Context) (*Status, error) {
	var s Status
	if err := w.call(ctx, http.MethodGet, "/v1/status", nil, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// Add makes a machine known to the world; it is off.
func (w *World) Add(ctx context.Context, s Spec) (Machine, error) {
	var m Machine
	err := w.call(ctx, http.MethodPost, "/v1/machines", s, &m)
	return m, err
}

// Machine returns what is known of one machine now. Upper case is accepted.
// An unknown name is an error that wraps [ErrNoMachine] and lists the names
// there are.
func (w *World) Machine(ctx context.Context, name string) (Machine, error) {
	s, err := w.Status(ctx)
	if err != nil {
		return Machine{}, err
	}
	if m, ok := s.Machine(name); ok {
		return m, nil
	}
	names := make([]string, 0, len(s.Machines))
	for _, m := range s.Machines {
		names = append(names, m.Name)
	}
	slices.Sort(names) // they were added by several hands at once
	return Machine{}, run.Hint(fmt.Errorf("cannot find machine %q in world %s: %w", name, w.Name, ErrNoMachine),
		"it has: %s", strings.Join(names, ", "))
}

// PowerOn switches a machine on and returns when its init runs, which is long
// before it is ready. The first time it also manufactures its TPM.
func (w *World) PowerOn(ctx context.Context, name string) (Machine, error) {
	return w.power(ctx, name, "on", nil)
}

// PowerOff gives init a grace time after SIGTERM, then cuts the power; 0 cuts
// at once. It returns when nothing of the machine is left.
func (w *World) PowerOff(ctx context.Context, name string, grace time.Duration) error {
	_, err := w.power(ctx, name, "off", powerRequest{GraceMS: grace.Milliseconds()})
	return err
}

// Restart switches a machine off as PowerOff does, and on again.
func (w *World) Restart(ctx context.Context, name string, grace time.Duration) (Machine, error) {
	return w.power(ctx, name, "restart", powerRequest{GraceMS: grace.Milliseconds()})
}

// Kill9 kills a machine's init with SIGKILL and returns when the machine is
// off and nothing of it is left.
func (w *World) Kill9(ctx context.Context, name string) error {
	_, err := w.power(ctx, name, "kill", nil)
	return err
}

// Prepare manufactures a machine's TPM ahead of its first power-on, which
// would do it too. It takes about a second, the first time.
func (w *World) Prepare(ctx context.Context, name string) error {
	_, err := w.power(ctx, name, "prepare", nil)
	return err
}

// HotPlug makes a device of that name appear, down, in the own network
// namespace of a running machine's init, with its other end on the internet's
// link. Running captures have its port before it returns.
func (w *World) HotPlug(ctx context.Context, name, device string) error {
	_, err := w.power(ctx, name, "plug", powerRequest{Device: device})
	return err
}

// Unplug removes a device that HotPlug made. It goes with the machine too.
func (w *World) Unplug(ctx context.Context, name, device string) error {
	_, err := w.power(ctx, name, "unplug", powerRequest{Device: device})
	return err
}

func (w *World) power(ctx context.Context, name, what string, in any) (Machine, error) {
	var m Machine
	err := w.call(ctx, http.MethodPost, "/v1/machines/"+strings.ToLower(name)+"/"+what, in, &m)
	return m, err
}

// call is one question to the keeper; its errors wrap the sentinels again and
// carry its hints.
func (w *World) call(ctx context.Context, method, path string, in, out any) error {
	return w.explain(httpsock.Call(ctx, w.client, method, path, in, out))
}

func (w *World) explain(err error) error {
	refused, ok := errors.AsType[*httpsock.Error](err)
	if !ok {
		return err
	}
	text := errors.New(refused.Message)
	switch refused.Status {
	case http.StatusNotFound:
		return wrapped{text, ErrNoMachine}
	case http.StatusGone:
		return wrapped{text, ErrOff}
	}
	if refused.Hint != "" {
		return run.Hint(text, "%s", refused.Hint)
	}
	return text
}

// wrapped is an error from the keeper, which says all there is to say, with
// the sentinel that it stands for.
type wrapped struct{ text, is error }

func (w wrapped) Error() string   { return w.text.Error() }
func (w wrapped) Unwrap() []error { return []error{w.text, w.is} }

// post sends a question whose answer comes in pieces.
func (w *World) post(ctx context.Context, path string, in any) (*http.Response, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("cannot encode a request for %s: %w", path, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://rempart"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("cannot ask for %s: %w", path, err)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("cannot ask for %s: %w", path, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	refused := &httpsock.Error{Status: resp.StatusCode}
	data, err := io.ReadAll(io.LimitReader(resp.Body, httpsock.MaxBody))
	if err != nil || json.Unmarshal(data, refused) != nil || refused.Message == "" {
		return nil, fmt.Errorf("cannot ask for %s: %s", path, resp.Status)
	}
	return nil, w.explain(refused)
}
