package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"rempart/board/netns"
	"rempart/internal/proof"
	"rempart/internal/run"
	"rempart/tools/lab/bringup"
)

func TestMain(m *testing.M) {
	netns.Stage()
	os.Exit(m.Run())
}

// binaries returns a folder with the daemons: that of REMPART_BIN, or one that
// is built.
func binaries(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("REMPART_BIN"); dir != "" {
		return dir
	}
	proof.Need(t, "go")
	dir := t.TempDir()
	build := func(to string, packages ...string) {
		cmd := exec.Command("go", append([]string{"build", "-trimpath", "-o", to}, packages...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("cannot build %v: %v: %s", packages, err, out)
		}
	}
	var daemons []string
	for _, d := range []string{"init", "egressd", "watchd", "keyd", "tunneld", "voiced", "gatewayd", "rempart"} {
		daemons = append(daemons, "../../daemons/"+d)
	}
	build(dir+"/", daemons...)
	build(filepath.Join(dir, "rempart-policy"), "../policy")
	return dir
}

// lab runs one command line and returns what it printed.
func lab(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out, errs bytes.Buffer
	err := dispatch(t.Context(), args, streams{strings.NewReader(""), &out, &errs})
	return out.String(), err
}

// needs skips where no world can run, and takes world down with the test.
func needs(t *testing.T, world string) {
	t.Helper()
	proof.NeedRoot(t)
	proof.Need(t, "swtpm", "swtpm_setup", "tcpdump")
	t.Cleanup(func() {
		if err := netns.Down(context.Background(), world); err != nil {
			t.Error(err)
		}
	})
}

func TestAWorldFromUpToDown(t *testing.T) {
	const world = "labtest"
	needs(t, world)
	bin, state := binaries(t), t.TempDir()
	up := []string{"up", "--world", world, "--state", state, "--bin", bin, "--handsets", "2"}
	out, err := lab(t, up...)
	if err != nil {
		t.Fatalf("%v\n%s\nhint: %s", err, out, run.HintOf(err))
	}
	for _, want := range []string{"gateway: enrolled as sip:handsets.example", "a: enrolled as sip:a@handsets.example", "gateway: told of b", "a: tunnel up", "b: tunnel up", "world labtest is up"} {
		if !strings.Contains(out, want) {
			t.Errorf("up does not say %q:\n%s", want, out)
		}
	}
	if !regexp.MustCompile(`(?m)^ +\d+\.\d{3} s  `).MatchString(out) {
		t.Errorf("up tells no times:\n%s", out)
	}
	if _, err := lab(t, up...); err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(run.HintOf(err), "down --world labtest") {
		t.Errorf("up twice: %v, hint %q", err, run.HintOf(err))
	}
	out, err = lab(t, "status", "--world", world, "--json")
	if err != nil {
		t.Fatal(err)
	}
	var status worldStatus
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		t.Fatal(err)
	}
	for _, m := range status.Machines {
		if m.State != netns.On || m.Keystore == "" || m.Tunnel == nil || m.Role == "handset" && m.Tunnel.State != "up" || len(m.Inner) != 2 {
			t.Errorf("status of %s: %+v", m.Name, m)
		}
		if _, err := os.Stat(m.Paths.Black); err != nil {
			t.Errorf("the path of %s's black network: %v", m.Name, err)
		}
	}
	if len(status.Machines) != 3 {
		t.Errorf("%d machines, want 3", len(status.Machines))
	}
	if out, err = lab(t, "status", "--world", world); err != nil || strings.Count(out, "\n") != 4 {
		t.Errorf("status: %v\n%s", err, out)
	}
	captureTheTunnel(t, world)
	certificate, err := os.ReadFile(filepath.Join(state, "certificates", "a.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // idempotent
		if _, err := lab(t, "down", "--world", world); err != nil {
			t.Fatal(err)
		}
	}
	// Later: the same handsets, nothing made anew.
	out, err = lab(t, up...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(out, "enrolled") || strings.Contains(out, "made") {
		t.Errorf("the second time made something anew:\n%s", out)
	}
	again, err := os.ReadFile(filepath.Join(state, "certificates", "a.pem"))
	if err != nil || !bytes.Equal(again, certificate) {
		t.Errorf("a has another certificate (%v)", err)
	}
	if _, err := lab(t, "down", "--world", world); err != nil {
		t.Error(err)
	}
	anotherPIN(t, append(up, "--pin", "000000"), world)
}

// captureTheTunnel captures while a talks through its tunnel.
func captureTheTunnel(t *testing.T, world string) {
	t.Helper()
	w, err := netns.Open(world)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "x.pcapng")
	var wait sync.WaitGroup
	var out string
	var cerr error
	wait.Go(func() { out, cerr = lab(t, "capture", "--world", world, "internet", "-o", file, "--seconds", "2") })
	time.Sleep(time.Second)
	cmd, err := w.Command(t.Context(), netns.Where{Machine: "a", Colour: "red", App: "notes"}, "/usr/bin/python3", "-c",
		`import socket; s=socket.create_connection(("10.77.0.1",80),5); s.send(b"GET / HTTP/1.0\r\n\r\n"); print(s.recv(100))`)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("through the tunnel: %v: %s", err, got)
	}
	wait.Wait()
	if cerr != nil || !strings.Contains(out, "radio-a ") || !strings.Contains(out, "0 dropped by the kernel") {
		t.Errorf("capture: %v\n%s", cerr, out)
	}
	if regexp.MustCompile(`radio-a +0 frames`).MatchString(out) {
		t.Errorf("a sent nothing:\n%s", out)
	}
}

// anotherPIN brings the world up with a wrong PIN: it says so, and nothing
// stays.
func anotherPIN(t *testing.T, up []string, world string) {
	t.Helper()
	_, err := lab(t, up...)
	if err == nil || !strings.Contains(err.Error(), "wrong PIN") || run.HintOf(err) == "" {
		t.Errorf("a wrong PIN: %v, hint %q", err, run.HintOf(err))
	}
	if _, err := netns.Open(world); err == nil {
		t.Error("after a failed up the world runs")
	}
}

func TestAnInterruptedUpLeavesNothing(t *testing.T) {
	const world = "labstop"
	needs(t, world)
	bin := binaries(t)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	var lines []string
	err := up(ctx, world, bringup.Options{State: t.TempDir(), Bin: bin, Handsets: 1}, func(line string) {
		lines = append(lines, line)
		if strings.Contains(line, "init started") {
			interrupt()
		}
	})
	if err == nil || !strings.Contains(err.Error(), "interrupted") || len(lines) == 0 {
		t.Errorf("an interrupted up: %v after %q", err, lines)
	}
	if worlds, err := netns.Worlds(); err != nil || slices.Contains(worlds, world) {
		t.Errorf("worlds left: %v, %v", worlds, err)
	}
}

func TestCommandLinesThatMakeNoSense(t *testing.T) {
	for _, line := range []string{
		"nonsense", "up now", "up --handsets many", "down here", "down --nothing", "status me", "exec", "exec a", "exec a --",
		"exec a b -- true", "exec a/green -- true", "phone", "phone a", "capture", "capture internet", "capture red -o /tmp/x",
		"capture internet -o x --seconds -1", "up --help", "exec --world", "up --handsets 27 --state /nowhere/at/all",
	} {
		out, err := lab(t, strings.Fields(line)...)
		if err == nil || run.HintOf(err) == "" || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: error %v (hint %q), want one line and a hint; printed %q", line, err, run.HintOf(err), out)
		}
	}
}

func TestCommandsOnAWorldThatIsNotThere(t *testing.T) {
	for _, line := range []string{"status", "exec a -- true", "phone a status", "capture internet -o /tmp/x"} {
		args := strings.Fields(line)
		args = append([]string{args[0], "--world", "nowhere"}, args[1:]...)
		if _, err := lab(t, args...); err == nil || run.HintOf(err) == "" {
			t.Errorf("%q: error %v, hint %q", line, err, run.HintOf(err))
		}
	}
}

func TestHelpNamesEveryCommand(t *testing.T) {
	out, err := lab(t, "help")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands() {
		if c.hidden {
			if strings.Contains(out, "\n  "+c.name+" ") {
				t.Errorf("help shows hidden %s", c.name)
			}
			continue
		}
		if !strings.Contains(out, c.name+" "+c.usage) || c.what == "" {
			t.Errorf("help lacks %s:\n%s", c.name, out)
		}
	}
}

func TestWordsAndFlagsMix(t *testing.T) {
	c := command{name: "x"}
	f, world := flagSet(c)
	app := f.String("app", "", "")
	words, rest, err := parse(c, f, []string{"a/red", "--app", "notes", "b", "--world", "w", "--", "ls", "--", "-l"})
	if err != nil || !slices.Equal(words, []string{"a/red", "b"}) || !slices.Equal(rest, []string{"ls", "--", "-l"}) || *app != "notes" || *world != "w" {
		t.Errorf("words %q rest %q app %q world %q, %v", words, rest, *app, *world, err)
	}
}
