package stage

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"rempart/internal/proof"
)

func names(stages []Stage) string {
	var n []string
	for _, s := range stages {
		n = append(n, s.Name)
	}
	return strings.Join(n, " ")
}

// TestOrder pins the order: another order is another PCR 13 and opens nothing
// on handsets in the field.
func TestOrder(t *testing.T) {
	proof.SFR(t, "FPT_TST_EXT.1", "")
	if got, want := names(Firmware()), "init root"; got != want {
		t.Errorf("firmware measures %q, want %q", got, want)
	}
	if got, want := names(Early()), "egressd policy"; got != want {
		t.Errorf("before the role is known: %q, want %q", got, want)
	}
	for role, want := range map[string]string{
		Handset: "egressd policy watchd keyd linkd tunneld voiced rempart",
		Gateway: "egressd policy watchd keyd tunneld gatewayd rempart",
	} {
		stages, err := For(role)
		if err != nil || names(stages) != want {
			t.Errorf("%s measures %q, %v; want %q", role, names(stages), err, want)
		}
		if !reflect.DeepEqual(stages[:len(Early())], Early()) {
			t.Errorf("%s does not begin with the early stages", role)
		}
	}
	for role, want := range map[string]string{
		Handset: "egressd watchd keyd linkd tunneld voiced", Gateway: "egressd watchd keyd tunneld gatewayd"} {
		daemons, err := Daemons(role)
		if err != nil || strings.Join(daemons, " ") != want {
			t.Errorf("%s starts %q, %v; want %q", role, daemons, err, want)
		}
	}
}

func TestUnknownRoleIsAnError(t *testing.T) {
	for _, role := range []string{"", "phone", "Handset"} {
		if stages, err := For(role); err == nil || stages != nil {
			t.Errorf("For(%q) = %v, %v", role, stages, err)
		}
		if daemons, err := Daemons(role); err == nil || daemons != nil {
			t.Errorf("Daemons(%q) = %v, %v", role, daemons, err)
		}
	}
}

func TestEachStageIsWhole(t *testing.T) {
	all := Firmware()
	for _, role := range []string{Handset, Gateway} {
		stages, err := For(role)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range stages {
			if s.PCR != PCRStages {
				t.Errorf("%s goes to PCR %d, want %d", s.Name, s.PCR, PCRStages)
			}
		}
		all = append(all, stages...)
	}
	paths := map[string]string{}
	for _, s := range all {
		if s.Name == "" || s.Path == "" || strings.HasPrefix(s.Path, "/") || strings.HasPrefix(s.Kind.String(), "kind ") {
			t.Errorf("stage %+v is not whole", s)
		}
		if s.Kind == Program && s.Path != "bin/"+s.Name {
			t.Errorf("program %s lies in %s", s.Name, s.Path)
		}
		if other, used := paths[s.Path]; used && other != s.Name {
			t.Errorf("%s and %s are the same file", other, s.Name)
		}
		paths[s.Path] = s.Name
	}
	if got := Kind(9).String(); got != "kind 9" {
		t.Errorf("Kind(9) is %q", got)
	}
}

// TestTheTableCannotBeChanged: callers get copies.
func TestTheTableCannotBeChanged(t *testing.T) {
	stages, _ := For(Handset)
	before := slices.Clone(stages)
	stages[0].Path = "bin/other"
	if again, _ := For(Handset); !reflect.DeepEqual(again, before) {
		t.Errorf("a caller changed the table to %v", again)
	}
}
