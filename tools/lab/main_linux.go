package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"rempart/board/guest"
	"rempart/board/netns"
	"rempart/internal/run"
)

// streams are a command's standard streams.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// command is one subcommand. Each lives in a file of its own.
type command struct {
	name  string
	usage string // what follows the name
	what  string // one line
	// hidden commands are for rempart-lab itself; help does not show them.
	hidden bool
	run    func(ctx context.Context, args []string, s streams) error
}

// commands is the table of subcommands, in the order in which help shows them.
func commands() []command {
	return []command{
		upCommand(),
		downCommand(),
		statusCommand(),
		execCommand(),
		phoneCommand(),
		captureCommand(),
		callCommand(),
		leaktestCommand(),
		leakmatrixCommand(),
		usurpCommand(),
		soakCommand(),
		hostileCommand(),
		demoCommand(),
		crowdCommand(),
		swapCommand(),
		attackCommand(),
		attemptCommand(),
		usurpAttemptCommand(),
		soakSendCommand(),
		soakSwapCommand(),
	}
}

func main() {
	guest.Stage() // as process 1 of a guest
	netns.Stage() // the board's own processes are this program, executed again
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	err := dispatch(ctx, os.Args[1:], streams{os.Stdin, os.Stdout, os.Stderr})
	stop()
	os.Exit(run.Report(os.Stderr, "rempart-lab", err))
}

// dispatch runs the subcommand that args name.
func dispatch(ctx context.Context, args []string, s streams) error {
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		help(s.out)
		return nil
	}
	for _, c := range commands() {
		if c.name == args[0] {
			return c.run(ctx, args[1:], s)
		}
	}
	return run.Hint(fmt.Errorf("unknown command %q", args[0]), "rempart-lab help lists them")
}

func help(w io.Writer) {
	fmt.Fprintln(w, "rempart-lab runs handsets and a gateway on this machine. Commands:")
	for _, c := range commands() {
		if c.hidden {
			continue
		}
		fmt.Fprintf(w, "\n  %s %s\n      %s\n", c.name, c.usage, c.what)
	}
}

// errUsage is a command line that cannot be understood.
func errUsage(c command, format string, args ...any) error {
	return run.Hint(fmt.Errorf(format, args...), "rempart-lab %s %s", c.name, c.usage)
}
