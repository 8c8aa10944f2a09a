package main

import (
	"errors"
	"flag"
	"fmt"
	"io"

	"rempart/internal/run"
	"rempart/internal/sock/httpsock"
)

// parse reads flags, before and after up to max words, which it returns.
func parse(command string, args []string, max int, define func(*flag.FlagSet)) ([]string, error) {
	f := flag.NewFlagSet(command, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	define(f)
	var words []string
	for len(args) > 0 {
		if err := f.Parse(args); err != nil {
			return nil, run.Hint(fmt.Errorf("%w of %s: %w", errUsage, command, err), "rempart help shows it")
		}
		if args = f.Args(); len(args) > 0 {
			words, args = append(words, args[0]), args[1:]
		}
	}
	if len(words) > max {
		return nil, run.Hint(fmt.Errorf("%w of %s: %q is too much", errUsage, command, words[max]), "rempart help shows it")
	}
	return words, nil
}

// hinted carries a daemon's own hint over to ours.
func hinted(err error) error {
	var e *httpsock.Error
	if errors.As(err, &e) && e.Hint != "" {
		return run.Hint(err, "%s", e.Hint)
	}
	return err
}
