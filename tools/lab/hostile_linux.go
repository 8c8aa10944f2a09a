package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"rempart/board/guest"
	"rempart/board/scenario/hostile"
)

// hostileLimit bounds one guest of the attack table: half of it takes some five minutes on an idle machine.
const hostileLimit = 30 * time.Minute

func hostileCommand() command {
	c := command{name: "hostile", usage: "[--kinds NAME,…] [--json]",
		what: "tries the attack table of kernel tunnels and thefts under Debian's 6.12 in QEMU, each with its twins; fails unless all held"}
	c.run = func(ctx context.Context, args []string, s streams) error {
		f, _ := flagSet(c)
		asJSON := f.Bool("json", false, "print the rows as JSON")
		kinds := f.String("kinds", "", "only these kinds")
		here := f.String("here", "", "in the guest: the family to try")
		words, rest, err := parse(c, f, args)
		if err != nil {
			return err
		}
		if len(words) > 0 || rest != nil {
			return errUsage(c, "hostile takes no words")
		}
		if *here != "" {
			return hostileHere(ctx, *kinds, *here, s)
		}
		tell := func(r hostile.Row) {
			if !*asJSON {
				fmt.Fprintln(s.out, r.Line())
			}
		}
		rows, err := hostileRows(ctx, *kinds, tell)
		if err != nil {
			return err
		}
		if *asJSON {
			enc := json.NewEncoder(s.out)
			enc.SetIndent("", "  ")
			if err := enc.Encode(rows); err != nil {
				return err
			}
		}
		var errs []error
		for _, r := range rows {
			if !r.Held {
				errs = append(errs, fmt.Errorf("%s: %s", r.Name, r.Why))
			}
		}
		return errors.Join(errs...)
	}
	return c
}

// hostileRows boots a guest for each family, side by side, and returns the rows of both.
func hostileRows(ctx context.Context, kinds string, tell func(hostile.Row)) ([]hostile.Row, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	families := []string{"4", "6"}
	parts, errs := make([][]hostile.Row, len(families)), make([]error, len(families))
	var mu sync.Mutex
	var all sync.WaitGroup
	for i, family := range families {
		all.Go(func() {
			lines := &rowLines{tell: func(r hostile.Row) {
				mu.Lock()
				defer mu.Unlock()
				parts[i] = append(parts[i], r)
				tell(r)
			}}
			var errors bytes.Buffer
			end, err := guest.Run(ctx, guest.Options{Timeout: hostileLimit, Stdout: lines, Stderr: &errors, Dir: "/"}, self, "hostile", "--here", family, "--kinds", kinds)
			if err == nil {
				if err = end.Err(); err != nil {
					err = fmt.Errorf("the attack table over IPv%s %w: %s", family, err, strings.TrimSpace(errors.String()))
				}
			}
			errs[i] = err
		})
	}
	all.Wait()
	return slices.Concat(parts...), errors.Join(errs...)
}

// rowLines makes rows of lines.
type rowLines struct {
	rest []byte
	tell func(hostile.Row)
}

func (l *rowLines) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	for {
		line, after, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		var r hostile.Row
		if err := json.Unmarshal(line, &r); err != nil {
			return 0, fmt.Errorf("cannot read a row of the guest's: %w", err)
		}
		l.rest = after
		l.tell(r)
	}
}

// hostileHere is the guest's half: a line of JSON for each row.
func hostileHere(ctx context.Context, kinds, family string, s streams) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cells := slices.DeleteFunc(hostile.Cells(), func(c hostile.Cell) bool {
		return fmt.Sprint(int(c.Family)) != family || kinds != "" && !slices.Contains(strings.Split(kinds, ","), string(c.Kind))
	})
	if len(cells) == 0 {
		return errors.New("no row of the attack table matches")
	}
	var wrong error
	_, err = hostile.Run(ctx, hostile.Options{Cgroup: "/sys/fs/cgroup", Sender: []string{self, "attempt"}, Cells: cells, Done: func(r hostile.Row) {
		wrong = errors.Join(wrong, json.NewEncoder(s.out).Encode(r))
	}})
	return errors.Join(err, wrong)
}
