package bpf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"rempart/internal/proof"
)

// objects are the generated files: a missing one must not make the test pass.
var objects = []string{"floor_bpfel.go", "floor_bpfel.o", "gate_bpfel.go", "gate_bpfel.o", "closed_bpfel.go", "closed_bpfel.o", "guard_bpfel.go", "guard_bpfel.o",
	"calls_bpfel.go", "calls_bpfel.o", "level_bpfel.go", "level_bpfel.o", "depth_bpfel.go", "depth_bpfel.o"}

// TestGenerated makes the objects and their Go again and compares them with the
// committed ones, byte by byte. Only the pinned clang can show that, and a Debian
// later than 12 has none: there the test skips, in CI as well.
func TestGenerated(t *testing.T) {
	proof.Need(t, "go")
	for _, tool := range []string{"clang-14", "llvm-strip-14"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the objects are clang 14's: %v", err)
		}
	}
	// The directives run on a copy, inside the module so that bpf2go is found.
	dir, err := os.MkdirTemp(".", "testgen")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sources, err := filepath.Glob("c/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(sources, "gen.go") {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "generate", ".")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, f := range objects {
		want, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(dir, f))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what its source gives: run go generate ./internal/bpf", f)
		}
	}
}

// TestObjectsNameNoMachine: the objects carry no path of the machine that made them.
func TestObjectsNameNoMachine(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range objects {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(here)) || bytes.Contains(b, []byte("/usr/")) {
			t.Errorf("%s names a path of the machine", f)
		}
	}
}

// TestSpecs: what vpn/enforce and internal/sandbox/guard rely on by name.
func TestSpecs(t *testing.T) {
	gate, err := LoadGate()
	if err != nil {
		t.Fatal(err)
	}
	if m := gate.Maps[".rodata.policy"]; m == nil || m.ValueSize != 40+4096*32 || m.MaxEntries != 1 || m.Flags != 1<<7 {
		t.Errorf("policy %+v, want the length of egress.TableLen, read-only for programs", m)
	}
	if m := gate.Maps[".data.counters"]; m == nil || m.ValueSize != 64*2*32*8 || m.MaxEntries != 1 {
		t.Errorf("counters %+v, want 64 rows of both directions' 32", m)
	}
	if m := gate.Maps["fragments"]; m == nil || m.MaxEntries != 4096 || m.ValueSize != 72 {
		t.Errorf("fragments %+v", m)
	}
	// These three, where a frame is read, three of the link layer, three of the drop record.
	if len(gate.Maps) != 10 || len(gate.Programs) != 2 {
		t.Errorf("%d maps and %d programs: the tag covers no further ones", len(gate.Maps), len(gate.Programs))
	}
	closed, err := LoadClosed()
	if err != nil {
		t.Fatal(err)
	}
	// Counters and drop record: it has nothing that it could admit by.
	if len(closed.Maps) != 4 || len(closed.Programs) != 2 || closed.Maps[".data.counters"].ValueSize != gate.Maps[".data.counters"].ValueSize {
		t.Errorf("closed: %d maps and %d programs", len(closed.Maps), len(closed.Programs))
	}
	level, err := LoadLevel()
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]uint32{"drop_record": 1024, "drop_head": 1, "drop_state": 128} {
		if m := level.Maps[name]; m == nil || m.MaxEntries != size {
			t.Errorf("%s %+v, want %d entries", name, m, size)
		}
	}
	if m := level.Maps["level_rows"]; m == nil || m.KeySize != 8 || m.ValueSize != 24 || m.MaxEntries != 128 || m.Flags != 1<<7 {
		t.Errorf("level_rows %+v, want key 8, value 24, 128 entries, read-only for programs", m)
	}
	if m := level.Maps["level_nets"]; m == nil || m.KeySize != 28 || m.ValueSize != 8 || m.MaxEntries != 512 || m.Flags != 1<<7|1 {
		t.Errorf("level_nets %+v, want key 28, value 8, 512 entries, read-only for programs", m)
	}
	for _, name := range []string{"level_connect4", "level_connect6", "level_sendmsg4", "level_sendmsg6", "level_socket", "level_egress", "level_ingress"} {
		if level.Programs[name] == nil {
			t.Errorf("level has no %s", name)
		}
	}
	guard, err := LoadGuard()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"guard_socket", "guard_netlink", "guard_ioctl", "guard_ioctl_compat", "guard_bpf", "guard_inode", "guard_ptrace"} {
		if guard.Programs[name] == nil {
			t.Errorf("guard has no %s", name)
		}
	}
	calls, err := LoadCalls()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"calls_enter", "calls_exit", "calls_fork", "calls_inet", "calls_option", "calls_device"} {
		if calls.Programs[name] == nil {
			t.Errorf("calls has no %s", name)
		}
	}
	if m := calls.Maps["devices"]; m == nil || m.KeySize != 16 || m.MaxEntries != 64 || m.Flags&(1<<7) == 0 {
		t.Errorf("devices %+v, want key 16, 64 entries, read-only for programs", m)
	}
	floor, err := LoadFloor()
	if err != nil {
		t.Fatal(err)
	}
	if len(floor.Programs) != 1 || floor.Programs["rempart_floor"] == nil {
		t.Errorf("floor has %v", floor.Programs)
	}
}
