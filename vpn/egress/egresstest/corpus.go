package egresstest

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"rempart/vpn/egress"
)

// Step is one frame of a case, with what the gate must do with it.
type Step struct {
	Direction egress.Direction
	Mark      uint32
	Want      egress.Reason
	Frame     []byte
}

// Case is one file of the corpus: frames in their order, to a gate that remembers nothing
// before the first. They are sent from the cgroup that is Policy's own.
type Case struct {
	Name  string
	Steps []Step
}

// Text is a step as a line of a file: direction, mark, reason, frame in hex.
func (s Step) Text() string {
	return fmt.Sprintf("%v %d %v %s", s.Direction, s.Mark, s.Want, hex.EncodeToString(s.Frame))
}

// Corpus reads the folder of a corpus. Fewer files than expected are a fault: a reader
// that finds nothing tests nothing.
func Corpus(t *testing.T, dir string, atLeast int) []Case {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < atLeast {
		t.Fatalf("%d files in %s, want %d or more", len(files), dir, atLeast)
	}
	var cases []Case
	for _, name := range files {
		c, err := read(name)
		if err != nil {
			t.Fatal(err)
		}
		cases = append(cases, c)
	}
	return cases
}

func read(name string) (Case, error) {
	c := Case{Name: strings.TrimSuffix(filepath.Base(name), ".txt")}
	f, err := os.Open(name)
	if err != nil {
		return c, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if text := lines.Text(); text != "" && !strings.HasPrefix(text, "#") {
			s, err := parseStep(text)
			if err != nil {
				return c, fmt.Errorf("%s: %w", name, err)
			}
			c.Steps = append(c.Steps, s)
		}
	}
	if err := lines.Err(); err != nil {
		return c, err
	}
	if len(c.Steps) == 0 {
		return c, fmt.Errorf("%s: no frame", name)
	}
	return c, nil
}

func parseStep(line string) (s Step, err error) {
	fields := strings.Fields(line)
	if len(fields) != 4 {
		return s, fmt.Errorf("%d fields in %q", len(fields), line)
	}
	switch fields[0] {
	case egress.Egress.String():
	case egress.Ingress.String():
		s.Direction = egress.Ingress
	default:
		return s, fmt.Errorf("unknown direction %q", fields[0])
	}
	mark, err := strconv.ParseUint(fields[1], 10, 32)
	if err != nil {
		return s, err
	}
	s.Mark = uint32(mark)
	for s.Want = egress.Admitted; s.Want < egress.Reasons && s.Want.String() != fields[2]; s.Want++ {
	}
	if s.Want == egress.Reasons {
		return s, fmt.Errorf("unknown reason %q", fields[2])
	}
	s.Frame, err = hex.DecodeString(fields[3])
	return s, err
}
