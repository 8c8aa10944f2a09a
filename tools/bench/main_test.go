package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"rempart/board/netns"
	"rempart/board/scenario/watch"
	"rempart/boot/manifest"
	"rempart/internal/proof"
	"rempart/internal/run"
)

func TestMain(m *testing.M) {
	plainStage()
	netns.Stage()
	os.Exit(m.Run())
}

func TestCommandLine(t *testing.T) {
	o, err := read(nil)
	if err != nil || !slices.Equal(o.only, []string{"boot", "call", "device", "gate", "idle", "send", "tcp"}) || o.boots != 20 || o.calls != 20 || o.pairs != 10 || o.offload ||
		!filepath.IsAbs(o.out) || !strings.HasSuffix(o.out, "out/bench") {
		t.Errorf("without flags: %+v, %v", o, err)
	}
	if o, err = read([]string{"-only", "tcp,boot", "-out", "/x", "-pairs", "3", "-offload"}); err != nil || len(o.only) != 2 || o.out != "/x" || o.pairs != 3 || !o.offload {
		t.Errorf("with flags: %+v, %v", o, err)
	}
	for _, bad := range [][]string{{"-only", "boat"}, {"-only", ""}, {"-boots", "0"}, {"-calls", "-1"}, {"-pairs", "0"}, {"-seconds", "0"}, {"-idle", "0s"}, {"boot"}, {"-no"}} {
		if _, err := read(bad); err == nil || !strings.Contains(run.HintOf(err), "-only boot,call,device,gate,idle,send,tcp") {
			t.Errorf("%v: %v, hint %q", bad, err, run.HintOf(err))
		}
	}
}

// TestClassesAreThePolicys: every address of a gateway with every service.
func TestClassesAreThePolicys(t *testing.T) {
	v4, v6 := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:113::1")
	p := &manifest.Policy{Gateways: []manifest.Gateway{{Addresses: []netip.Addr{v4, v6}, Services: []manifest.Service{
		{Protocol: "udp", Port: 51820, Purpose: "tunnel"}, {Protocol: "tcp", Port: 8443, Purpose: "attestation"}}}}}
	want := []watch.Class{
		{Name: "tunnel", Gateway: v4, Protocol: 17, Port: 51820, WireGuard: true}, {Name: "attestation", Gateway: v4, Protocol: 6, Port: 8443},
		{Name: "tunnel", Gateway: v6, Protocol: 17, Port: 51820, WireGuard: true}, {Name: "attestation", Gateway: v6, Protocol: 6, Port: 8443}}
	if got := classes(p); !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
	if _, err := watch.New(watch.Rules{Handsets: []netip.Addr{v4}, Classes: classes(p)}); err != nil {
		t.Error(err)
	}
}

// daemons returns a folder with the daemons: that of REMPART_BIN, or one that
// is built here.
func daemons(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("REMPART_BIN"); dir != "" {
		return dir
	}
	proof.Need(t, "go")
	dir := t.TempDir()
	for _, name := range []string{"init", "egressd", "watchd", "keyd", "linkd", "tunneld", "voiced", "gatewayd", "rempart"} {
		build(t, filepath.Join(dir, name), "../../daemons/"+name)
	}
	build(t, filepath.Join(dir, "rempart-policy"), "../policy")
	return dir
}

func build(t *testing.T, to, pkg string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-o", to, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestOneBootAndOneCall is the benchmark itself, in small. Whether a bound is
// kept on a busy machine is not the test's matter; that everything is measured
// is.
func TestOneBootAndOneCall(t *testing.T) {
	proof.NeedRoot(t)
	proof.Need(t, "swtpm", "swtpm_setup", "certtool", "tcpdump")
	if _, err := os.Stat(filepath.Join(recordings, "Front_Center.wav")); err != nil {
		proof.Missing(t, "recordings of alsa-utils (run make setup)")
	}
	out := t.TempDir()
	var table, progress bytes.Buffer
	world := fmt.Sprintf("benchtest%d", os.Getpid())
	err := bench(t.Context(), []string{"-only", "boot,call", "-boots", "1", "-calls", "1", "-bin", daemons(t), "-out", out, "-world", world}, &table, &progress)
	if err != nil && !errors.Is(err, errBroken) {
		t.Fatalf("%v\n%s", err, table.String())
	}
	t.Log(table.String())
	for name, figures := range map[string]int{"boot": 3, "call": 10} {
		var r result
		text, err := os.ReadFile(filepath.Join(out, name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &r); err != nil {
			t.Fatal(err)
		}
		if r.Error != "" || len(r.Figures) != figures || r.Air == nil || !r.Air.Ended {
			t.Errorf("%s: %q, %d figures", name, r.Error, len(r.Figures))
		}
		for _, f := range r.Figures {
			if len(f.Samples) == 0 && !strings.Contains(f.What, "no loss") {
				t.Errorf("%s: %s was not measured", name, f.What)
			}
		}
		if name == "boot" && (len(r.Breakdown) < 20 || r.Figures[0].P50 <= 0) {
			t.Errorf("the boot has %d parts and took %g ms", len(r.Breakdown), r.Figures[0].P50)
		}
		if _, err := os.Stat(filepath.Join(out, name+".pcapng")); err != nil {
			t.Error(err)
		}
	}
	worlds, err := netns.Worlds()
	if err != nil || slices.ContainsFunc(worlds, func(w string) bool { return strings.HasPrefix(w, world) }) {
		t.Errorf("worlds that are left: %v, %v", worlds, err)
	}
}

// TestAWorldThatDoesNotComeUpIsAResult: what went wrong is written, and the
// exit tells.
func TestAWorldThatDoesNotComeUpIsAResult(t *testing.T) {
	proof.NeedRoot(t)
	proof.Need(t, "swtpm", "swtpm_setup", "tcpdump")
	out := t.TempDir()
	var table, progress bytes.Buffer
	err := bench(t.Context(), []string{"-only", "boot", "-bin", t.TempDir(), "-out", out}, &table, &progress)
	if err == nil || !strings.Contains(err.Error(), "boot: cannot bring a world up") || run.HintOf(err) == "" {
		t.Errorf("without daemons: %v, hint %q", err, run.HintOf(err))
	}
	text, rerr := os.ReadFile(filepath.Join(out, "boot.json"))
	if rerr != nil || !strings.Contains(string(text), `"kept": false`) || !strings.Contains(table.String(), "did not end") {
		t.Errorf("%v, %s\n%s", rerr, text, table.String())
	}
}
