package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Stage makes the calling program the guest's process 1 where it is that, and returns at once elsewhere. Programs and
// tests that use this package call it first.
func Stage() {
	if os.Getpid() != 1 || os.Args[0] != "/init" {
		return
	}
	text, err := os.ReadFile("/" + orderFile)
	if err != nil {
		return // another machine's init
	}
	err = inside(text)
	// Nobody hears this but the desk's console.
	fmt.Println("guest: stopping:", err)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	os.Exit(1) // the kernel panics, and QEMU ends
}

// inside is the whole life of the guest.
func inside(text []byte) error {
	o, err := parseOrder(text)
	if err != nil {
		return err
	}
	if err := errors.Join(os.Setenv("PATH", searched), early()); err != nil {
		return err
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	v := &voice{w: port}
	if err := v.carryOut(o); err != nil {
		return errors.Join(err, v.say(said{kind: saidFailed, body: []byte(err.Error())}))
	}
	select {} // the desk ends the machine
}

// voice says things to the desk, one at a time.
type voice struct {
	mu sync.Mutex
	w  io.Writer
}

func (v *voice) say(s said) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return s.write(v.w)
}

func (v *voice) carryOut(o order) error {
	for _, m := range o.Boot {
		if err := loadModule(m); err != nil {
			return err
		}
	}
	if err := enterDesk(o.Kernel); err != nil {
		return err
	}
	if err := network(); err != nil {
		return err
	}
	if len(o.Modules) > 0 {
		if out, err := exec.Command("/sbin/modprobe", append([]string{"-a"}, o.Modules...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("cannot load modules: %w: %s", err, out)
		}
	}
	for i, t := range o.Commands {
		e, err := v.run(byte(i), t)
		if err != nil {
			return fmt.Errorf("cannot run %s: %w", t.Argv[0], err)
		}
		text, err := json.Marshal(e)
		if err != nil {
			return err
		}
		if err := v.say(said{saidExit, byte(i), text}); err != nil {
			return err
		}
	}
	return nil
}

// loadModule takes compressed modules as they are: the kernel unpacks them.
func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if strings.HasSuffix(path, ".xz") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	if err := unix.FinitModule(int(f.Fd()), "", flags); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("cannot load %s: %w", path, err)
	}
	return nil
}

// openPort waits for the port that the desk listens at: the driver finds it in its own time.
func openPort() (*os.File, error) {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if text, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(text)) == portName {
				// A blocking descriptor: the port has no poll that Go could use.
				fd, err := unix.Open("/dev/"+filepath.Base(filepath.Dir(n)), unix.O_RDWR|unix.O_CLOEXEC, 0)
				if err != nil {
					return nil, fmt.Errorf("cannot open the port: %w", err)
				}
				return os.NewFile(uintptr(fd), "port"), nil
			}
		}
		if time.Now().After(end) {
			return nil, errors.New("there is no port to the desk")
		}
	}
}

// run runs one command to its end, or to its limit. Process 1 also buries what others leave.
func (v *voice) run(number byte, t task) (Ending, error) {
	program := t.Argv[0]
	if !strings.Contains(program, "/") {
		found, err := exec.LookPath(program)
		if err != nil {
			return Ending{}, err
		}
		program = found
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return Ending{}, err
	}
	defer null.Close()
	var streams [2]*os.File
	var ends [2]*os.File
	for i := range streams {
		if ends[i], streams[i], err = os.Pipe(); err != nil {
			return Ending{}, err
		}
	}
	begin := time.Now()
	pid, err := syscall.ForkExec(program, t.Argv, &syscall.ProcAttr{Dir: t.Dir, Env: t.Env,
		Files: []uintptr{null.Fd(), streams[0].Fd(), streams[1].Fd()}, Sys: &syscall.SysProcAttr{Setsid: true}})
	for _, s := range streams {
		s.Close()
	}
	if err != nil {
		return Ending{}, err
	}
	var copies sync.WaitGroup
	for i, kind := range []byte{saidOut, saidErr} {
		copies.Go(func() { v.copy(ends[i], kind, number) })
	}
	limit := time.AfterFunc(t.Timeout, func() { _ = unix.Kill(-pid, unix.SIGKILL) })
	status, err := bury(pid)
	took := time.Since(begin)
	late := !limit.Stop()
	if err != nil {
		return Ending{}, err
	}
	// What the command left running may hold the pipes: nothing of one command lives into the next.
	_ = unix.Kill(-1, unix.SIGKILL)
	copies.Wait()
	e := Ending{Code: status.ExitStatus(), TimedOut: late, Took: took}
	if status.Signaled() {
		e.Signal = int(status.Signal())
	}
	return e, nil
}

// copy passes on one stream to its end.
func (v *voice) copy(from *os.File, kind, number byte) {
	defer from.Close()
	b := make([]byte, maxSaid)
	for {
		n, err := from.Read(b)
		if n > 0 {
			// A desk that does not listen any more ends the machine.
			_ = v.say(said{kind, number, b[:n]})
		}
		if err != nil {
			return
		}
	}
}

// bury waits for processes until pid is among the dead.
func bury(pid int) (unix.WaitStatus, error) {
	for {
		var status unix.WaitStatus
		dead, err := unix.Wait4(-1, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, os.NewSyscallError("wait4", err)
		}
		if dead == pid {
			return status, nil
		}
	}
}
