package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rempart/boot/measure"
	"rempart/boot/stage"
	"rempart/keystore/extend"
)

// factory makes TPMs: one manufacturer, with a certificate authority of its
// own, per world.
type factory struct {
	dir string // absolute; kept with the world's state
	// The first TPM also makes the authority, whose files swtpm's tool does
	// not guard well against a second run at the same time.
	first sync.Mutex
}

// make manufactures the TPM in dir, with endorsement keys, their
// certificates and a platform certificate, unless dir holds one already. It
// takes about a second.
func (f *factory) make(ctx context.Context, name, dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "tpm2-00.permall")); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot look at the TPM of %s: %w", name, err)
	}
	if _, err := os.Stat(filepath.Join(f.dir, "issuercert.pem")); err != nil {
		f.first.Lock()
		defer f.first.Unlock()
	}
	for _, d := range []string{f.dir, dir, filepath.Join(dir, "certificates")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("cannot make the TPM of %s: %w", name, err)
		}
	}
	config := filepath.Join(f.dir, "swtpm_setup.conf")
	if err := f.configure(config); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "swtpm_setup", "--tpm2", "--config", config, "--tpmstate", dir,
		"--create-ek-cert", "--create-platform-cert", "--write-ek-cert-files", filepath.Join(dir, "certificates"),
		"--vmid", name, "--lock-nvram", "--runas", "root")
	if out, err := cmd.CombinedOutput(); err != nil {
		// A half-made TPM must not be taken for one next time.
		return errors.Join(fmt.Errorf("cannot make the TPM of %s: swtpm_setup: %w: %s", name, err, lastLines(string(out), 3)),
			os.RemoveAll(dir))
	}
	return nil
}

// configure writes the manufacturer's configuration, if it is not there.
// Every path in it is absolute: swtpm's defaults would write one authority for
// the whole machine.
func (f *factory) configure(config string) error {
	tool, err := exec.LookPath("swtpm_localca")
	if err != nil {
		return fmt.Errorf("cannot make TPMs: %w", err)
	}
	at := func(name string) string { return filepath.Join(f.dir, name) }
	files := map[string]string{
		config: "create_certs_tool = " + tool + "\ncreate_certs_tool_config = " + at("localca.conf") +
			"\ncreate_certs_tool_options = " + at("localca.options") + "\nactive_pcr_banks = sha256\n",
		at("localca.conf"): "statedir = " + f.dir + "\nsigningkey = " + at("signkey.pem") +
			"\nissuercert = " + at("issuercert.pem") + "\ncertserial = " + at("certserial") + "\n",
		at("localca.options"): "--platform-manufacturer Rempart-lab\n--platform-version 1\n--platform-model netns\n",
	}
	for path, text := range files {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return fmt.Errorf("cannot configure the TPM manufacturer: %w", err)
		}
	}
	return nil
}

// lastLines returns the end of a tool's output, on one line.
func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}

// tpm is one running TPM.
type tpm struct {
	cmd  *exec.Cmd
	bus  *os.File      // the machine's end of the only connection there is
	done chan struct{} // closed when the process is gone
}

// startTPM starts the TPM in dir, as a process in control group hw. It ends
// when the last copy of its bus is closed.
func startTPM(dir, log string, hw *os.File) (*tpm, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot make the TPM's bus: %w", err)
	}
	near, far := os.NewFile(uintptr(pair[0]), "tpm"), os.NewFile(uintptr(pair[1]), "tpm-chip")
	defer far.Close()
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--fd", "3", "--tpmstate", "dir="+dir,
		"--flags", "not-need-init", "--log", "file="+log+",truncate")
	cmd.ExtraFiles = []*os.File{far}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(hw.Fd())}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot start swtpm: %w", err), near.Close())
	}
	t := &tpm{cmd: cmd, bus: near, done: make(chan struct{})}
	go func() {
		defer close(t.done)
		_ = cmd.Wait() // its end is seen on the bus
	}()
	return t, nil
}

// boot does what a board's firmware does to the TPM: start it, then measure
// init and the root of the image.
func (t *tpm) boot(image string) error {
	fd, err := unix.FcntlInt(t.bus.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot reach the TPM: %w", err)
	}
	door, err := extend.Open(os.NewFile(uintptr(fd), "tpm"))
	if err != nil {
		return err
	}
	defer door.Close()
	if err := door.Startup(); err != nil {
		return err
	}
	for _, s := range stage.Firmware() {
		digest, err := measure.Stage(image, s)
		if err != nil {
			return err
		}
		if err := door.Extend(s.PCR, digest); err != nil {
			return fmt.Errorf("cannot measure %s: %w", s.Name, err)
		}
	}
	return nil
}

// stop closes the bus, gives the TPM a moment to end, and kills it.
func (t *tpm) stop() {
	_ = t.bus.Close() // the machine's copies are gone already
	select {
	case <-t.done:
	case <-time.After(2 * time.Second):
		_ = t.cmd.Process.Kill() // it may end by itself just now
		<-t.done
	}
}
