package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"rempart/tools/lab/usurp"
)

func usurpCommand() command {
	c := command{name: "usurp", usage: "[--world NAME] [HANDSET]",
		what: "a program in tunneld's place, with its rights, tries to get past the gateway in every way it has (default: handset a)"}
	c.run = func(ctx context.Context, args []string, s streams) error {
		f, world := flagSet(c)
		words, rest, err := parse(c, f, args)
		if err != nil {
			return err
		}
		if len(words) > 1 || rest != nil {
			return errUsage(c, "usurp takes one handset")
		}
		machine := "a"
		if len(words) == 1 {
			machine = words[0]
		}
		w, err := open(ctx, *world)
		if err != nil {
			return err
		}
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("cannot find the program: %w", err)
		}
		var failed []error
		results, err := usurp.Run(ctx, usurp.Options{World: w, Machine: machine, Bin: filepath.Dir(self), Done: func(r usurp.Result) {
			filter := "no filter"
			if r.Sandboxed {
				filter = "filter"
			}
			verdict := "held"
			if !r.Held() {
				verdict = "FAILED"
				failed = append(failed, fmt.Errorf("%s, IPv%d, %s: %s (%s)", r.Row, r.Family, filter, r.Outcome, r.Detail))
			}
			fmt.Fprintf(s.out, "%-6s %-46s IPv%d %-9s %s (%s)\n", verdict, r.Row, r.Family, filter, r.Outcome, r.Detail)
		}})
		fmt.Fprintf(s.out, "%d tries\n", len(results))
		return errors.Join(append(failed, err)...)
	}
	return c
}

// usurpAttemptCommand is one try in tunneld's place.
func usurpAttemptCommand() command {
	return command{name: "usurp-attempt", hidden: true, run: func(ctx context.Context, args []string, s streams) error {
		if len(args) != 1 {
			return errors.New("usurp-attempt takes its order")
		}
		return usurp.Attempt(ctx, args[0], s.out)
	}}
}
