package main

import (
	"context"
	"errors"
	"flag"
	"io"

	"rempart/board/netns"
)

// defaultWorld is the world of a command that names none.
const defaultWorld = "lab"

// flagSet returns the flags of a command, with --world among them.
func flagSet(c command) (*flag.FlagSet, *string) {
	f := flag.NewFlagSet(c.name, flag.ContinueOnError)
	f.SetOutput(io.Discard) // errors are returned, with a hint
	return f, f.String("world", defaultWorld, "name of the world")
}

// parse reads flags before, between and after the words of a command line, up
// to "--", and returns the words; rest is what follows "--", nil if there is
// none.
func parse(c command, f *flag.FlagSet, args []string) (words, rest []string, err error) {
	for i, a := range args {
		if a == "--" {
			args, rest = args[:i], append([]string{}, args[i+1:]...)
			break
		}
	}
	for {
		if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
			return nil, nil, errUsage(c, "%s: %s", c.name, c.what)
		} else if err != nil {
			return nil, nil, errUsage(c, "%v", err)
		}
		if f.NArg() == 0 {
			return words, rest, nil
		}
		words = append(words, f.Arg(0))
		args = f.Args()[1:]
	}
}

// open opens a world that must run.
func open(ctx context.Context, name string) (*netns.World, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return netns.Open(name)
}
