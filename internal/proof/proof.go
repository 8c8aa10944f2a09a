// Package proof is the one helper by which a test says what it shows and what it needs. Only tests may import it.
package proof

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// SFR records that the running test shows the requirement id (NIAP or CC identifier, for example "FDP_IFC_EXT.1"). twin names
// the test or row that runs the same thing with the protection removed and must fail; "" where removal is not meaningful
// (pure arithmetic). The evidence tool reads both from `go test -json` (Go 1.25 attributes).
func SFR(t testing.TB, id, twin string) {
	t.Helper()
	if id == "" || strings.ContainsAny(id, " \n") {
		t.Fatalf("requirement id %q is not one word", id)
	}
	t.Attr("sfr", id)
	if twin != "" {
		t.Attr("twin", strings.ReplaceAll(twin, " ", "_"))
	}
}

// CI tells whether this run must not skip.
func CI() bool { return os.Getenv("CI") == "true" }

// Need skips the test at a desk, and fails it in CI, unless every named program is on the PATH.
func Need(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			Missing(t, tool+" (run make setup)")
		}
	}
}

// NeedRoot skips at a desk, and fails in CI, unless the test runs as root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "root")
	}
}

// Missing skips at a desk, and fails in CI, saying what is missing.
func Missing(t testing.TB, what string) {
	t.Helper()
	if CI() {
		t.Fatalf("missing in CI: %s", what)
	}
	t.Skipf("missing: %s", what)
}
