package server

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/proof"
	"rempart/internal/sock"
	"rempart/keystore/client"
	"rempart/keystore/internal/tpm"
	"rempart/keystore/internal/tpmtest"
)

func dup(t *testing.T, p *phone) *os.File {
	t.Helper()
	fd, err := unix.Dup(int(p.stream.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "tpm")
}

// cutAfter takes the power away after n more commands.
func (p *phone) cutAfter(n int) {
	p.server.device.Watch(func(_, _ []byte) {
		if n--; n == 0 {
			p.TPM.Off()
		}
	})
}

// commands counts the commands of one run of work.
func (p *phone) commands(work func()) (n int) {
	p.server.device.Watch(func(_, _ []byte) { n++ })
	work()
	return n
}

func TestCrashInProvisioningCanBeRepeated(t *testing.T) {
	t.Parallel()
	whole := newPhone(t, tpmtest.New(t))
	whole.boot()
	all := whole.commands(func() { whole.enrol(goodPIN) })
	if all < 20 {
		t.Fatalf("provisioning took %d commands", all)
	}
	sealed := 0
	p := newPhone(t, tpmtest.New(t))
	for n := 1; n <= all; n += 2 {
		p.TPM, p.State = tpmtest.New(t), t.TempDir()
		p.boot()
		p.cutAfter(n)
		_, err := p.as("shell").Enrol(t.Context(), "a", pin(goodPIN))
		if err == nil && n < all-12 {
			t.Fatalf("cut after %d commands: enrolled", n)
		}
		p.cut()
		p.boot()
		switch s := p.status(); s.State {
		case client.Empty:
			p.enrol(goodPIN)
		case client.Sealed:
			sealed++
		default:
			t.Fatalf("cut after %d commands: %+v", n, s)
		}
		p.unlock(goodPIN)
		if own, err := p.server.device.Ownership(); err != nil || !own.Owner || !own.Lockout {
			t.Fatalf("cut after %d commands: %+v, %v", n, own, err)
		}
		p.cut()
	}
	if sealed == 0 {
		t.Error("no cut fell between the vault file and the end")
	}
}

func TestCrashInUnlockCostsAtMostOneTry(t *testing.T) {
	t.Parallel()
	p := enrolled(t)
	all := p.commands(func() { p.unlock(goodPIN) })
	p.halt()
	for n := 1; n < all; n += 2 {
		p.boot()
		p.cutAfter(n)
		if _, err := p.as("shell").Unlock(t.Context(), pin(goodPIN)); n < all-12 && !errors.Is(err, client.ErrTPMGone) {
			t.Fatalf("cut after %d of %d commands: %v", n, all, err)
		}
		p.cut()
		p.boot()
		if s := p.status(); s.State != client.Sealed || s.TriesLeft < 9 {
			t.Fatalf("cut after %d of %d commands: %+v", n, all, s)
		}
		if s := p.unlock(goodPIN); s.TriesLeft != 10 {
			t.Fatalf("cut after %d of %d commands: %+v", n, all, s)
		}
		p.halt()
	}
}

// The child of TestRightPINOpensAfterKills is a keyd in a process of its own.
const childEnv = "REMPART_TEST_KEYD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
	}
	os.Exit(m.Run())
}

// child serves the key socket, on a listener at descriptor 4, as the shell's.
func child() {
	s, err := New(Config{TPM: os.NewFile(3, "tpm"), State: os.Getenv(childEnv), Image: os.Getenv("REMPART_TEST_IMAGE")})
	if err != nil {
		os.Stderr.WriteString(err.Error())
		os.Exit(1)
	}
	shell := callers()["shell"]
	peer := sock.Peer{PID: 2, UID: shell.uid, Cgroup: shell.cgroup}
	if err := serveAs(peer, s.Handler(), os.NewFile(4, "listener")); err != nil {
		os.Stderr.WriteString(err.Error())
	}
	os.Exit(1)
}

// TestRightPINOpensAfterKills: worlds are killed, TPM and keyd both with
// SIGKILL, more often than the TPM has tries.
func TestRightPINOpensAfterKills(t *testing.T) {
	t.Parallel()
	proof.SFR(t, "FIA_TRT_EXT.1", "TestLockout")
	p := enrolled(t)
	p.halt()
	for round := range 15 {
		stream := p.powerOn()
		path, listener := socket(t)
		keyd := exec.Command(os.Args[0])
		keyd.Env = append(os.Environ(), childEnv+"="+p.State, "REMPART_TEST_IMAGE="+p.Image)
		keyd.ExtraFiles = []*os.File{stream, listener}
		var said bytes.Buffer
		keyd.Stderr = &said
		if err := keyd.Start(); err != nil {
			t.Fatal(err)
		}
		stream.Close()
		listener.Close()
		s, err := client.New(path).Unlock(t.Context(), pin(goodPIN))
		if err != nil || s.State != client.Capped || s.TriesLeft != 10 {
			t.Fatalf("round %d: %+v, %v, %s", round, s, err, said.String())
		}
		p.TPM.Off()
		if err := keyd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		keyd.Wait()
	}
}

// TestKillsWithoutTheResetDoCount is the twin: without the reset after each
// open, the same kills lead to the lockout.
func TestKillsWithoutTheResetDoCount(t *testing.T) {
	p := enrolled(t)
	for range 3 {
		auth := pinAuth(p.server.file.Salt, []byte(goodPIN))
		if _, _, _, err := p.server.open(auth); err != nil {
			t.Fatal(err)
		}
		p.cut()
		p.boot()
	}
	if s := p.status(); s.TriesLeft != 7 {
		t.Errorf("%d tries left: the twin shows nothing", s.TriesLeft)
	}
}

func TestHungUpClientStallsNobody(t *testing.T) {
	p := enrolled(t)
	p.unlock(goodPIN)
	release, refusal := p.server.take(t.Context())
	if refusal != nil {
		t.Fatal(refusal)
	}
	short, cancel := timeout(t, 50*time.Millisecond)
	defer cancel()
	if _, err := p.as("tunneld").TunnelKey(short); err == nil {
		t.Error("got a key out of turn")
	}
	if s := p.status(); s.State != client.Capped {
		t.Errorf("status waits for the tpm: %+v", s)
	}
	release()
	if _, err := p.as("tunneld").TunnelKey(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestLostTPMWipesAndFails(t *testing.T) {
	p := enrolled(t)
	p.unlock(goodPIN)
	held := p.server.held
	p.TPM.Off()
	signer, _, err := p.as("voiced").Signer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := signer.Sign(nil, make([]byte, 32), sha256Opts{}); !errors.Is(err, client.ErrTPMGone) {
		t.Errorf("sign: %v", err)
	}
	if held.tunnel.Len()+held.storage.Len()+held.identity.Len() != 0 {
		t.Error("secrets are still in memory")
	}
	if _, err := p.as("tunneld").TunnelKey(t.Context()); !errors.Is(err, client.ErrTPMGone) {
		t.Errorf("tunnel key: %v", err)
	}
	select {
	case <-p.server.broken:
	default:
		t.Error("serve would go on")
	}
	if !errors.Is(p.server.cause, tpm.ErrTPMGone) {
		t.Error(p.server.cause)
	}
}
