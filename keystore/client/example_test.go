package client_test

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"rempart/internal/proof"
	"rempart/internal/secret"
	"rempart/internal/sock"
	"rempart/internal/sock/httpsock"
	"rempart/keystore/client"
	"rempart/keystore/internal/phonetest"
	"rempart/keystore/internal/tpmtest"
	"rempart/keystore/server"
)

// TestMain leaves the examples out at a desk without a TPM: an Example cannot
// skip itself. In CI they fail instead.
func TestMain(m *testing.M) {
	flag.Parse()
	if _, err := exec.LookPath("swtpm"); err != nil && !proof.CI() {
		if err := flag.Set("test.skip", "^Example"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// Voiced, in red, takes its identity for TLS from the key socket. The handset
// was enrolled and certified before.
func Example() {
	ctx := context.Background()
	handset, err := powerOn()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer handset.off()

	// What voiced does.
	keys := client.New(handset.voiced)
	_, err = keys.Seal(ctx, "call log", []byte("b, 12:00"))
	fmt.Println("locked:", errors.Is(err, client.ErrLocked))

	// What the rempart command does, with a mistyped and then the right PIN.
	shell := client.New(handset.shell)
	_, err = shell.Unlock(ctx, secret.New([]byte("1111")))
	var wrong client.ErrWrongPIN
	if errors.As(err, &wrong) {
		fmt.Println("wrong pin, tries left:", wrong.TriesLeft)
	}
	status, err := shell.Unlock(ctx, secret.New([]byte("2580")))
	fmt.Println(status.State, err)

	// The key never leaves the TPM; each handshake is one signature there.
	cert, err := keys.TLSCertificate(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	config := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
	fmt.Println("identity:", config.Certificates[0].Leaf.Subject.CommonName)
	// Output:
	// locked: true
	// wrong pin, tries left: 9
	// capped <nil>
	// identity: a
}

// handset is a keystore on a software TPM, with one socket for each caller: a
// handset has one socket, and the kernel says who calls.
type handset struct {
	shell, voiced string
	off           func()
}

func powerOn() (*handset, error) {
	dir, err := os.MkdirTemp("", "keyd")
	if err != nil {
		return nil, err
	}
	machine := tpmtest.At(filepath.Join(dir, "tpm"))
	h := &handset{shell: filepath.Join(dir, "shell"), voiced: filepath.Join(dir, "voiced")}
	h.off = func() {
		machine.Off()
		os.RemoveAll(dir)
	}
	if err := h.enrol(dir, machine); err != nil {
		h.off()
		return nil, err
	}
	return h, nil
}

func (h *handset) enrol(dir string, machine *tpmtest.TPM) error {
	if err := os.Mkdir(filepath.Join(dir, "tpm"), 0o700); err != nil {
		return err
	}
	phone, err := phonetest.New(dir, machine)
	if err != nil {
		return err
	}
	tpm, err := phone.PowerOn()
	if err != nil {
		return err
	}
	s, err := server.New(server.Config{TPM: tpm, State: phone.State, Image: phone.Image})
	if err != nil {
		return err
	}
	for path, peer := range map[string]sock.Peer{
		h.shell:  {PID: 2, UID: 1000, Cgroup: "/shell"},
		h.voiced: {PID: 3, UID: 904, Cgroup: "/voiced"},
	} {
		ln, err := net.Listen("unix", path)
		if err != nil {
			return err
		}
		srv := &http.Server{
			Handler:     s.Handler(),
			ConnContext: func(ctx context.Context, _ net.Conn) context.Context { return httpsock.WithPeer(ctx, peer) },
		}
		go srv.Serve(ln)
	}
	ctx := context.Background()
	shell := client.New(h.shell)
	enrolment, err := shell.Enrol(ctx, "a", secret.New([]byte("2580")))
	if err != nil {
		return err
	}
	chain, err := phone.Certify(enrolment, nil)
	if err != nil {
		return err
	}
	return shell.SetCertificate(ctx, chain)
}
