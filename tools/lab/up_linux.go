package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"rempart/board/netns"
	"rempart/internal/run"
	"rempart/tools/lab/bringup"
)

func upCommand() command {
	c := command{
		name: "up", usage: "[--world NAME] [--handsets N] [--state DIR] [--bin DIR] [--image DIR] [--pin PIN] [--offload] [--dhcp]",
		what: "boots a gateway and handsets a, b, c … and returns when all tunnels are up; Ctrl-C takes everything down",
	}
	c.run = func(ctx context.Context, args []string, s streams) error {
		f, world := flagSet(c)
		var o bringup.Options
		f.IntVar(&o.Handsets, "handsets", 2, "how many handsets")
		f.StringVar(&o.State, "state", "", "folder of TPMs, keys and the machines' /state")
		f.StringVar(&o.Bin, "bin", "", "folder of the daemons and rempart-policy; default this program's")
		f.StringVar(&o.Image, "image", "", "image folder to boot handsets from as it is")
		f.StringVar(&o.PIN, "pin", bringup.DefaultPIN, "PIN of every machine")
		f.BoolVar(&o.Offload, "offload", false, "leave segmentation offload of the radios on")
		f.BoolVar(&o.DHCP, "dhcp", false, "handsets lease their addresses, by DHCP and router advertisements")
		f.DurationVar(&o.Timeout, "timeout", time.Minute, "how long it may take")
		words, rest, err := parse(c, f, args)
		if err != nil {
			return err
		}
		if len(words) > 0 || rest != nil {
			return errUsage(c, "up takes no words")
		}
		if o.State == "" {
			o.State = netns.DefaultState(*world)
		}
		if o.State, err = filepath.Abs(o.State); err != nil {
			return fmt.Errorf("cannot use the state folder: %w", err)
		}
		start := time.Now()
		if err := up(ctx, *world, o, func(line string) { fmt.Fprintln(s.out, line) }); err != nil {
			return err
		}
		fmt.Fprintf(s.out, "%7.3f s  world %s is up\n", time.Since(start).Seconds(), *world)
		return nil
	}
	return c
}

// up starts a world, brings it to life and lets it outlive this process. On
// any error, a signal among them, nothing of it is left.
func up(ctx context.Context, world string, o bringup.Options, progress func(string)) (err error) {
	if o, err = o.Complete(); err != nil {
		return err
	}
	w, err := netns.Start(ctx, world, o.State)
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			err = errors.New("interrupted: the world was taken down again")
		}
		hint := run.HintOf(err)
		err = errors.Join(err, w.Release(), netns.Down(context.WithoutCancel(ctx), world))
		if hint != "" {
			err = run.Hint(err, "%s", hint)
		}
	}()
	if err := bringup.Up(ctx, w, o, progress); err != nil {
		return err
	}
	if err := w.Keep(ctx); err != nil {
		return err
	}
	return w.Release()
}
