package report

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	r := &Report{StartedNS: 1, ReadyNS: 2, Role: "handset", Policy: &Policy{"lab", 3, "00"}, Guard: "in force",
		Steps:    []Step{{Name: "gate", StartNS: 1, EndNS: 2, Detail: "read back", Error: "x"}},
		Measured: []Measured{{"egressd", 13, "ab"}}, Devices: []Device{{Name: "wwan0", Index: 2, Up: true, Floor: true, InForce: true}},
		Daemons: []Daemon{{Name: "keyd", PID: 7, Running: true}}, Closed: true, Reason: "why"}
	b, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "status.json")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("read %+v, %v", got, err)
	}
	if d, ok := got.Daemon("keyd"); !ok || d.PID != 7 {
		t.Errorf("daemon %+v", d)
	}
	if _, ok := got.Daemon("none"); ok {
		t.Error("found a daemon that is not there")
	}
}

func TestReadRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := Read(filepath.Join(dir, "none")); err == nil {
		t.Error("no file, no error")
	}
	for name, data := range map[string]string{"garbage": "{", "oversized": `{"reason":"` + strings.Repeat("x", max) + `"}`} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
		if r, err := Read(path); err == nil || r != nil {
			t.Errorf("%s was read", name)
		}
	}
}
