package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/link"
	"rempart/internal/run"
)

// uidVoiced is the uid of the one daemon that may write to the sound card.
const uidVoiced = 904

// machine is one machine of a keeper.
//
//	Off ── powerOn ──▶ Starting ──▶ On
//	 ▲                    │          │  powerOff, kill9, or init ends by itself
//	 └──── failure ───────┘          │
//	 └──── cut ◀─────────────────────┘
type machine struct {
	k     *keeper
	spec  Spec
	radio Radio
	paths Paths

	switching sync.Mutex // held by powerOn from Off to On

	mu     sync.Mutex
	state  State
	since  time.Time
	reason string
	init   *os.Process
	extra  map[string]Radio // devices that were plugged in while it runs
	gone   chan struct{}    // closed when On has become Off
	ended  bool             // switched off from outside: a reboot that init asked for meanwhile is void
}

func newMachine(k *keeper, s Spec) *machine {
	dir := filepath.Join(k.spec.State, "machines", s.Name)
	radio := RadioOf(s.Name, s.Number)
	if radio.DHCP = s.DHCP; s.DHCP {
		radio.Router6, radio.V6 = routerLocal6.Addr(), radio.V6.Masked()
	}
	return &machine{
		k: k, spec: s, radio: radio, state: Off, since: time.Now(), reason: "it was never switched on",
		paths: Paths{
			State: filepath.Join(dir, "state"), Audio: filepath.Join(dir, "audio"), TPM: filepath.Join(dir, "tpm"),
			Console: filepath.Join(dir, "console.log"), // outlives the world: it says why one failed
		},
	}
}

// group returns the machine's control group.
func (m *machine) group(parts ...string) string {
	return m.k.h.path(m.k.spec.World, append([]string{m.spec.Name}, parts...)...)
}

// mountPoint returns the empty folder on which the machine's root is mounted,
// inside the machine.
func (m *machine) mountPoint() string {
	return filepath.Join(runtimeDir(m.k.spec.World), m.spec.Name, "root")
}

// describe returns what is known of the machine now.
func (m *machine) describe() Machine {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := Machine{
		Name: m.spec.Name, Role: m.spec.Role, Number: m.spec.Number, State: m.state, Since: m.since, Reason: m.reason,
		Radio: m.radio, Image: m.spec.Image, Paths: m.paths,
	}
	if m.state == On {
		d.PID = m.init.Pid
		d.Paths.Root = procPath(d.PID, "root")
		d.Paths.Own = procPath(d.PID, "ns/net")
		d.Paths.Red = procPath(d.PID, "root/run/netns/red")
		d.Paths.Black = procPath(d.PID, "root/run/netns/black")
		// A hierarchy of the keeper's own is reached through the keeper.
		d.Paths.Cgroup = strings.Replace(m.group("hs"), "/proc/self/", procPath(os.Getpid(), ""), 1)
	}
	return d
}

// become changes the state.
func (m *machine) become(s State, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state, m.since, m.reason = s, time.Now(), reason
}

// powerOn starts the machine and returns when its init runs.
func (m *machine) powerOn(ctx context.Context) (err error) {
	m.switching.Lock()
	defer m.switching.Unlock()
	if m.describe().State != Off {
		return fmt.Errorf("cannot switch on %s: it is on", m.spec.Name)
	}
	m.become(Starting, "")
	defer func() {
		if err != nil {
			err = run.Hint(fmt.Errorf("cannot switch on %s: %w", m.spec.Name, err), "its console is %s", m.paths.Console)
			m.become(Off, err.Error())
		}
	}()
	if err := m.folders(); err != nil {
		return err
	}
	if err := m.k.factory.make(ctx, m.spec.Name, m.paths.TPM); err != nil {
		return err
	}
	hs, err := makeGroup(m.group("hs"))
	if err != nil {
		return err
	}
	defer hs.Close()
	hw, err := makeGroup(m.group("hw"))
	if err != nil {
		return err
	}
	defer hw.Close()
	chip, err := startTPM(m.paths.TPM, filepath.Join(filepath.Dir(m.mountPoint()), "tpm.log"), hw)
	if err != nil {
		return errors.Join(err, removeGroup(m.group()))
	}
	cmd, fire, err := m.firmware(chip, hs)
	if err != nil {
		chip.stop()
		return errors.Join(err, m.end(nil, nil))
	}
	if err := errors.Join(chip.boot(m.spec.Image), m.plug(cmd.Process.Pid)); err != nil {
		_ = cmd.Process.Kill() // it waits for the word to start
		_ = cmd.Wait()
		return errors.Join(err, m.end(chip, nil))
	}
	// The machine's copies are all that is left of the bus.
	_ = chip.bus.Close()
	if err := fire(); err != nil {
		_ = cmd.Process.Kill() // most likely it ended by itself
		_ = cmd.Wait()
		return errors.Join(err, m.end(chip, nil))
	}
	pins := openPins(cmd.Process.Pid)
	gone := make(chan struct{})
	m.mu.Lock()
	m.init, m.gone, m.ended = cmd.Process, gone, false
	m.mu.Unlock()
	m.become(On, "")
	go func() {
		defer close(gone)
		state := cmd.Wait()
		reason := "init ended: " + cmd.ProcessState.String()
		if err := m.end(chip, pins); err != nil {
			reason += "; " + err.Error()
			fmt.Fprintf(os.Stderr, "machine %s: %v (%v)\n", m.spec.Name, err, state)
		}
		m.become(Off, reason)
		if rebooted(cmd.ProcessState) {
			go m.reboot()
		}
	}()
	return nil
}

// rebooted tells whether init ended by reboot(LINUX_REBOOT_CMD_RESTART), which a PID namespace reports as SIGHUP
// (pid_namespaces(7)).
func rebooted(state *os.ProcessState) bool {
	w, ok := state.Sys().(syscall.WaitStatus)
	return ok && w.Signaled() && w.Signal() == unix.SIGHUP
}

// reboot switches a machine on again whose init asked for it.
func (m *machine) reboot() {
	m.mu.Lock()
	ended := m.ended
	m.mu.Unlock()
	if ended {
		return
	}
	if err := m.powerOn(context.Background()); err != nil {
		fmt.Fprintf(os.Stderr, "machine %s: cannot reboot: %v\n", m.spec.Name, err)
	}
}

// folders makes the machine's folders on the desk.
func (m *machine) folders() error {
	for _, d := range []struct {
		path string
		mode os.FileMode
		uid  int
	}{{m.paths.State, 0o755, 0}, {m.paths.Audio, 0o755, uidVoiced}, {m.mountPoint(), 0o700, 0}} {
		if err := os.MkdirAll(d.path, 0o700); err != nil {
			return fmt.Errorf("cannot make the machine's folders: %w", err)
		}
		if err := errors.Join(os.Chmod(d.path, d.mode), os.Chown(d.path, d.uid, d.uid)); err != nil {
			return fmt.Errorf("cannot make the machine's folders: %w", err)
		}
	}
	return nil
}

// firmware starts the first process of the machine in its new namespaces. It
// waits there until fire is called, which returns when init has taken its
// place.
func (m *machine) firmware(chip *tpm, hs *os.File) (cmd *exec.Cmd, fire func() error, err error) {
	cmd, err = again(stageFirmware, firmwareSpec{
		Name: m.spec.Name, Image: m.spec.Image, Root: m.mountPoint(),
		State: m.paths.State, Audio: m.paths.Audio, Args: []string{m.radio.argument(), ModemOf(m.spec.Name, m.spec.Number).argument()},
	})
	if err != nil {
		return nil, nil, err
	}
	console, err := m.console()
	if err != nil {
		return nil, nil, err
	}
	defer console.Close()
	goR, goW, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("cannot start the firmware: %w", err)
	}
	defer goR.Close()
	failR, failW, err := os.Pipe()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("cannot start the firmware: %w", err), goW.Close())
	}
	defer failW.Close()
	cmd.Env = []string{}
	cmd.Stdout, cmd.Stderr = console, console
	cmd.ExtraFiles = make([]*os.File, 3)
	cmd.ExtraFiles[fdTPM], cmd.ExtraFiles[fdGo], cmd.ExtraFiles[fdFail] = chip.bus, goR, failW
	cmd.SysProcAttr = &unix.SysProcAttr{
		Setsid: true, UseCgroupFD: true, CgroupFD: int(hs.Fd()),
		// The control group of the clone becomes the root of the new
		// cgroup namespace.
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP,
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("cannot start the firmware: %w", err), goW.Close(), failR.Close())
	}
	return cmd, func() error {
		defer failR.Close()
		if _, err := goW.Write([]byte{1}); err != nil {
			return errors.Join(fmt.Errorf("cannot start the firmware: %w", err), goW.Close())
		}
		_ = goW.Close() // written is delivered
		why, err := io.ReadAll(io.LimitReader(failR, 4096))
		if err != nil {
			return fmt.Errorf("cannot watch the firmware: %w", err)
		}
		if len(why) > 0 {
			return errors.New(strings.TrimSpace(string(why)))
		}
		return nil
	}, nil
}

// console returns the write end of a pipe whose lines go to the console file;
// that of the boot before is kept beside it as ….1.
// A pipe, so that the machine never holds a descriptor of a desk file.
func (m *machine) console() (*os.File, error) {
	// A handset that restarts itself would take the reason with it.
	if err := os.Rename(m.paths.Console, m.paths.Console+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot keep the console: %w", err)
	}
	file, err := os.OpenFile(m.paths.Console, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the console: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open the console: %w", err), file.Close())
	}
	go func() {
		defer file.Close()
		defer r.Close()
		if _, err := io.Copy(file, r); err != nil {
			// A full disk must not stop the machine: keep its pipe empty.
			_, _ = io.Copy(io.Discard, r)
		}
	}()
	return w, nil
}

// plug makes the radio of a machine whose first process is pid, with every
// running capture on its port before init is started.
func (m *machine) plug(pid int) error {
	ns, err := link.OpenPID(pid)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := m.radio.plug(ns, m.spec.Offload); err != nil {
		return err
	}
	return m.k.captures.plugged(m.radio.Port, m.spec.Offload)
}

// end removes what a machine that stopped, or never started, has left.
func (m *machine) end(chip *tpm, pins *os.File) error {
	hs := m.group("hs")
	if pins == nil {
		pins = pinsOf(hs)
	}
	err := killGroup(hs)
	if pins != nil {
		_ = pins.Close() // only a reference
	}
	// The air is quiet now: captures can end without missing a frame.
	m.mu.Lock()
	radios := append(slices.Collect(maps.Values(m.extra)), m.radio)
	m.extra = nil
	m.mu.Unlock()
	for _, r := range radios {
		m.k.captures.unplugging(r.Port)
		err = errors.Join(err, r.unplug())
	}
	if chip != nil {
		chip.stop()
	}
	return errors.Join(err, killGroup(m.group()), removeGroup(m.group()))
}

// powerOff sends init SIGTERM, waits for grace, then cuts the power. It
// returns when nothing of the machine is left. A machine that is off stays so.
func (m *machine) powerOff(ctx context.Context, grace time.Duration, reason string) error {
	m.switching.Lock()
	defer m.switching.Unlock()
	m.mu.Lock()
	state, init, gone := m.state, m.init, m.gone
	m.ended = true
	m.mu.Unlock()
	if state != On {
		return nil
	}
	if grace > 0 && init.Signal(unix.SIGTERM) == nil {
		select {
		case <-gone:
		case <-time.After(grace):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err := killGroup(m.group("hs"))
	<-gone
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reason = reason
	return err
}

// kill9 kills init and nothing else, as an attacker or a bug would; what
// follows is up to the machine. It returns when nothing of it is left.
func (m *machine) kill9() error {
	m.mu.Lock()
	state, init, gone := m.state, m.init, m.gone
	m.mu.Unlock()
	if state != On {
		return fmt.Errorf("cannot kill init of %s: %w", m.spec.Name, ErrOff)
	}
	if err := init.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("cannot kill init of %s: %w", m.spec.Name, err)
	}
	<-gone
	return nil
}

// hotPlug makes a device appear in the machine while it runs. Captures are on
// its port before it can be brought up.
func (m *machine) hotPlug(device string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != On {
		return fmt.Errorf("cannot plug in %s: %s: %w", device, m.spec.Name, ErrOff)
	}
	if _, there := m.extra[device]; there || device == m.radio.Device {
		return fmt.Errorf("cannot plug in %s: %s has one of that name", device, m.spec.Name)
	}
	as := m.radio
	if device == modemDevice {
		as = ModemOf(m.spec.Name, m.spec.Number)
	}
	r, err := as.hotPlug(m.spec.Name, device, m.init.Pid, m.spec.Offload)
	if err != nil {
		return err
	}
	if err := m.k.captures.plugged(r.Port, m.spec.Offload); err != nil {
		return errors.Join(err, r.unplug())
	}
	if m.extra == nil {
		m.extra = map[string]Radio{}
	}
	m.extra[device] = r
	return nil
}

// hotUnplug removes a device that was plugged in. One that is not there is not
// an error: the machine may have removed it.
func (m *machine) hotUnplug(device string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, there := m.extra[device]
	if !there {
		return nil
	}
	delete(m.extra, device)
	m.k.captures.unplugging(r.Port)
	return r.unplug()
}
