// Package tpmtest gives tests a real TPM: a swtpm with a state folder of its
// own, that can be powered on, switched off hard and powered on again. Only
// tests import it.
package tpmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rempart/internal/proof"
)

// TPM is one software TPM. Its state survives Off, as a chip's does.
type TPM struct {
	t     testing.TB
	state string
	cmd   *exec.Cmd
}

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
	if m.cmd != nil {
		m.t.Fatal("the tpm is on")
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "swtpm")
	defer theirs.Close()
	var log strings.Builder
	m.cmd = exec.Command("swtpm", "socket", "--tpm2", "--fd", "3", "--flags", "not-need-init",
		"--tpmstate", "dir="+m.state)
	m.cmd.ExtraFiles = []*os.File{theirs}
	m.cmd.Stderr = &log
	m.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		m.t.Fatalf("swtpm: %v", err)
	}
	return os.NewFile(uintptr(fds[0]), "tpm")
}

// Off takes the power away: SIGKILL, nothing is shut down.
func (m *TPM) Off() {
	if m.cmd == nil {
		return
	}
	if err := m.cmd.Process.Kill(); err != nil && err != os.ErrProcessDone {
		m.t.Errorf("swtpm: %v", err)
	}
	m.cmd.Wait() // says "killed"
	m.cmd = nil
}

// StateDir is where the TPM keeps its memory.
func (m *TPM) StateDir() string { return m.state }
