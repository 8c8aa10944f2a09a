package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"rempart/board/scenario"
	"rempart/board/scenario/attack"
	"rempart/tools/lab/leak"
)

func leaktestCommand() command {
	c := command{name: "leaktest", usage: "[--world NAME] [--pin PIN] [--rows TEXT] [--json] [HANDSET]",
		what: "tries every way out of a handset (default: a), and each again in a twin without the layers that stop it; fails unless all held"}
	c.run = func(ctx context.Context, args []string, s streams) error {
		f, world := flagSet(c)
		pin := f.String("pin", "", "PIN of the handset")
		asJSON := f.Bool("json", false, "print the report as JSON")
		only := f.String("rows", "", "only rows whose name contains this")
		words, rest, err := parse(c, f, args)
		if err != nil {
			return err
		}
		if len(words) > 1 || rest != nil {
			return errUsage(c, "leaktest takes one handset")
		}
		machine := "a"
		if len(words) == 1 {
			machine = words[0]
		}
		w, err := open(ctx, *world)
		if err != nil {
			return err
		}
		o := leak.Options{World: w, Machine: machine, PIN: *pin}
		if *only != "" {
			o.Rows = func(r scenario.Row) bool { return strings.Contains(r.Name, *only) }
		}
		if !*asJSON {
			o.Log = func(line string) { fmt.Fprintln(s.out, line) }
			o.Done = func(r scenario.RowResult) {
				fmt.Fprintf(s.out, "%-8s %-62s %s (%s); twin %s\n", r.State, r.Name, r.Verdict, r.Detail, r.Twin.Verdict)
			}
		}
		report, err := leak.Test(ctx, o)
		if err != nil {
			return err
		}
		if *asJSON {
			enc := json.NewEncoder(s.out)
			enc.SetIndent("", "  ")
			if err := enc.Encode(report); err != nil {
				return fmt.Errorf("cannot print the report: %w", err)
			}
		}
		return report.Err()
	}
	return c
}

// attackCommand is the sender of the leak test: hidden, run through exec in a handset's network.
func attackCommand() command {
	return command{name: "attack", hidden: true, run: func(ctx context.Context, args []string, s streams) error {
		job, err := attack.Parse(args)
		if err != nil {
			return err
		}
		self, err := os.Executable()
		if err != nil {
			return err
		}
		return attack.Supervise(ctx, job, s.out, func(j attack.Job) *exec.Cmd {
			return exec.Command(self, append([]string{"attempt"}, j.Args()...)...)
		})
	}}
}

// attemptCommand is one attempt in a process that the handset may kill.
func attemptCommand() command {
	return command{name: "attempt", hidden: true, run: func(ctx context.Context, args []string, s streams) error {
		job, err := attack.Parse(args)
		if err != nil {
			return err
		}
		_, err = attack.Run(ctx, job, s.out)
		return err
	}}
}
