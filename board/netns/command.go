package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"rempart/internal/run"
)

// Where is a place in a machine for a command of the desk.
type Where struct {
	Machine string // upper case is accepted
	Colour  string // "" for init's own network namespace, "red", "black"
	App     string // the app whose control group it runs in; "" for /desk, which is no app
}

// ParseWhere reads MACHINE[/red|/black].
func ParseWhere(s string) (Where, error) {
	name, colour, slash := strings.Cut(s, "/")
	if name == "" || slash && colour != "red" && colour != "black" {
		return Where{}, run.Hint(fmt.Errorf("cannot read %q as a place", s), "it is HANDSET, HANDSET/red or HANDSET/black")
	}
	return Where{Machine: strings.ToLower(name), Colour: colour}, nil
}

// Command returns a command of the desk that will run in a machine's network
// namespace and control group, with the desk's file system. As an app it has an
// app's uid and sandbox (sandbox.BecomeApp); else it starts as root with every
// capability, and the board adds and removes no restriction. It is not
// in the machine's PID namespace, so it outlives init by the moment that the
// keeper needs to kill the whole control group.
//
// The command's path is looked up on the desk. Streams are the caller's to
// set; when the process runs, it is the command itself (same PID, own exit
// code).
func (w *World) Command(ctx context.Context, where Where, args ...string) (*exec.Cmd, error) {
	m, err := w.running(ctx, where.Machine)
	if err != nil {
		return nil, err
	}
	spec := enterSpec{PID: m.PID, Netns: m.Paths.Own, Group: "desk"}
	switch where.Colour {
	case "":
	case "red":
		spec.Netns = m.Paths.Red
	case "black":
		spec.Netns = m.Paths.Black
	default:
		return nil, fmt.Errorf("cannot enter %s/%s: a colour is red or black", m.Name, where.Colour)
	}
	if _, err := os.Stat(spec.Netns); err != nil {
		return nil, run.Hint(fmt.Errorf("cannot enter %s/%s: it has not made that network yet: %w", m.Name, where.Colour, err),
			"its console is %s", m.Paths.Console)
	}
	if where.App == "" {
		// A control group is a folder: made by name, in the machine's own tree.
		err = os.Mkdir(filepath.Join(m.Paths.Root, "sys/fs/cgroup/desk"), 0o755)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("cannot make control group /desk of %s: %w", m.Name, err)
		}
	} else {
		apps, err := Apps(m)
		if err != nil {
			return nil, err
		}
		i := sort.SearchStrings(apps, where.App)
		if i == len(apps) || apps[i] != where.App {
			return nil, run.Hint(fmt.Errorf("cannot run as app %q: %s has no such app", where.App, m.Name), "it has: %s", strings.Join(apps, ", "))
		}
		spec.Group, spec.UID = "apps/"+where.App, uidApps+uint32(i)
	}
	return w.entering(ctx, stageEnter, spec, args)
}

// Apps returns the names of the apps that a running machine has made control
// groups for, sorted.
func Apps(m Machine) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(m.Paths.Root, "sys/fs/cgroup/apps"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot list the apps of %s: %w", m.Name, err)
	}
	var apps []string
	for _, e := range entries {
		if e.IsDir() {
			apps = append(apps, e.Name())
		}
	}
	return apps, nil
}

// UserCommand returns a command of the machine's own, such as /bin/rempart,
// as the machine's user would run it: in all its namespaces, in control group
// /shell, as uid and gid 1000 without capabilities and with no_new_privs.
func (w *World) UserCommand(ctx context.Context, machine string, args ...string) (*exec.Cmd, error) {
	m, err := w.running(ctx, machine)
	if err != nil {
		return nil, err
	}
	cmd, err := w.entering(ctx, stageUser, enterSpec{PID: m.PID, Group: "shell"}, args)
	if err == nil {
		// The stage passes it on; a SIGKILL would end the stage alone.
		cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	}
	return cmd, err
}

// Phone runs `rempart args…` on a machine as its user, with stdin as its
// standard input (nil for none), and returns what it prints. The error is
// what it printed on its standard error, with its hint, and wraps *exec.ExitError.
func (w *World) Phone(ctx context.Context, machine string, stdin []byte, args ...string) ([]byte, error) {
	cmd, err := w.UserCommand(ctx, machine, append([]string{"/bin/rempart"}, args...)...)
	if err != nil {
		return nil, err
	}
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil {
		return out.Bytes(), phoneError(strings.Join(args, " "), machine, errs.String(), err)
	}
	return out.Bytes(), nil
}

// phoneError is what a phone printed as its error, with its hint as the hint.
func phoneError(command, machine, printed string, err error) error {
	said, hint, hinted := strings.Cut(strings.TrimSpace(printed), "\nhint: ")
	if said == "" {
		return fmt.Errorf("rempart %s on %s: %w", command, machine, err)
	}
	err = wrapped{fmt.Errorf("rempart %s on %s: %s", command, machine, strings.TrimPrefix(said, "rempart: ")), err}
	if hinted {
		return run.Hint(err, "%s", hint)
	}
	return err
}

// running returns a machine that is on.
func (w *World) running(ctx context.Context, name string) (Machine, error) {
	m, err := w.Machine(ctx, name)
	if err == nil && m.State != On {
		err = run.Hint(fmt.Errorf("cannot use %s: %w", m.Name, ErrOff), "it is %s: %s", m.State, m.Reason)
	}
	return m, err
}

// entering returns the stage that becomes, or runs, a command.
func (w *World) entering(ctx context.Context, stage string, spec any, args []string) (*exec.Cmd, error) {
	if len(args) == 0 {
		return nil, errors.New("cannot run in a machine: no command")
	}
	first, err := again(stage, spec, args...)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, first.Path, first.Args[1:]...)
	cmd.Args[0], cmd.Env = first.Args[0], first.Env
	cmd.WaitDelay = 5 * time.Second // a grandchild may keep the streams open
	return cmd, nil
}
