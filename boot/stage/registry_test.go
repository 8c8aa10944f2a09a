package stage

import (
	"os"
	"strings"
	"testing"
)

// TestTheRegistryTellsTheSame keeps docs/measurement-registry.md, which an
// evaluator reads, in step with the table, which the code reads.
func TestTheRegistryTellsTheSame(t *testing.T) {
	text, err := os.ReadFile("../../docs/measurement-registry.md")
	if err != nil {
		t.Fatal(err)
	}
	rest := string(text)
	for _, e := range table() {
		row := "| `" + e.Name + "` |"
		at := strings.Index(rest, row)
		if at < 0 {
			t.Fatalf("the registry has no row %q, or has it in another order", row)
		}
		rest = rest[at:]
		line, _, _ := strings.Cut(rest, "\n")
		if e.Kind != Root && !strings.Contains(line, "`"+e.Path+"`") {
			t.Errorf("the registry's row of %s does not name %s: %s", e.Name, e.Path, line)
		}
		role := "both"
		if e.roles != nil {
			role = e.roles[0]
		}
		if e.PCR == PCRStages && !strings.Contains(line, "| "+role+" |") {
			t.Errorf("the registry's row of %s does not say %s: %s", e.Name, role, line)
		}
	}
}
