package hostile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"rempart/board/scenario"
	"rempart/board/scenario/attack"
	"rempart/internal/proof"
)

// TestMain makes the test binary the sender too.
func TestMain(m *testing.M) {
	if os.Getenv("HOSTILE_SENDER") == "" {
		os.Exit(m.Run())
	}
	j, err := attack.Parse(os.Args[1:])
	if err == nil {
		_, err = attack.Run(context.Background(), j, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// short are the cells that `make test` tries in the guest: each stopper, each privilege, each family.
func short() []Cell {
	var some []Cell
	for _, s := range []struct {
		kind attack.Kind
		p    Privilege
		f    attack.Family
	}{
		{attack.OwnWireGuard, Admin, attack.IPv6}, {attack.FOURedirect, Root, attack.IPv4}, {attack.Pedit, Admin, attack.IPv4},
		{attack.PktGen, Root, attack.IPv6}, {attack.Moved, Raw, attack.IPv4}, {attack.Detached, Root, attack.IPv4}, {attack.Joined, Root, attack.IPv6},
		{attack.Stolen, Root, attack.IPv4}, {attack.Stolen, Raw, attack.IPv4}, {attack.XDP, Raw, attack.IPv6},
		{attack.PacketBypass, Root, attack.IPv4},
	} {
		for _, c := range Named(s.kind, s.p) {
			if c.Family == s.f {
				some = append(some, c)
			}
		}
	}
	return some
}

// TestAttackTable is the table itself, in the guest (REMPART_HOSTILE=all: all of it, some ten minutes).
func TestAttackTable(t *testing.T) {
	proof.SFR(t, "FDP_IFC_EXT.1", "the attempts under fewer layers in the same test")
	proof.NeedRoot(t)
	if os.Getenv("REMPART_IN_GUEST") == "" {
		// Not a tool that setup could install: board/guest runs this test where it can.
		t.Skip("the table is for the guest's kernel")
	}
	proof.Need(t, "ip", "tc", "nft", "wg", "bash", "modprobe")
	o := Options{Cgroup: "/sys/fs/cgroup", Sender: []string{os.Args[0]}, Env: []string{"HOSTILE_SENDER=1"}, Cells: short()}
	if os.Getenv("REMPART_HOSTILE") == "all" {
		o.Cells = nil
	}
	o.Done = func(r Row) {
		if !r.Held {
			t.Errorf("%s: %s", r.Name, r.Why)
		}
		t.Log(r.Line())
	}
	rows, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if want := len(o.Cells); want > 0 && len(rows) != want {
		t.Errorf("%d rows, want %d", len(rows), want)
	}
	if left, err := os.ReadDir("/run"); err != nil || slices.ContainsFunc(left, func(d os.DirEntry) bool { return strings.HasPrefix(d.Name(), "rempart-hostile-") }) {
		t.Errorf("left in /run: %v, %v", left, err)
	}
}

// TestTheTableIsWhole: every kind that rewires is in it, each at every privilege and family, once.
func TestTheTableIsWhole(t *testing.T) {
	seen := map[Cell]int{}
	kinds := map[attack.Kind]bool{}
	for _, c := range Cells() {
		if len(Named(c.Kind, c.Privilege)) != 2 {
			t.Errorf("%s with %s is there %d times", c.Kind, c.Privilege, len(Named(c.Kind, c.Privilege)))
		}
		seen[c]++
		kinds[c.Kind] = true
		sets, leaks := c.layers()
		if len(sets) != len(leaks) || sets[len(sets)-1] != All || leaks[len(leaks)-1] {
			t.Errorf("%+v is tried under %v, leaks %v", c, sets, leaks)
		}
		if shown := slices.Contains(leaks, true); shown != (c.Stopper != Kernel && c.Stopper != NoWay) {
			t.Errorf("%+v has no twin that must leak", c)
		}
		if got, err := attack.Parse((&runner{}).job(c.Kind, c.Family).Args()); err != nil || got.Kind != c.Kind {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for c, n := range seen {
		if n != 1 {
			t.Errorf("%+v is there %d times", c, n)
		}
	}
	for _, k := range attack.RewiringKinds() {
		if !kinds[k] {
			t.Errorf("%s is in no row", k)
		}
	}
	if n := len(short()); n != 11 {
		t.Errorf("the short table has %d cells: one that it names is not in the table", n)
	}
}

func TestARowIsHeldOnlyIfEachOutcomeIsAsItMust(t *testing.T) {
	leaks := Outcome{Layers: None, Verdict: scenario.Leaked, want: true}
	holds := Outcome{Layers: All, Verdict: scenario.Refused, Detail: "EPERM"}
	for name, c := range map[string]struct {
		row  Row
		want string
	}{
		"held":                  {Row{Stopper: ByGate, Outcomes: []Outcome{leaks, holds}}, ""},
		"a leak":                {Row{Stopper: ByGate, Outcomes: []Outcome{leaks, {Layers: All, Verdict: scenario.Leaked}}}, "it leaked under the guard too"},
		"a twin that holds":     {Row{Stopper: ByGate, Outcomes: []Outcome{{Layers: None, Verdict: scenario.Dropped, want: true}, holds}}, "where nothing stops it"},
		"a broken attempt":      {Row{Stopper: ByGate, Outcomes: []Outcome{leaks, {Layers: All, Verdict: scenario.Broken}}}, "could not be made"},
		"no kernel refusal":     {Row{Stopper: Kernel, Outcomes: []Outcome{{Layers: None, Verdict: scenario.Dropped}, holds}}, "the kernel did not refuse"},
		"refused by the kernel": {Row{Stopper: Kernel, Outcomes: []Outcome{{Layers: None, Verdict: scenario.Refused}, holds}}, ""},
	} {
		if got := c.row.judge(); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		text, err := json.Marshal(c.row)
		if err != nil || !json.Valid(text) || !strings.Contains(c.row.Line(), string(c.row.Outcomes[0].Verdict)) {
			t.Errorf("%s: %s, %v, %q", name, text, err, c.row.Line())
		}
	}
}

// TestRunLeavesNothingWhereItCannotBegin: on a kernel without LSM programs, or with a sender that is not there.
func TestRunLeavesNothingWhereItCannotBegin(t *testing.T) {
	proof.NeedRoot(t)
	before, err := os.ReadDir("/run")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), Options{Cgroup: t.TempDir(), Sender: []string{"/no/such/sender"}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a sender: %v", err)
	}
	after, err := os.ReadDir("/run")
	if err != nil || len(after) != len(before) {
		t.Errorf("%d entries in /run, %d before, %v", len(after), len(before), err)
	}
}
