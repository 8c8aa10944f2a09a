package leak

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"rempart/board/netns"
	"rempart/board/scenario"
	"rempart/internal/proof"
	"rempart/tools/lab/bringup"
)

func TestMain(m *testing.M) {
	netns.Stage()
	os.Exit(m.Run())
}

// bin is the folder of the programs under test.
func bin(t *testing.T) string {
	t.Helper()
	proof.NeedRoot(t)
	proof.Need(t, "swtpm", "swtpm_setup", "tcpdump", "tc", "nsenter")
	dir := os.Getenv("REMPART_BIN")
	if dir == "" {
		proof.Missing(t, "REMPART_BIN, the folder of the built programs (run make scenarios)")
	}
	return dir
}

func worldUp(t *testing.T, name string) *netns.World {
	t.Helper()
	dir := bin(t)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	state := t.TempDir()
	w, err := netns.Start(ctx, name, state)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := netns.Down(ctx, name); err != nil {
			t.Error(err)
		}
	})
	if err := bringup.Up(ctx, w, bringup.Options{State: state, Handsets: 2, Bin: dir}, func(s string) { t.Log(s) }); err != nil {
		console, _ := os.ReadFile(filepath.Join(state, "machines", "a", "console.log"))
		t.Fatalf("%v\n%s", err, console)
	}
	return w
}

// TestNothingLeavesTheHandset is the promise: every row held, and its twin leaked.
func TestNothingLeavesTheHandset(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "each row's own twin in the report")
	w := worldUp(t, "leaktest")
	t.Setenv("TMPDIR", t.TempDir())
	report, err := Test(t.Context(), Options{World: w, Machine: "A", Bin: bin(t), Log: func(s string) { t.Log(s) }, Done: func(r scenario.RowResult) {
		t.Logf("%-8s %-62s %s (%s); twin %s (%s)", r.State, r.Name, r.Verdict, r.Detail, r.Twin.Verdict, r.Twin.Detail)
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := report.Err(); err != nil {
		t.Errorf("the promise does not hold:\n%v", err)
	}
	for _, s := range report.Outside.Strange {
		t.Logf("strange: %+v", s)
	}
	// The rows that the first call names must be among those that ran.
	for _, want := range []string{"UDP from red, IPv4", "UDP from black, IPv6", "TCP from red", "ICMP from black", "DNS to an outside resolver", "SO_BINDTODEVICE",
		"AF_PACKET on the radio from black, IPv4", "multicast", "raw IP", "the gateway's address on another port", "a new device in init's namespace",
		"kill -9 of egressd", "kill -9 of keyd", "kill -9 of tunneld", "kill -9 of voiced", "restart of the whole handset", "kill -9 of init"} {
		if !slices.ContainsFunc(report.Rows, func(r scenario.RowResult) bool { return strings.Contains(r.Name, want) }) {
			t.Errorf("no row %q was run", want)
		}
	}
	if len(report.Rows) < 57 {
		t.Errorf("%d rows, some have vanished", len(report.Rows))
	}
	if report.Outside.Outside != 0 || report.Outside.MarkersSeen != 0 {
		t.Errorf("outside saw %d strange frames and %d markers", report.Outside.Outside, report.Outside.MarkersSeen)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if names, err := netns.Worlds(); err != nil || slices.Contains(names, "leaktest-twin") {
		t.Errorf("worlds left: %v, %v", names, err)
	}
}

func TestRefusals(t *testing.T) {
	proof.NeedRoot(t)
	proof.Need(t, "swtpm", "swtpm_setup", "tcpdump")
	w, err := netns.Start(t.Context(), "leakrefuse", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netns.Down(context.Background(), "leakrefuse"); err != nil {
			t.Error(err)
		}
	}()
	if _, err := Test(t.Context(), Options{World: w, Machine: "a"}); err == nil || !strings.Contains(err.Error(), "no handset of world leakrefuse") {
		t.Errorf("a machine that is not there: %v", err)
	}
}

func TestSiteIsOfTheWorld(t *testing.T) {
	status := &netns.Status{World: "x"}
	for _, m := range []struct {
		name, role string
		number     int
	}{{"gateway", "gateway", 1}, {"a", "handset", 11}, {"b", "handset", 12}} {
		status.Machines = append(status.Machines, netns.Machine{Name: m.name, Role: m.role, Number: m.number, Radio: netns.RadioOf(m.name, m.number)})
	}
	a, _ := status.Machine("a")
	s := siteOf(status, a)
	if s.Radio != "wwan0" || s.Source4.String() != "203.0.113.11" || s.Gateway6.String() != "2001:db8:113::1" || s.Inner4.String() != "10.77.0.1" || len(s.NextHop) != 6 {
		t.Errorf("site %+v", s)
	}
	if !s.Host4.IsValid() || !s.Host6.IsValid() || !s.Resolver4.IsValid() || s.Host4 == s.Resolver4 {
		t.Errorf("hosts %+v", s)
	}
	if len(s.Rules.Handsets) != 4 || len(s.Rules.Classes) != 2 || !s.Rules.Classes[0].WireGuard {
		t.Errorf("rules %+v", s.Rules)
	}
}
