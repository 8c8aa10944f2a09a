package proof

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestNeedFailsInCIAndSkipsAtADesk runs itself in a child, because a test cannot watch its own skip.
func TestNeedFailsInCIAndSkipsAtADesk(t *testing.T) {
	if os.Getenv("PROOF_CHILD") == "1" {
		Need(t, "a-tool-that-nobody-has")
		t.Fatal("went on without the tool")
	}
	for ci, want := range map[string]string{"true": "--- FAIL", "": "--- SKIP"} {
		cmd := exec.Command(os.Args[0], "-test.v", "-test.run=^TestNeedFailsInCIAndSkipsAtADesk$")
		cmd.Env = append(os.Environ(), "PROOF_CHILD=1", "CI="+ci)
		out, _ := cmd.CombinedOutput()
		if !strings.Contains(string(out), want) || !strings.Contains(string(out), "a-tool-that-nobody-has") {
			t.Errorf("CI=%q printed %s; want %s and the tool's name", ci, out, want)
		}
	}
}

func TestSFRIsInTheTestOutput(t *testing.T) {
	if os.Getenv("PROOF_CHILD") == "2" {
		SFR(t, "FDP_IFC_EXT.1", "twin row")
		return
	}
	cmd := exec.Command(os.Args[0], "-test.v=test2json", "-test.run=^TestSFRIsInTheTestOutput$")
	cmd.Env = append(os.Environ(), "PROOF_CHILD=2")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"sfr FDP_IFC_EXT.1", "twin twin_row"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("missing %q in %s", want, out)
		}
	}
}
