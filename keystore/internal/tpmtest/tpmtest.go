// Package tpmtest gives tests a real TPM: a swtpm with a state folder of its
// own, that can be powered on, switched off hard and powered on again. Only
// tests import it.
package tpmtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/proof"
)

// TPM is one software TPM. Its state survives Off, as a chip's does.
type TPM struct {
	t     testing.TB // nil in an Example
	state string
	cmd   *exec.Cmd
}

// At returns a TPM with its memory in dir, for an Example, which has no
// testing.TB: use Start and Off.
func At(dir string) *TPM { return &TPM{state: dir} }

// New returns a TPM fresh from nowhere: no EK certificate. It skips the test
// at a desk without swtpm, and fails it in CI.
func New(t testing.TB) *TPM {
	t.Helper()
	proof.Need(t, "swtpm")
	m := &TPM{t: t, state: t.TempDir()}
	t.Cleanup(m.Off)
	return m
}

// Manufactured returns a TPM with an EK and the certificate of a maker that
// lives in the test's folder.
func Manufactured(t testing.TB) *TPM {
	t.Helper()
	proof.Need(t, "swtpm", "swtpm_setup", "certtool")
	m := New(t)
	ca := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(ca, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	local := write("localca.conf", fmt.Sprintf("statedir = %s\nsigningkey = %s\nissuercert = %s\ncertserial = %s\n",
		ca, filepath.Join(ca, "signkey.pem"), filepath.Join(ca, "issuercert.pem"), filepath.Join(ca, "certserial")))
	options := write("options", "--platform-manufacturer Rempart\n--platform-version 1\n--platform-model test\n")
	tool, err := exec.LookPath("swtpm_localca")
	if err != nil {
		proof.Missing(t, "swtpm_localca (run make setup)")
	}
	config := write("setup.conf", fmt.Sprintf(
		"create_certs_tool = %s\ncreate_certs_tool_config = %s\ncreate_certs_tool_options = %s\n", tool, local, options))
	out, err := exec.Command("swtpm_setup", "--tpm2", "--config", config, "--tpmstate", m.state,
		"--create-ek-cert", "--create-platform-cert", "--lock-nvram", "--overwrite").CombinedOutput()
	if err != nil {
		t.Fatalf("swtpm_setup: %v\n%s", err, out)
	}
	return m
}

// On powers the TPM on and returns the stream to it, which the caller owns. It
// does not send TPM2_Startup.
func (m *TPM) On() *os.File {
	m.t.Helper()
	stream, err := m.Start()
	if err != nil {
		m.t.Fatal(err)
	}
	return stream
}

// Start is On with an error.
func (m *TPM) Start() (*os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "tpm"), os.NewFile(uintptr(fds[1]), "swtpm")
	err = m.run([]*os.File{theirs}, "--fd", "3")
	if err = errors.Join(err, theirs.Close()); err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	return ours, nil
}

// Listen powers the TPM on behind a unix socket, for tpm2-tools, and returns
// their TCTI. It does not send TPM2_Startup.
func (m *TPM) Listen() (tcti string) {
	m.t.Helper()
	path := filepath.Join(m.t.TempDir(), "s")
	err := m.run(nil, "--server", "type=unixio,path="+path, "--ctrl", "type=unixio,path="+path+".ctrl")
	if err != nil {
		m.t.Fatal(err)
	}
	for range 500 {
		if _, err := os.Stat(path + ".ctrl"); err == nil {
			return "swtpm:path=" + path
		}
		time.Sleep(10 * time.Millisecond)
	}
	m.t.Fatal("swtpm does not listen")
	return ""
}

func (m *TPM) run(files []*os.File, args ...string) error {
	if m.cmd != nil {
		return errors.New("the tpm is on")
	}
	cmd := exec.Command("swtpm", append([]string{"socket", "--tpm2", "--flags", "not-need-init", "--tpmstate", "dir=" + m.state}, args...)...)
	cmd.ExtraFiles = files
	// The test's threads come and go; its process is what swtpm must not
	// outlive, and its end of the stream does that too.
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start swtpm: %w", err)
	}
	m.cmd = cmd
	return nil
}

// Off takes the power away: SIGKILL, nothing is shut down. Off while off does
// nothing.
func (m *TPM) Off() {
	if m.cmd == nil {
		return
	}
	m.cmd.Process.Kill() // an error means that it has ended already
	m.cmd.Wait()         // says "killed"
	m.cmd = nil
}
