package main

import (
	"context"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"rempart/tools/lab/demo"
)

func demoCommand() command {
	c := command{
		name: "demo", usage: "[--out DIR] [--handsets N] [--bin DIR] [--world NAME] [--keep]",
		what: "the promise from power-on to power-off: boot, leak test, a call with recorded speech; writes report.html, summary.json, the capture",
	}
	c.run = func(ctx context.Context, args []string, s streams) error {
		f, world := flagSet(c)
		*world = demo.World
		o := demo.Options{Machine: machineName()}
		f.StringVar(&o.Out, "out", "out/demo", "folder of what it writes, and of the TPMs, which are kept")
		f.IntVar(&o.Handsets, "handsets", 2, "how many handsets; a calls b")
		f.StringVar(&o.Bin, "bin", "", "folder of the daemons; default this program's")
		f.BoolVar(&o.Keep, "keep", false, "leave the world running")
		words, rest, err := parse(c, f, args)
		if err != nil {
			return err
		}
		if len(words) > 0 || rest != nil {
			return errUsage(c, "demo takes no words")
		}
		o.World = *world
		if err := demo.Run(ctx, o, s.out); err != nil {
			return err
		}
		if o.Keep {
			fmt.Fprintf(s.out, "world %s runs on; `rempart-lab down --world %s` takes it down\n", o.World, o.World)
		}
		return nil
	}
	return c
}

// machineName is the kernel and how many processors there are.
func machineName() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Sprintf("%d processors", runtime.NumCPU())
	}
	return fmt.Sprintf("Linux %s, %s, %d processors", unix.ByteSliceToString(u.Release[:]), runtime.GOARCH, runtime.NumCPU())
}
