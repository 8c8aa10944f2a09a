package guest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// suite is a package whose tests need the guest's kernel.
type suite struct {
	name    string
	folder  string
	program string   // the built tests
	want    []string // the tests that must pass there; nil: all that are not skipped, and none may fail
	output  *bytes.Buffer
}

// short are the tests that `make test` runs in the guest; `make guest` runs all of these packages.
var short = []suite{
	{name: "nft", folder: "vpn/enforce/nft", want: []string{"TestNobodyElseChangesATable", "TestReadBackNoticesWhatIsNotOurs"}},
	{name: "backstop", folder: "vpn/enforce/backstop", want: []string{"TestLife"}},
	{name: "guard", folder: "internal/sandbox/guard", want: []string{"TestInstallTakesTheFormThatTheKernelRuns", "TestRootInTheHandsetIsRefused",
		"TestWithoutTheGuardEachAttemptWorks", "TestTheDeskIsNotAffected", "TestTheHandsetLoadsNoModule", "TestTrustIsThePidfdsAlone", "TestHotpluggedDeviceStaysDown",
		"TestGuardReadBackNoticesAMissingPinAndADetachedLink"}},
	{name: "gate", folder: "vpn/enforce", want: []string{"TestRealPackets", "TestUnpinnedAndClosedLeavesTheFloor", "TestEachReason",
		"TestKernelKeepsTheLevelRule", "TestAnExtensionIsNoticed"}},
	{name: "hostile", folder: "board/scenario/hostile", want: []string{"TestAttackTable"}},
}

// suites builds the tests of the packages.
func suites(t *testing.T) []suite {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var all []suite
	for _, s := range short {
		if os.Getenv("REMPART_LONG") != "" {
			s.want = nil
		}
		build := exec.Command("go", "test", "-c", "-o", filepath.Join(dir, s.name), "./"+s.folder)
		build.Dir = root
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("cannot build the tests of %s: %v: %s", s.folder, err, out)
		}
		s.folder, s.program, s.output = filepath.Join(root, s.folder), filepath.Join(dir, s.name), &bytes.Buffer{}
		all = append(all, s)
	}
	return all
}

func (s suite) command() Command {
	argv := []string{s.program, "-test.v"}
	if s.want != nil {
		argv = append(argv, "-test.run=^("+strings.Join(s.want, "|")+")$")
	}
	return Command{Argv: argv, Dir: s.folder, Stdout: s.output, Stderr: s.output}
}

var (
	verdictLine   = regexp.MustCompile(`^--- (PASS|FAIL|SKIP): (\S+) \(`)
	attributeLine = regexp.MustCompile(`^=== ATTR  (\S+) (\S+) (\S+)$`)
)

// judge makes a test of each test that ran in the guest, with what it said of itself.
func (s suite) judge(t *testing.T, e Ending) {
	attributes := map[string][][2]string{}
	verdicts := map[string]string{}
	var order []string
	for line := range strings.Lines(s.output.String()) {
		line = strings.TrimRight(line, "\n")
		if m := attributeLine.FindStringSubmatch(line); m != nil {
			attributes[m[1]] = append(attributes[m[1]], [2]string{m[2], m[3]})
		} else if m := verdictLine.FindStringSubmatch(line); m != nil {
			verdicts[m[2]] = m[1]
			order = append(order, m[2])
		}
	}
	for _, name := range s.want {
		if verdicts[name] != "PASS" {
			t.Errorf("%s did not pass in the guest: %q", name, verdicts[name])
		}
	}
	for _, name := range order {
		t.Run(name, func(t *testing.T) {
			for _, a := range attributes[name] {
				t.Attr(a[0], a[1])
			}
			switch verdicts[name] {
			case "FAIL":
				t.Fail()
			case "SKIP":
				t.Skip("it was skipped in the guest too")
			}
		})
	}
	if err := e.Err(); err != nil {
		t.Errorf("in the guest: %v", err)
	}
	if len(order) == 0 || t.Failed() {
		t.Errorf("its output in the guest:\n%s", s.output)
	}
}

// TestAFailureInTheGuestIsOneHere: the judge is tried on outputs, as a child, since it fails on purpose.
func TestAFailureInTheGuestIsOneHere(t *testing.T) {
	outputs := map[string]struct {
		text string
		want []string
		end  Ending
		fail bool
	}{
		"pass":             {"=== ATTR  TestA sfr FDP_IFC_EXT.1\n--- PASS: TestA (0.1s)\n    --- PASS: TestA/b (0.1s)\nPASS\n", []string{"TestA"}, Ending{}, false},
		"fail":             {"--- FAIL: TestA (0.1s)\nFAIL\n", []string{"TestA"}, Ending{Code: 1}, true},
		"skipped":          {"--- SKIP: TestA (0.1s)\nPASS\n", []string{"TestA"}, Ending{}, true},
		"another":          {"--- PASS: TestB (0.1s)\nPASS\n", []string{"TestA"}, Ending{}, true},
		"nothing":          {"", nil, Ending{}, true},
		"killed":           {"--- PASS: TestA (0.1s)\n", nil, Ending{Code: -1, Signal: 9}, true},
		"one of all fails": {"--- PASS: TestA (0.1s)\n--- FAIL: TestB (0.1s)\n", nil, Ending{}, true},
	}
	if name := os.Getenv("JUDGE"); name != "" {
		o := outputs[name]
		suite{want: o.want, output: bytes.NewBufferString(o.text)}.judge(t, o.end)
		return
	}
	for name, o := range outputs {
		cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run=^TestAFailureInTheGuestIsOneHere$")
		cmd.Env = append(os.Environ(), "JUDGE="+name)
		out, err := cmd.CombinedOutput()
		if (err != nil) != o.fail {
			t.Errorf("%s: %v: %s", name, err, out)
		}
		if name == "pass" && !strings.Contains(string(out), "=== ATTR  TestAFailureInTheGuestIsOneHere/TestA sfr FDP_IFC_EXT.1") {
			t.Errorf("the attribute is not passed on: %s", out)
		}
	}
}
