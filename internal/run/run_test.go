package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"rempart/internal/journal"
)

func TestReport(t *testing.T) {
	base := errors.New("cannot open the TPM")
	for _, c := range []struct {
		err  error
		code int
		out  string
	}{
		{nil, 0, ""},
		{fmt.Errorf("serve: %w", ErrStopped), 0, ""},
		{base, 1, "keyd: cannot open the TPM\n"},
		{fmt.Errorf("start: %w", Hint(base, "is %s running?", "swtpm")), 1, "keyd: start: cannot open the TPM\nhint: is swtpm running?\n"},
	} {
		var buf bytes.Buffer
		if code := Report(&buf, "keyd", c.err); code != c.code || buf.String() != c.out {
			t.Errorf("Report(%v) = %d, %q; want %d, %q", c.err, code, buf.String(), c.code, c.out)
		}
	}
	if Hint(nil, "x") != nil {
		t.Error("a hint made an error of nil")
	}
	if !errors.Is(Hint(base, "x"), base) {
		t.Error("a hint hides its cause")
	}
}

// TestMainEndsOnSignal runs the test binary again as a daemon, because Main ends the process.
func TestMainEndsOnSignal(t *testing.T) {
	if os.Getenv("RUN_TEST_CHILD") == "1" {
		Main("child", func(ctx context.Context, j *journal.Journal) error {
			j.Event("child.start", "self", journal.Success)
			<-ctx.Done()
			return ErrStopped
		})
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestMainEndsOnSignal$")
	cmd.Env = append(os.Environ(), "RUN_TEST_CHILD=1")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 4096)
	n, err := stderr.Read(first)
	if err != nil || !strings.Contains(string(first[:n]), "event=child.start") {
		t.Fatalf("first output %q, %v", first[:n], err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(stderr); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("a stopped daemon exited with %v", err)
	}
}
