package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// scene is one subtest that shares its world with others.
type scene struct {
	name string
	test func(*testing.T, *world)
}

func play(t *testing.T, w *world, scenes ...scene) {
	for _, s := range scenes {
		t.Run(s.name, func(t *testing.T) { s.test(t, w) })
	}
}

// TestMany is about several handsets.
func TestMany(t *testing.T) {
	programs := bin(t)
	t.Parallel()
	w := plan(t, "e2emany", t.TempDir(), programs)
	w.up(t, "--handsets", "3")
	w.awaitReady(t, "a", "b", "c", "gateway")
	play(t, w,
		scene{"calls", calls},
		scene{"secret state", secretState},
		scene{"another format", otherFormat},
		scene{"desk", desk},
		scene{"side by side", sideBySide},
		scene{"killed daemons", killedDaemons},
		scene{"not registered", notRegistered},
		scene{"gateway gone", gatewayGone},
	)
}

// TestPair is about one handset, and another that can be called.
func TestPair(t *testing.T) {
	programs := bin(t)
	t.Parallel()
	w := plan(t, "e2epair", t.TempDir(), programs)
	w.up(t)
	w.awaitReady(t, "a", "b", "gateway")
	play(t, w,
		scene{"measured", measuredAll},
		scene{"desk unaffected", unaffected},
		scene{"not one room", notOneRoom},
		scene{"bad policies", badPolicies},
		scene{"up says why", upSaysWhy},
		scene{"keystore lost", keystoreLost},
		scene{"hung egressd", hungEgressd},
		scene{"watcher", watcher},
		scene{"modem", modem},
		scene{"doctor", doctors},
		scene{"wrong PIN", wrongPIN},
		scene{"cut around unlocks", cutAroundUnlocks},
	)
}

// sideBySide brings a second world up, with the same names and addresses, and
// calls in both at once.
func sideBySide(t *testing.T, w *world) {
	other := plan(t, w.name+"b", t.TempDir(), w.bin)
	other.up(t)
	other.awaitReady(t, "a", "b")
	var wait sync.WaitGroup
	for _, one := range []*world{w, other} {
		wait.Go(func() { one.talks(t, "b", "a") })
	}
	wait.Wait()
	strangers(t, w, other)
	other.down(t)
	w.talks(t, "a", "b")
}

// strangers brings certificates of another lab's authority to a handset and to
// the gateway, which take neither; gateway/call_test.go has the peers in a call.
func strangers(t *testing.T, w, other *world) {
	t.Helper()
	foreign := read(t, filepath.Join(other.state, "certificates", "b.pem"))
	if s := w.phone(t, "b", string(foreign), "enrol", "--certificate", "-"); s.code == 0 || !strings.HasPrefix(s.err, "rempart: cannot take the certificate: ") {
		t.Errorf("a certificate of another authority: %s", s)
	} else {
		t.Logf("a certificate of another authority: %s", s.err)
	}
	file := filepath.Join(w.machine(t, "gateway").Paths.State, "gatewayd", "peers", "stranger.pem")
	if err := os.WriteFile(file, foreign, 0o644); err != nil {
		t.Fatal(err)
	}
	var s said
	until(t, 10*time.Second, func() bool {
		s = w.phone(t, "gateway", "", "status")
		return strings.Contains(s.out, "stranger.pem was passed over: certificate is not of our device authority")
	}, func() string { return "the gateway has not passed a stranger over: " + s.String() })
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
}
