package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"rempart/internal/run"
)

func captureCommand() command {
	c := command{
		name: "capture", usage: "[--world NAME] internet -o FILE [--seconds N]",
		what: "writes every frame that any machine sends to a pcapng file, unfiltered, until Ctrl-C, N seconds or the world's end",
	}
	c.run = func(ctx context.Context, args []string, s streams) error {
		f, world := flagSet(c)
		file := f.String("o", "", "pcapng file")
		seconds := f.Float64("seconds", 0, "how long; 0 for no end")
		words, rest, err := parse(c, f, args)
		if err != nil {
			return err
		}
		if len(words) != 1 || words[0] != "internet" || rest != nil || *file == "" || *seconds < 0 {
			return errUsage(c, "capture takes the word internet, a file and perhaps a time")
		}
		w, err := open(ctx, *world)
		if err != nil {
			return err
		}
		// Not ctx: a signal must end the capture in order, not drop it.
		capture, err := w.Capture(context.WithoutCancel(ctx), *file)
		if err != nil {
			return err
		}
		fmt.Fprintf(s.err, "capturing to %s\n", *file)
		if *seconds > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, time.Duration(*seconds*float64(time.Second)))
			defer cancel()
		}
		stopped := context.AfterFunc(ctx, func() { capture.End() })
		defer stopped()
		result, err := capture.Wait()
		if err != nil {
			return err
		}
		for _, p := range result.Ports {
			fmt.Fprintf(s.out, "%-16s %8d frames %10d bytes %6d dropped by the kernel %6d missed\n", p.Port, p.Frames, p.Bytes, p.KernelDrops, p.Missed)
		}
		if !result.Complete() {
			return run.Hint(errors.Join(errors.New("the capture is not complete"), textError(result.Error)),
				"the machine was too busy: capture with less traffic, or without another capture at the same time")
		}
		return nil
	}
	return c
}

// textError makes an error of a text that may be empty.
func textError(text string) error {
	if text == "" {
		return nil
	}
	return errors.New(text)
}
