package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"rempart/board/scenario/hostile"
	"rempart/internal/run"
	"rempart/tools/lab/leak"
	"rempart/tools/report"
)

func leakmatrixCommand() command {
	c := command{name: "leakmatrix", usage: "[--subset] [--seed N] [--state S] [--sender S] [--row ID] [--limits FILE] [-o FOLDER] [--json]",
		what: "tries every way to send, from everywhere, in every state of a handset, each again in a stripped twin, and each layer alone"}
	c.run = func(ctx context.Context, args []string, s streams) error {
		f, world := flagSet(c)
		o := leak.MatrixOptions{}
		f.BoolVar(&o.Pairwise, "subset", false, "only the rows that hold every pair of values")
		f.Uint64Var(&o.Seed, "seed", 1, "of the subset")
		f.StringVar(&o.State, "state", "", "only rows of this state")
		f.StringVar(&o.Sender, "sender", "", "only rows of this sender")
		f.StringVar(&o.Row, "row", "", "only this row")
		f.StringVar(&o.Out, "o", "out/leakmatrix", "folder of the captures, matrix.json and matrix.html")
		limits := f.String("limits", "docs/known-limits.md", "the document with the accepted rows")
		asJSON := f.Bool("json", false, "print the report as JSON")
		words, rest, err := parse(c, f, args)
		if err != nil {
			return err
		}
		if len(words) > 0 || rest != nil {
			return errUsage(c, "leakmatrix takes no words")
		}
		if *world != defaultWorld {
			o.World = *world
		}
		text, err := os.ReadFile(*limits)
		if err != nil {
			return run.Hint(fmt.Errorf("cannot read the accepted rows: %w", err), "run it in the source tree, or name the document by --limits")
		}
		o.Accepted = string(text)
		if o.Whole() && !o.Pairwise {
			o.Guest = func(ctx context.Context) ([]hostile.Row, error) { return hostileRows(ctx, "", func(hostile.Row) {}) }
		}
		if !*asJSON {
			o.Log = func(line string) { fmt.Fprintln(s.out, "  "+line) }
		}
		m, err := leak.Matrix(ctx, o)
		if err != nil {
			return err
		}
		if err := report.WriteMatrix(o.Out, m); err != nil {
			return err
		}
		if *asJSON {
			enc := json.NewEncoder(s.out)
			enc.SetIndent("", "  ")
			if err := enc.Encode(m); err != nil {
				return fmt.Errorf("cannot print the report: %w", err)
			}
			return m.Err()
		}
		if err := report.NewTerminal(s.out).Matrix(m); err != nil {
			return err
		}
		fmt.Fprintf(s.out, "  %s\n", filepath.Join(o.Out, "matrix.html"))
		return m.Err()
	}
	return c
}
