package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"rempart/internal/run"
	"rempart/tools/lab/soak"
)

func soakCommand() command {
	c := command{name: "soak", usage: "[--swaps N] [--kills N] [--handsets N] [--for DURATION] [--resume] [--out DIR]",
		what: "swaps the policy and kills every daemon of handsets of its own again and again under constant senders; fails if one frame got out"}
	c.run = func(ctx context.Context, args []string, s streams) error {
		f, world := flagSet(c)
		f.Lookup("world").DefValue = "soak"
		*world = "soak"
		o := soak.Options{Log: func(line string) { fmt.Fprintln(s.out, line) }}
		f.IntVar(&o.Swaps, "swaps", 10000, "swaps of the policy")
		f.IntVar(&o.Kills, "kills", 1000, "kills of each daemon")
		f.IntVar(&o.Handsets, "handsets", 3, "handsets side by side")
		f.DurationVar(&o.For, "for", 0, "end in order after so long, to be resumed; 0 is no limit")
		f.BoolVar(&o.Resume, "resume", false, "go on where an earlier run ended")
		f.StringVar(&o.Dir, "out", "out/soak", "folder of the state, the summary and the capture")
		f.StringVar(&o.Bin, "bin", "", "folder of the daemons; default this program's")
		words, rest, err := parse(c, f, args)
		if err != nil {
			return err
		}
		if len(words) > 0 || rest != nil {
			return errUsage(c, "soak takes no words")
		}
		o.World = *world
		sum, err := soak.Run(ctx, o)
		if sum == nil {
			return err
		}
		fmt.Fprintf(s.out, "%d of %d swaps", sum.Swaps.Done, sum.Swaps.Of)
		for _, d := range slices.Sorted(maps.Keys(sum.Kills)) {
			fmt.Fprintf(s.out, ", %s killed %d of %d times", d, sum.Kills[d].Done, sum.Kills[d].Of)
		}
		fmt.Fprintf(s.out, ", in %.0f s\n%d packets tried by senders; outside %d frames, %d of no admitted class, %d with a sender's marker\n",
			sum.Seconds, sum.Sent, sum.Frames, sum.Outside, sum.Markers)
		fmt.Fprintf(s.out, "behind an admission %d of %d packets seen, behind a close %d of %d\n", sum.OpenSeen, sum.OpenSent, sum.ClosedSeen, sum.ClosedSent)
		if err != nil {
			return err
		}
		if !sum.Done {
			return run.Hint(errors.New("not done yet: "+sum.Left()), "rempart-lab soak --resume goes on")
		}
		return nil
	}
	return c
}

// soakSendCommand is a sender of the soak, in a handset's network.
func soakSendCommand() command {
	return command{name: "soak-send", hidden: true, run: func(ctx context.Context, args []string, s streams) error {
		if len(args) != 1 {
			return errors.New("soak-send takes its order")
		}
		return soak.Send(ctx, args[0], s.out)
	}}
}

// soakSwapCommand swaps, in tunneld's place.
func soakSwapCommand() command {
	return command{name: "soak-swap", hidden: true, run: func(ctx context.Context, args []string, s streams) error {
		if len(args) != 1 {
			return errors.New("soak-swap takes its order")
		}
		return soak.Swap(ctx, args[0], s.out)
	}}
}
