package main

import (
	"context"

	"rempart/internal/journal"
	"rempart/internal/run"
	"rempart/internal/sandbox"
	"rempart/internal/sock"
)

const (
	stateDir = "/state/keyd"
	imageDir = "/etc/rempart"
)

func main() {
	run.Main("keyd", func(ctx context.Context, j *journal.Journal) error {
		if err := hideMemory(); err != nil {
			return err
		}
		if err := sandbox.Enter(sandbox.Profile{Name: "keyd", NoIP: true}); err != nil {
			return err
		}
		tpm, err := sock.Inherited("tpm")
		if err != nil {
			return err
		}
		listener, err := sock.Listener("keyd")
		if err != nil {
			return err
		}
		return serve(ctx, config{state: stateDir, image: imageDir}, deps{
			tpm: tpm, listener: listener, journal: j,
		})
	})
}
