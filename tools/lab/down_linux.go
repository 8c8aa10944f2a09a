package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"rempart/board/netns"
)

func downCommand() command {
	c := command{
		name: "down", usage: "[--world NAME | --all]",
		what: "takes a world down, or what a crash left of it: no process, namespace, mount, control group, link or pin stays",
	}
	c.run = func(ctx context.Context, args []string, s streams) error {
		f, world := flagSet(c)
		all := f.Bool("all", false, "every world")
		words, rest, err := parse(c, f, args)
		if err != nil {
			return err
		}
		if len(words) > 0 || rest != nil {
			return errUsage(c, "down takes no words")
		}
		worlds := []string{*world}
		if *all {
			if worlds, err = netns.Worlds(); err != nil {
				return err
			}
		}
		for _, name := range worlds {
			start := time.Now()
			if derr := netns.Down(ctx, name); derr != nil {
				err = errors.Join(err, derr)
				continue
			}
			fmt.Fprintf(s.out, "world %s is down (%.2f s)\n", name, time.Since(start).Seconds())
		}
		return err
	}
	return c
}
