package server

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rempart/boot/manifest"
	"rempart/internal/proof"
	"rempart/internal/run"
	"rempart/keystore/client"
	"rempart/keystore/internal/tpmtest"
	"rempart/keystore/policy"
)

const goodPIN = "2580"

// enrolled returns a phone that was enrolled, certified, and restarted cleanly.
func enrolled(t *testing.T) *phone {
	t.Helper()
	p := newPhone(t, tpmtest.New(t))
	p.boot()
	e := p.enrol(goodPIN)
	if err := p.as("shell").SetCertificate(t.Context(), p.certify(e, nil)); err != nil {
		t.Fatal(err)
	}
	p.halt()
	p.boot()
	return p
}

func TestFromEmptyToASignature(t *testing.T) {
	p := newPhone(t, tpmtest.Manufactured(t))
	p.boot()
	if s := p.status(); s.State != client.Empty || s.Certificate {
		t.Fatalf("new phone: %+v", s)
	}
	e := p.enrol(goodPIN)
	if _, err := x509.ParseCertificateRequest(e.CSR); err != nil {
		t.Fatal(err)
	}
	if len(e.EKCertificate) == 0 || len(e.TunnelKey) != 32 {
		t.Errorf("ek certificate %d bytes, tunnel key %d", len(e.EKCertificate), len(e.TunnelKey))
	}
	if s := p.status(); s.State != client.Sealed || s.Name != "a" || s.TriesLeft != 10 {
		t.Errorf("after enrolment: %+v", s)
	}
	if again, err := p.as("shell").Enrolment(t.Context()); err != nil || !bytes.Equal(again.CSR, e.CSR) {
		t.Errorf("second look at the request: %v", err)
	}
	if _, err := p.as("shell").Enrol(t.Context(), "b", pin(goodPIN)); !errors.Is(err, client.ErrRefused) {
		t.Errorf("enrolled twice: %v", err)
	}
	chain := p.certify(e, nil)
	if err := p.as("shell").SetCertificate(t.Context(), chain); err != nil {
		t.Fatal(err)
	}
	p.halt()

	p.boot()
	if s := p.status(); s.State != client.Sealed || !s.Certificate || s.Name != "a" {
		t.Fatalf("after a restart: %+v", s)
	}
	ctx, voiced, tunneld := t.Context(), p.as("voiced"), p.as("tunneld")
	if _, err := tunneld.TunnelKey(ctx); !errors.Is(err, client.ErrLocked) {
		t.Errorf("tunnel key while sealed: %v", err)
	}
	if _, err := voiced.Seal(ctx, "log", nil); !errors.Is(err, client.ErrLocked) {
		t.Errorf("storage while sealed: %v", err)
	}
	opened := make(chan error, 1)
	go func() { opened <- tunneld.WaitOpen(ctx) }()
	if s := p.unlock(goodPIN); s.Floor != 3 || s.Serial != 3 || s.TriesLeft != 10 {
		t.Errorf("after unlock: %+v", s)
	}
	if err := <-opened; err != nil {
		t.Error(err)
	}
	for range 2 { // a restarted tunneld asks again
		key, err := tunneld.TunnelKey(ctx)
		if err != nil {
			t.Fatal(err)
		}
		private, err := ecdh.X25519().NewPrivateKey(key.Reveal())
		if err != nil || !bytes.Equal(private.PublicKey().Bytes(), e.TunnelKey) {
			t.Errorf("tunnel key is not the enrolled one: %v", err)
		}
	}
	signer, got, err := voiced.Signer(ctx)
	if err != nil || len(got) != 1 || !bytes.Equal(got[0], chain[0]) {
		t.Fatalf("signer: %v", err)
	}
	digest := sha256.Sum256([]byte("hello"))
	signature, err := signer.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.VerifyASN1(signer.Public().(*ecdsa.PublicKey), digest[:], signature) {
		t.Error("signature does not verify")
	}
	if _, err := signer.Sign(rand.Reader, make([]byte, 48), crypto.SHA384); err == nil {
		t.Error("signed a SHA-384 digest")
	}
	storage(t, voiced)
	handshake(t, p, voiced)
	if strings.Contains(p.log.String(), goodPIN) {
		t.Error("the journal has the pin")
	}
}

func storage(t *testing.T, voiced *client.Client) {
	t.Helper()
	ctx := t.Context()
	sealed, err := voiced.Seal(ctx, "call log", []byte("b called at noon"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, []byte("noon")) {
		t.Error("sealed data is plain")
	}
	if got, err := voiced.Open(ctx, "call log", sealed); err != nil || string(got) != "b called at noon" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := voiced.Open(ctx, "contacts", sealed); err == nil {
		t.Error("opened for another purpose")
	}
	sealed[len(sealed)-1] ^= 1
	if _, err := voiced.Open(ctx, "call log", sealed); err == nil {
		t.Error("opened altered data")
	}
}

// handshake does mutual TLS 1.3 with the identity key at both ends.
func handshake(t *testing.T, p *phone, voiced *client.Client) {
	t.Helper()
	cert, err := voiced.TLSCertificate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	roots := p.Roots()
	one, other := net.Pipe()
	conf := &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13,
		RootCAs: roots, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "10.77.0.11",
	}
	done := make(chan error, 1)
	go func() { done <- tls.Server(one, conf).Handshake() }()
	c := tls.Client(other, conf)
	if err := c.Handshake(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if curve := c.ConnectionState().CurveID; curve != tls.X25519MLKEM768 {
		t.Errorf("group %v", curve)
	}
}

func TestWrongPIN(t *testing.T) {
	proof.SFR(t, "FIA_TRT_EXT.1", "TestRightPINOpensAfterKills")
	p := enrolled(t)
	shell, ctx := p.as("shell"), t.Context()
	for left := 9; left >= 7; left-- {
		_, err := shell.Unlock(ctx, pin("0000"))
		var wrong client.ErrWrongPIN
		if !errors.As(err, &wrong) || wrong.TriesLeft != left {
			t.Errorf("wrong pin: %v, want %d tries left", err, left)
		}
	}
	if s := p.status(); s.State != client.Sealed || s.TriesLeft != 7 || s.Reason == "" {
		t.Errorf("%+v", s)
	}
	if _, err := shell.Unlock(ctx, pin("1")); err == nil {
		t.Error("took a pin of one digit")
	}
	if s := p.unlock(goodPIN); s.TriesLeft != 10 {
		t.Errorf("right pin did not reset the count: %+v", s)
	}
}

func TestLockout(t *testing.T) {
	t.Parallel()
	proof.SFR(t, "FIA_TRT_EXT.1", "TestRightPINOpensAfterKills")
	p := enrolled(t)
	shell, ctx := p.as("shell"), t.Context()
	for range 10 {
		var wrong client.ErrWrongPIN
		if _, err := shell.Unlock(ctx, pin("0000")); !errors.As(err, &wrong) {
			t.Fatal(err)
		}
	}
	check := func() {
		t.Helper()
		_, err := shell.Unlock(ctx, pin(goodPIN))
		var lockout client.ErrLockout
		if !errors.As(err, &lockout) || lockout.For.Minutes() != 10 {
			t.Errorf("right pin in lockout: %v", err)
		}
		if s := p.status(); s.State != client.Sealed || s.LockoutSeconds != 600 || s.TriesLeft != 0 {
			t.Errorf("%+v", s)
		}
	}
	check()
	// A restart is no way out, clean or not.
	p.cut()
	p.boot()
	shell = p.as("shell")
	check()
}

func TestCap(t *testing.T) {
	p := enrolled(t)
	p.unlock(goodPIN)
	if _, err := p.as("shell").Unlock(t.Context(), pin("wrong one")); err != nil {
		t.Errorf("a second unlock asks nothing and says nothing: %v", err)
	}
	// keyd dies and comes again in the same boot: the TPM opens nothing.
	boot, auth := p.server.file.Boot, pinAuth(p.server.file.Salt, []byte(goodPIN))
	bootProof, err := p.server.device.Verify(p.server.image.boot, p.server.file.Alive)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.server.device.Unseal(boot, bootProof, auth); err == nil {
		t.Fatal("the tpm opened the boot secrets a second time")
	}
	again, err := New(Config{TPM: dup(t, p), State: p.State, Image: p.Image})
	if err != nil {
		t.Fatal(err)
	}
	defer again.device.Close()
	if s := again.Status(); s.State != client.Sealed || !strings.Contains(s.Reason, "restart the handset") {
		t.Errorf("%+v", s)
	}
	p.server.device.Close()
	p.server = again
	if _, err := p.as("shell").Unlock(t.Context(), pin(goodPIN)); !errors.Is(err, client.ErrRefused) || !strings.Contains(err.Error(), "restart") {
		t.Errorf("unlock behind the cap: %v", err)
	}
}

func TestServeEndsCleanlyAndWithoutATPM(t *testing.T) {
	p := enrolled(t)
	serve := func(ctx context.Context) (*client.Client, chan error) {
		path := filepath.Join(p.Image, "s")
		os.Remove(path)
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		server := p.server
		go func() { ended <- server.Serve(ctx, ln) }()
		return client.New(path), ended
	}
	p.unlock(goodPIN)
	ctx, cancel := context.WithCancel(t.Context())
	c, ended := serve(ctx)
	if s, err := c.Status(ctx); err != nil || s.State != client.Capped {
		t.Errorf("%+v, %v", s, err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, run.ErrStopped) {
		t.Errorf("clean end: %v", err)
	}
	p.server = nil
	p.TPM.Off()

	p.boot()
	if s := p.status(); s.TriesLeft != 10 {
		t.Errorf("a clean end cost a try: %+v", s)
	}
	_, ended = serve(t.Context())
	p.TPM.Off()
	err := <-ended
	if errors.Is(err, run.ErrStopped) || err == nil || !strings.Contains(err.Error(), "tpm is gone") {
		t.Errorf("without a tpm: %v", err)
	}
	if s := p.server.Status(); s.State != client.Failed || !strings.Contains(s.Reason, "tpm is gone") {
		t.Errorf("%+v", s)
	}
}

func TestDamagedVaultFails(t *testing.T) {
	p := enrolled(t)
	p.halt()
	path := filepath.Join(p.State, "vault")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[100] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	p.boot()
	if s := p.status(); s.State != client.Failed || !strings.Contains(s.Reason, "damaged") {
		t.Errorf("%+v", s)
	}
	if _, err := p.as("shell").Enrol(t.Context(), "a", pin(goodPIN)); !errors.Is(err, client.ErrRefused) {
		t.Errorf("enrolled over a damaged vault: %v", err)
	}
}

func TestOtherTPMFails(t *testing.T) {
	p := enrolled(t)
	p.halt()
	p.TPM = tpmtest.New(t)
	p.boot()
	if s := p.status(); s.State != client.Failed || !strings.Contains(s.Reason, "storage root key") {
		t.Errorf("%+v", s)
	}
}

func TestOwnedTPMIsNotTaken(t *testing.T) {
	p := enrolled(t)
	p.halt()
	p.State = t.TempDir() // the state folder was lost
	p.boot()
	if _, err := p.as("shell").Enrol(t.Context(), "a", pin(goodPIN)); !errors.Is(err, client.ErrRefused) || !strings.Contains(err.Error(), "lockout auth") {
		t.Errorf("enrolled over another vault: %v", err)
	}
}

func TestWordsAgreeWithThePolicyBundle(t *testing.T) {
	if policy.RefBoot != manifest.RefBoot || policy.RefUser != manifest.RefUser ||
		policy.MinSerial != manifest.MinSerial || policy.MaxSerial != manifest.MaxSerial {
		t.Error("keystore/policy and boot/manifest disagree")
	}
}
