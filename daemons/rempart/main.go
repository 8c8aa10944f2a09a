package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"rempart/boot/manifest"
	"rempart/boot/report"
	"rempart/internal/run"
)

const usage = `usage: rempart COMMAND

  status [--json]                   what runs, what is open, what is up
  enrol --name NAME [--pin-file F]  make this handset's keys; prints the certificate request (PIN on stdin)
  enrol --again                     print the request again
  enrol --certificate FILE|-        take the certificate and its issuers, PEM
  unlock [--pin-file F]             open the keystore (PIN on stdin)
  call NAME [--seconds N] [--json]  call a handset by name
  answer                            answer the call that rings
  hangup                            end the call that is on
  level [APP [NETWORK]] [--json]    what the level rule lets apps send and receive, and why
  drops [--follow] [--json]         what was refused: who, where to, why
  doctor [--json]                   check every promise that can be seen from here
`

// env is where the command runs.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	sockets        string // folder of the daemons' sockets
	report         string // init's report
	eventLog       string // init's event log
	policy         string // folder of the signed policy
	cgroups        string // the handset's cgroups
	rule           func(dir string) (*manifest.Policy, error)
	now            func() int64
}

// errUsage is a command line that makes no sense.
var errUsage = errors.New("cannot understand the command line")

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := rempart(ctx, os.Args[1:], env{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, sockets: "/run/rempart",
		report: report.Path, eventLog: report.EventLogPath, policy: "/etc/rempart", cgroups: "/sys/fs/cgroup", rule: signedPolicy, now: monotonic})
	cancel()
	os.Exit(exit(os.Stderr, err))
}

// exit reports err in one line and a hint, and is the exit code.
func exit(w io.Writer, err error) int {
	code := run.Report(w, "rempart", err)
	if errors.Is(err, errUsage) {
		return 2
	}
	return code
}

// rempart runs one command.
func rempart(ctx context.Context, args []string, e env) error {
	if len(args) == 0 {
		fmt.Fprint(e.stderr, usage)
		return run.Hint(fmt.Errorf("%w: no command", errUsage), "rempart status is a good start")
	}
	rest := args[1:]
	switch args[0] {
	case "status":
		return status(ctx, rest, e)
	case "enrol":
		return enrol(ctx, rest, e)
	case "unlock":
		return unlock(ctx, rest, e)
	case "call":
		return callName(ctx, rest, e)
	case "answer":
		return answer(ctx, rest, e)
	case "hangup":
		return hangup(ctx, rest, e)
	case "level":
		return level(ctx, rest, e)
	case "drops":
		return drops(ctx, rest, e)
	case "doctor":
		return doctor(ctx, rest, e)
	case "help", "-h", "--help":
		fmt.Fprint(e.stdout, usage)
		return nil
	}
	return run.Hint(fmt.Errorf("%w: no command %q", errUsage, args[0]), "rempart help lists the commands")
}

func (e env) socket(daemon string) string { return filepath.Join(e.sockets, daemon+".sock") }

// explain turns what goes wrong between this command and a daemon into one line
// with a hint.
func explain(daemon string, err error) error {
	var op *net.OpError
	switch {
	case err == nil:
		return nil
	case run.HintOf(err) != "":
		return err
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return run.Hint(fmt.Errorf("cannot reach %s: it is not there", daemon), "run this on the handset; rempart status says what runs")
	case errors.Is(err, fs.ErrPermission):
		return run.Hint(fmt.Errorf("cannot reach %s: no permission", daemon), "run this as the handset's user, uid 1000, in the cgroup /shell")
	case errors.As(err, &op):
		return run.Hint(fmt.Errorf("cannot reach %s: %w", daemon, err), "rempart status says what runs")
	}
	return hinted(err)
}

// monotonic is CLOCK_MONOTONIC in nanoseconds.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}
