package bringup

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"rempart/boot/manifest/load"
	"rempart/boot/stage"
	"rempart/internal/proof"
	"rempart/internal/run"
)

// bin returns a folder with rempart-policy and stand-ins for the daemons,
// which nothing here runs.
func bin(t *testing.T) string {
	t.Helper()
	proof.Need(t, "go")
	dir := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "rempart-policy"), "../../policy").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, role := range []string{stage.Handset, stage.Gateway} {
		names, err := programs(role)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func TestOptions(t *testing.T) {
	dir := bin(t)
	o, err := Options{State: "/s", Bin: dir}.Complete()
	if err != nil || o.Handsets != 2 || o.PIN != DefaultPIN || o.Timeout == 0 {
		t.Errorf("defaults are %+v, %v", o, err)
	}
	for what, bad := range map[string]Options{
		"too many":     {State: "/s", Bin: dir, Handsets: 27},
		"negative":     {State: "/s", Bin: dir, Handsets: -1},
		"no binaries":  {State: "/s", Bin: t.TempDir()},
		"no state":     {Bin: dir},
		"local state":  {Bin: dir, State: "s"},
		"no such file": {State: "/s", Bin: "/no/such"},
	} {
		if _, err := bad.Complete(); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
	if _, err := (Options{State: "/s", Bin: t.TempDir()}).Complete(); !strings.Contains(err.Error(), "has no init, egressd, watchd, keyd, linkd, tunneld, voiced, rempart, gatewayd, rempart-policy") || run.HintOf(err) == "" {
		t.Errorf("without binaries: %v", err)
	}
}

func TestNamesAndNumbers(t *testing.T) {
	all := Handsets(MaxHandsets)
	if all[0] != (Handset{"a", 11}) || all[25] != (Handset{"z", 36}) {
		t.Errorf("handsets are %v … %v", all[0], all[25])
	}
	if got := Inner(11); got[0].String() != "10.77.0.11" || got[1].String() != "fd77::11" {
		t.Errorf("inner addresses are %v", got)
	}
}

// TestImagesAreMadeOnceAndSignedAgainWhenTheyChange walks what later ups meet.
func TestImagesAreMadeOnceAndSignedAgainWhenTheyChange(t *testing.T) {
	o := Options{State: t.TempDir(), Bin: bin(t)}
	in, fresh, err := openIntegrator(t.Context(), o)
	if err != nil || !fresh {
		t.Fatal(fresh, err)
	}
	root := in.authority.Root()
	key := make([]byte, 32)
	key[0] = 9
	build := func(what string, wantChanged bool, tunnel []byte) (policy, approval string) {
		t.Helper()
		dir, changed, err := in.image(t.Context(), stage.Handset, tunnel)
		if err != nil {
			t.Fatal(err)
		}
		if changed != wantChanged {
			t.Errorf("%s: changed %v, want %v", what, changed, wantChanged)
		}
		p, _, err := load.Policy(filepath.Join(dir, "etc/rempart"))
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if p.Role != stage.Handset || p.Name != "lab-handset" || len(p.Apps) != 3 || p.Gateways[0].TunnelKey[0] != tunnel[0] {
			t.Errorf("%s: policy %+v", what, p)
		}
		read := func(name string) string {
			data, err := os.ReadFile(filepath.Join(dir, "etc/rempart", name))
			if err != nil {
				t.Fatal(err)
			}
			return string(data)
		}
		return read("policy"), read("approval")
	}
	p1, a1 := build("first", true, key)
	if p2, a2 := build("again", false, key); p1 != p2 || a1 != a2 {
		t.Error("what did not change was signed again")
	}
	if err := os.WriteFile(filepath.Join(o.Bin, "keyd"), []byte("another keyd"), 0o755); err != nil {
		t.Fatal(err)
	}
	if p3, a3 := build("another program", true, key); p3 != p1 || a3 == a1 {
		t.Error("another program needs another approval and the same policy")
	}
	key = slices.Clone(key)
	key[0] = 10
	if p4, _ := build("another gateway", true, key); p4 == p1 {
		t.Error("another gateway key needs another policy")
	}
	// The same keys and authority for ever.
	later, fresh, err := openIntegrator(t.Context(), o)
	if err != nil || fresh || !slices.Equal(later.authority.Root(), root) {
		t.Errorf("later: fresh %v, %v", fresh, err)
	}
	for _, private := range []string{"image", "policy", "authority"} {
		if st, err := os.Stat(in.key(private)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("key %s: %v, %v", private, st.Mode(), err)
		}
	}
}

func TestTheToolsOwnWordsAreShown(t *testing.T) {
	o := Options{State: t.TempDir(), Bin: bin(t)}
	in, _, err := openIntegrator(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.document(t.Context(), "satellite", nil); err == nil || !strings.Contains(err.Error(), "satellite") {
		t.Errorf("an unknown role: %v", err)
	}
	if err := os.Remove(filepath.Join(o.Bin, "tunneld")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := in.image(t.Context(), stage.Gateway, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a daemon: %v", err)
	}
}

func TestPhoneStatusReadsWhatRempartTells(t *testing.T) {
	var s PhoneStatus
	text := `{"role":"handset","keystore":{"state":"sealed","tries_left":8},"tunnel":{"state":"up","reason":"handshake complete"},"errors":{}}`
	if err := json.Unmarshal([]byte(text), &s); err != nil || s.Keystore.State != "sealed" || s.Tunnel.State != stateUp {
		t.Errorf("read as %+v, %v", s, err)
	}
}
