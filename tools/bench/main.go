package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/netns"
	"rempart/internal/run"
)

// options are the flags.
type options struct {
	only    []string // benchmarks to run
	out     string   // folder of the results
	bin     string   // folder of the daemons
	world   string   // name of the worlds, before the benchmark's own
	boots   int
	calls   int
	pairs   int
	seconds int // of one TCP transfer
	offload bool
	idle    time.Duration // how long egressd is watched
}

// benchmark is one of the table.
type benchmark struct {
	name string
	what string
	run  func(ctx context.Context, o options, r *result) error
}

// benchmarks is the table, in the order in which they run.
func benchmarks() []benchmark {
	return []benchmark{
		{"boot", "init's first line to tunnel up", boot},
		{"call", "dial to first decoded audio, latency, exactness", call},
		{"device", "the layers of a new device", newDevices},
		{"gate", "the gate's decision on a frame", gate},
		{"idle", "egressd of a phone that is left alone", idle},
		{"send", "single sends behind the layers, against nft", sends},
		{"tcp", "TCP through the tunnel against plain wireguard-go", tcp},
	}
}

// errBroken ends a run whose figures are beyond a bound.
var errBroken = errors.New("a bound was not kept")

func main() {
	plainStage()  // the plain tunnel's two ends are this program, executed again
	netns.Stage() // and so are the board's processes
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	err := bench(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(run.Report(os.Stderr, "bench", err))
}

// read reads the command line.
func read(args []string) (options, error) {
	var o options
	var names []string
	for _, b := range benchmarks() {
		names = append(names, b.name)
	}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(io.Discard) // errors are returned, with a hint
	only := f.String("only", strings.Join(names, ","), "benchmarks to run, with commas")
	f.StringVar(&o.out, "out", "out/bench", "folder of the results")
	f.StringVar(&o.bin, "bin", "bin", "folder of the daemons")
	f.StringVar(&o.world, "world", "bench", "name of the worlds, before the benchmark's own")
	f.IntVar(&o.boots, "boots", 20, "how many boots")
	f.IntVar(&o.calls, "calls", 20, "how many calls")
	f.IntVar(&o.pairs, "pairs", 10, "how many pairs of TCP transfers")
	f.IntVar(&o.seconds, "seconds", 2, "length of one TCP transfer")
	f.DurationVar(&o.idle, "idle", idleWatch, "idle: how long egressd is watched")
	f.BoolVar(&o.offload, "offload", false, "tcp: leave segmentation offload on, on the links of both tunnels")
	hint := "bench [-only " + strings.Join(names, ",") + "] [-out DIR] [-bin DIR] [-world NAME] [-boots N] [-calls N] [-pairs N] [-seconds N] [-idle DURATION] [-offload]"
	if err := f.Parse(args); err != nil {
		return o, run.Hint(err, "%s", hint)
	}
	o.only = strings.Split(*only, ",")
	for _, name := range o.only {
		if !slices.Contains(names, name) {
			return o, run.Hint(fmt.Errorf("unknown benchmark %q", name), "%s", hint)
		}
	}
	if f.NArg() > 0 || o.boots < 1 || o.calls < 1 || o.pairs < 1 || o.seconds < 1 || o.idle < time.Second {
		return o, run.Hint(errors.New("cannot understand the command line"), "%s", hint)
	}
	var err error
	if o.out, err = filepath.Abs(o.out); err != nil {
		return o, fmt.Errorf("cannot use the folder of the results: %w", err)
	}
	return o, nil
}

// bench runs the benchmarks that are asked for, all of them even if one fails.
func bench(ctx context.Context, args []string, out, progress io.Writer) error {
	o, err := read(args)
	if err != nil {
		return err
	}
	if err := netns.Need(); err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return fmt.Errorf("cannot make the folder of the results: %w", err)
	}
	var failed []error
	for _, b := range benchmarks() {
		if !slices.Contains(o.only, b.name) || ctx.Err() != nil {
			continue
		}
		fmt.Fprintf(progress, "bench %s: %s\n", b.name, b.what)
		r := &result{Name: b.name, Started: time.Now().UTC(), Machine: describe(), Percentiles: "nearest rank", Settings: map[string]string{}}
		err := b.run(ctx, o, r)
		r.finish(err)
		failed = append(failed, r.write(o.out), r.show(out))
		switch {
		case err != nil:
			failed = append(failed, fmt.Errorf("%s: %w", b.name, err))
		case !r.Kept:
			failed = append(failed, fmt.Errorf("%s: %w", b.name, errBroken))
		}
	}
	if ctx.Err() != nil {
		return errors.New("interrupted: the worlds were taken down again")
	}
	return errors.Join(failed...)
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
