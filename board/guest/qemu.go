package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/run"
)

const emulator = "qemu-system-x86_64"

// machine is one running QEMU.
type machine struct {
	cmd     *exec.Cmd
	port    *os.File // our end of the virtio port
	console *tail
	said    strings.Builder // by QEMU itself
}

// arguments describe a machine with one disk less than any: the desk's root by 9p, a port, a serial line, no network.
func (o Options) arguments(ird string) []string {
	return []string{
		"-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", strconv.Itoa(o.Processors), "-m", strconv.Itoa(o.Memory),
		"-kernel", o.Kernel.image, "-initrd", ird, "-append", "console=ttyS0 quiet panic=-1 rdinit=/init random.trust_cpu=on",
		"-nodefaults", "-no-user-config", "-nic", "none", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-fsdev", "local,id=desk,path=/,security_model=none,readonly=on,multidevs=remap", "-device", "virtio-9p-pci,fsdev=desk,mount_tag=desk",
		"-chardev", "socket,id=port,fd=3", "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=port,name=" + portName,
		"-device", "virtio-rng-pci",
	}
}

const portName = "rempart"

// start starts QEMU. It ends with ctx and with this process.
func start(ctx context.Context, o Options, ird string) (*machine, error) {
	ours, theirs, err := pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	m := &machine{cmd: exec.CommandContext(ctx, emulator, o.arguments(ird)...), port: ours, console: &tail{next: o.Console}}
	m.cmd.ExtraFiles = []*os.File{theirs}
	m.cmd.Stdout, m.cmd.Stderr = m.console, &m.said
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		return nil, errors.Join(run.Hint(fmt.Errorf("cannot start QEMU: %w", err), "run make setup"), ours.Close())
	}
	return m, nil
}

// end takes the machine down, whatever it does, and returns err with what it said if err is not nil.
func (m *machine) end(err error) error {
	if err != nil {
		// It may be about to say why: a panicking kernel ends QEMU by itself.
		kill := time.AfterFunc(time.Second, func() { _ = m.cmd.Process.Kill() })
		defer kill.Stop()
	} else {
		_ = m.cmd.Process.Kill() // it may have ended by itself
	}
	_ = m.cmd.Wait() // it was killed, or err says more
	if cerr := m.port.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		return nil
	}
	if s := strings.TrimSpace(m.said.String()); s != "" {
		err = fmt.Errorf("%w\nQEMU: %s", err, s)
	}
	if s := m.console.String(); s != "" {
		err = fmt.Errorf("%w\nits console ended in:\n%s", err, s)
	}
	return err
}

// pair makes the two ends of the port.
func pair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "port"), os.NewFile(uintptr(fds[1]), "port"), nil
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	last []byte
	next io.Writer
}

const tailSize = 4 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = append(t.last, b...)
	if over := len(t.last) - tailSize; over > 0 {
		t.last = t.last[over:]
	}
	if t.next != nil {
		return t.next.Write(b)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.last))
}
