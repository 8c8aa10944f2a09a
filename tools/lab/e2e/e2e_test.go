// Package e2e_test proves how the whole behaves when things go wrong: real
// worlds, made and watched by the rempart-lab of REMPART_BIN as a person would,
// with the exact words that the person sees. It has no code but tests.
//
// Worlds take seconds, so tests share them where one does not spoil another's
// evidence: each subtest leaves its world as it found it, tunnels up, or says
// that it does not.
package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rempart/board/netns"
	"rempart/boot/report"
	"rempart/internal/proof"
	"rempart/keystore/client"
	"rempart/voice/record"
)

func TestMain(m *testing.M) {
	netns.Stage() // the board's processes that this program starts are this program
	flag.Parse()
	// A world waits more than it computes: three at once even on one core.
	if err := flag.Set("test.parallel", "3"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

const (
	pin   = "271828"
	wrong = "314159"
)

// bin returns the folder of the programs under test.
func bin(t testing.TB) string {
	t.Helper()
	proof.NeedRoot(t)
	proof.Need(t, "swtpm", "swtpm_setup", "tcpdump", "setpriv")
	dir := os.Getenv("REMPART_BIN")
	if dir == "" {
		proof.Missing(t, "REMPART_BIN (make scenarios sets it)")
	}
	return dir
}

// said is what a person saw of one command.
type said struct {
	out, err string
	code     int
}

func (s said) String() string {
	return fmt.Sprintf("exit code %d\n--- out\n%s--- err\n%s", s.code, s.out, s.err)
}

// says fails the test unless the command failed with exactly that error line,
// and a hint line that starts with hint.
func (s said) says(t *testing.T, line, hint string) {
	t.Helper()
	if s.code == 0 || !strings.HasPrefix(s.err, line+"\nhint: "+hint) || strings.Count(s.err, "\n") != 2 {
		t.Errorf("want the line\n%s\nand the hint\n%s\ngot %s", line, hint, s)
	}
}

// command runs a command for at most a minute and a half.
func command(t testing.TB, stdin, name string, args ...string) said {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	if _, exit := errors.AsType[*exec.ExitError](err); err != nil && !exit {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return said{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// world is a world under test.
type world struct {
	name, state, bin string
	*netns.World
}

// lab runs rempart-lab on the world.
func (w *world) lab(t testing.TB, verb string, args ...string) said {
	t.Helper()
	return command(t, "", filepath.Join(w.bin, "rempart-lab"), append([]string{verb, "--world", w.name}, args...)...)
}

// plan returns a world that does not run yet, and takes it down in the end.
func plan(t *testing.T, name, state, bin string) *world {
	t.Helper()
	w := &world{name: name, state: state, bin: bin}
	t.Cleanup(func() {
		if err := netns.Down(context.Background(), name); err != nil {
			t.Errorf("cannot take world %s down: %v", name, err)
		}
	})
	return w
}

// up brings the world up, which must work.
func (w *world) up(t *testing.T, args ...string) {
	t.Helper()
	if s := w.tryUp(t, args...); s.code != 0 {
		t.Fatalf("up of %s: %s", w.name, s)
	}
	w.open(t)
}

func (w *world) tryUp(t testing.TB, args ...string) said {
	t.Helper()
	return w.lab(t, "up", append([]string{"--state", w.state}, args...)...)
}

// open connects to the world that runs.
func (w *world) open(t *testing.T) {
	t.Helper()
	var err error
	if w.World, err = netns.Open(w.name); err != nil {
		t.Fatal(err)
	}
}

func (w *world) down(t *testing.T) {
	t.Helper()
	if s := w.lab(t, "down"); s.code != 0 {
		t.Fatalf("down of %s: %s", w.name, s)
	}
}

// phone runs rempart on a machine as its user.
func (w *world) phone(t testing.TB, machine, stdin string, args ...string) said {
	t.Helper()
	return command(t, stdin, filepath.Join(w.bin, "rempart-lab"), append([]string{"phone", "--world", w.name, machine}, args...)...)
}

func (w *world) machine(t testing.TB, name string) netns.Machine {
	t.Helper()
	m, err := w.Machine(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// seen is `rempart status --json`.
type seen struct {
	Boot     *report.Report `json:"boot"`
	Keystore client.Status  `json:"keystore"`
	Tunnel   struct {
		State     string    `json:"state"`
		Since     time.Time `json:"since"`
		Reason    string    `json:"reason"`
		Retries   int       `json:"retries"`
		NextRetry time.Time `json:"next_retry"`
	} `json:"tunnel"`
	Gate *struct {
		Admitted string `json:"admitted"`
	} `json:"gate"`
	Telephone *record.Status    `json:"telephone"`
	Errors    map[string]string `json:"errors"`
}

// look asks a machine for its status; the zero value where nobody answers.
func (w *world) look(t testing.TB, name string) seen {
	t.Helper()
	var s seen
	out, err := w.Phone(context.Background(), name, nil, "status", "--json")
	if jerr := json.Unmarshal(out, &s); jerr != nil && err == nil {
		t.Errorf("cannot read the status of %s: %v", name, jerr)
	}
	return s
}

// ready tells whether a machine is as after up.
func ready(s seen) bool {
	if s.Boot == nil || s.Boot.Closed || s.Boot.ReadyNS == 0 || len(s.Errors) != 0 {
		return false
	}
	if s.Telephone == nil {
		return s.Tunnel.State == "listening"
	}
	return s.Tunnel.State == "up" && s.Telephone.Registration.State == "registered"
}

// await waits until a machine's status is good and returns it.
func (w *world) await(t testing.TB, name, what string, limit time.Duration, good func(seen) bool) seen {
	t.Helper()
	var last seen
	until(t, limit, func() bool { last = w.look(t, name); return good(last) }, func() string {
		text, _ := json.Marshal(last)
		return fmt.Sprintf("%s is not %s: %s\n%s", name, what, text, w.console(t, name))
	})
	return last
}

func (w *world) awaitReady(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		w.await(t, name, "ready", 20*time.Second, ready)
	}
}

// until waits for ok, or ends the test with why.
func until(t testing.TB, limit time.Duration, ok func() bool, why func() string) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %s: %s", limit, why())
		}
	}
}

// unlock gives the right PIN.
func (w *world) unlock(t testing.TB, name string) {
	t.Helper()
	if s := w.phone(t, name, pin+"\n", "unlock"); s.code != 0 {
		t.Fatalf("unlock of %s: %s", name, s)
	}
}

// console returns what a machine's console shows of this boot.
func (w *world) console(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(w.state, "machines", name, "console.log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// call places a call and returns its record; it must have come to an end.
func (w *world) call(t testing.TB, from, to string) (record.Record, said) {
	t.Helper()
	s := w.phone(t, from, "", "call", to, "--seconds", "0.6", "--json")
	var r record.Record
	if err := json.Unmarshal([]byte(s.out), &r); err != nil {
		t.Errorf("call of %s to %s: %v: %s", from, to, err, s)
	}
	return r, s
}

// talks calls, which must work, and returns the record.
func (w *world) talks(t testing.TB, from, to string) record.Record {
	t.Helper()
	r, s := w.call(t, from, to)
	if s.code != 0 || r.State != "ended" || r.SAS == "" || r.Level != "restricted" || r.FirstAudioNS == 0 {
		t.Errorf("call of %s to %s in %s: %s", from, to, w.name, s)
	}
	return r
}
