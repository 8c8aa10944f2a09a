package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"rempart/board/netns"
)

func execCommand() command {
	c := command{
		name: "exec", usage: "[--world NAME] HANDSET[/red|/black] [--app NAME] -- CMD…",
		what: "runs a command of this machine, with its files, in a handset's network and control group, as root with every capability; with --app as that app, in its sandbox",
	}
	c.run = func(ctx context.Context, args []string, s streams) error {
		f, world := flagSet(c)
		app := f.String("app", "", "run as this app of the handset")
		words, rest, err := parse(c, f, args)
		if err != nil {
			return err
		}
		if len(words) != 1 || len(rest) == 0 {
			return errUsage(c, "exec takes one place, then -- and a command")
		}
		where, err := netns.ParseWhere(words[0])
		if err != nil {
			return err
		}
		where.App = *app
		w, err := open(ctx, *world)
		if err != nil {
			return err
		}
		cmd, err := w.Command(ctx, where, rest...)
		if err != nil {
			return err
		}
		return become(cmd)
	}
	return c
}

func phoneCommand() command {
	c := command{
		name: "phone", usage: "[--world NAME] HANDSET COMMAND…",
		what: "runs `rempart COMMAND…` on a handset, as the person who holds it",
	}
	c.run = func(ctx context.Context, args []string, s streams) error {
		f, world := flagSet(c)
		// The phone's own flags are not this command's.
		if err := f.Parse(args); err != nil {
			return errUsage(c, "%v", err)
		}
		if f.NArg() < 2 {
			return errUsage(c, "phone takes a handset and a command of rempart")
		}
		w, err := open(ctx, *world)
		if err != nil {
			return err
		}
		cmd, err := w.UserCommand(ctx, f.Arg(0), append([]string{"/bin/rempart"}, f.Args()[1:]...)...)
		if err != nil {
			return err
		}
		return become(cmd)
	}
	return c
}

// become replaces this process by a command, so that its streams, terminal,
// signals and exit code are the command's own.
func become(cmd *exec.Cmd) error {
	if cmd.Err != nil && !errors.Is(cmd.Err, exec.ErrDot) {
		return cmd.Err
	}
	env := cmd.Env
	if env == nil {
		env = os.Environ()
	}
	return fmt.Errorf("cannot run %s: %w", cmd.Path, unix.Exec(cmd.Path, cmd.Args, env))
}
