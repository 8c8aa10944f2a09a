package peers

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rempart/internal/journal"
	"rempart/internal/proof"
	"rempart/voice/voicetest"
)

func rulesOf(a *voicetest.Authority) Rules {
	return Rules{Roots: a.Roots, Domain: voicetest.Domain,
		Networks: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/24")}, Own: []netip.Addr{voicetest.GatewayAddr()}}
}

func put(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func names(s Set) string {
	var n []string
	for _, p := range s.Peers {
		n = append(n, p.Name)
	}
	return strings.Join(n, " ")
}

func TestLoad(t *testing.T) {
	proof.SFR(t, "FIA_X509_EXT.1", "")
	ours, other := voicetest.NewAuthority(t), voicetest.NewAuthority(t)
	dir := t.TempDir()
	a := ours.Handset(t, "a", "secret", voicetest.HandsetAddr(1))
	put(t, dir, "b.pem", voicetest.CertPEM(ours.Handset(t, "b", "restricted", voicetest.HandsetAddr(2))))
	put(t, dir, "a.pem", voicetest.CertPEM(a))
	put(t, dir, "notes.txt", []byte("not looked at"))
	bad := map[string][]byte{
		"empty.pem":     {},
		"garbage.pem":   []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
		"key.pem":       []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
		"huge.pem":      bytes.Repeat([]byte("x"), maxFileSize+1),
		"other.pem":     voicetest.CertPEM(other.Handset(t, "c", "secret", voicetest.HandsetAddr(3))),
		"gateway.pem":   voicetest.CertPEM(ours.Gateway(t, "secret")),
		"outside.pem":   voicetest.CertPEM(ours.Handset(t, "d", "secret", netip.MustParseAddr("192.0.2.7"))),
		"impostor.pem":  voicetest.CertPEM(ours.Handset(t, "e", "secret", voicetest.GatewayAddr())),
		"x-first.pem":   voicetest.CertPEM(ours.Handset(t, "x", "secret", voicetest.HandsetAddr(5))),
		"x-second.pem":  voicetest.CertPEM(ours.Handset(t, "x", "secret", voicetest.HandsetAddr(6))),
		"addr-one.pem":  voicetest.CertPEM(ours.Handset(t, "f", "secret", voicetest.HandsetAddr(7))),
		"addr-also.pem": voicetest.CertPEM(ours.Handset(t, "g", "secret", voicetest.HandsetAddr(7))),
	}
	for name, data := range bad {
		put(t, dir, name, data)
	}
	if err := os.Symlink(filepath.Join(dir, "a.pem"), filepath.Join(dir, "link.pem")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "folder.pem"), 0o700); err != nil {
		t.Fatal(err)
	}
	set, err := Load(dir, rulesOf(ours), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if names(set) != "a b" || set.Peers[0].Level != "secret" || set.Peers[0].URI != "sip:a@handsets.example" ||
		!slices.Equal(set.Peers[0].Inner, []netip.Addr{voicetest.HandsetAddr(1)}) || len(set.Peers[0].PublicKey) != 44 {
		t.Errorf("peers: %+v", set.Peers)
	}
	if len(set.Faults) != len(bad)+2 {
		t.Errorf("%d faults, want %d: %v", len(set.Faults), len(bad)+2, set.Faults)
	}
	// Certificates end: two hours later nobody is a peer.
	if set, err := Load(dir, rulesOf(ours), time.Now().Add(2*time.Hour)); err != nil || len(set.Peers) != 0 {
		t.Errorf("after the certificates' end: %v %v", names(set), err)
	}
	if set, err := Load(filepath.Join(dir, "nothing"), rulesOf(ours), time.Now()); err != nil || len(set.Peers)+len(set.Faults) != 0 {
		t.Errorf("no folder: %+v %v", set, err)
	}
	if _, err := Load(filepath.Join(dir, "a.pem"), rulesOf(ours), time.Now()); err == nil {
		t.Error("a file was taken for a folder")
	}
}

func TestTooMany(t *testing.T) {
	dir := t.TempDir()
	for i := range maxEntries + 1 {
		put(t, dir, strings.Repeat("z", 1+i/500)+string(rune('a'+i%500))+".txt", nil)
	}
	if n, _ := os.ReadDir(dir); len(n) <= maxEntries {
		t.Fatalf("only %d files", len(n))
	}
	if _, err := Load(dir, Rules{}, time.Now()); err == nil {
		t.Error("a flooded folder was read")
	}
}

// TestWatcher follows a folder's life in virtual time.
func TestWatcher(t *testing.T) {
	ours := voicetest.NewAuthority(t)
	dir := t.TempDir()
	put(t, dir, "a.pem", voicetest.CertPEM(ours.Handset(t, "a", "secret", voicetest.HandsetAddr(1))))
	put(t, dir, "bad.pem", []byte("no"))
	b := voicetest.CertPEM(ours.Handset(t, "b", "secret", voicetest.HandsetAddr(2)))
	now := time.Now()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var log bytes.Buffer
		var pushes []string
		down, stale, changes := true, false, 0
		w := &Watcher{Dir: dir, Rules: rulesOf(ours), Journal: journal.New(&log, "gatewayd"),
			Now: func() time.Time { return now },
			Push: func(_ context.Context, p []Peer) error {
				mu.Lock()
				defer mu.Unlock()
				if down {
					return errors.New("tunneld is not there")
				}
				pushes, stale = append(pushes, names(Set{Peers: p})), false
				return nil
			},
			Stale:   func(context.Context) bool { mu.Lock(); defer mu.Unlock(); return stale },
			Changed: func() { changes++ }}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.Run(ctx) }()
		step := func(want string, n int) {
			t.Helper()
			time.Sleep(time.Second)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if names(w.Set()) != want || len(pushes) != n || (n > 0 && pushes[n-1] != want) {
				t.Errorf("set %q, pushes %q; want %q after %d pushes", names(w.Set()), pushes, want, n)
			}
		}
		step("a", 0)
		mu.Lock()
		down = false
		mu.Unlock()
		step("a", 1)
		put(t, dir, "b.pem", b)
		step("a b", 2)
		mu.Lock()
		stale = true // tunneld restarted
		mu.Unlock()
		step("a b", 3)
		if err := os.Remove(filepath.Join(dir, "a.pem")); err != nil {
			t.Fatal(err)
		}
		step("b", 4)
		if p, ok := w.Lookup("sip:b@handsets.example"); !ok || p.Name != "b" {
			t.Errorf("b is %+v", p)
		}
		if _, ok := w.Lookup("sip:a@handsets.example"); ok {
			t.Error("a is still known")
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		if changes != 3 {
			t.Errorf("%d changes, want 3", changes)
		}
		if n := strings.Count(log.String(), "gateway.peer-file subject=bad.pem"); n != 1 {
			t.Errorf("the bad file is in the journal %d times:\n%s", n, log.String())
		}
		if n := strings.Count(log.String(), "outcome=failure"); n != 1 {
			t.Errorf("the missing tunnel is in the journal %d times", n)
		}
	})
}
