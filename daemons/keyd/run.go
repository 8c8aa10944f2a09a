package main

import (
	"context"
	"net"
	"os"

	"rempart/internal/journal"
	"rempart/keystore/server"
)

// config is where keyd finds things.
type config struct {
	state string // its writable folder
	image string // policy, policy.pub, approval
}

// deps are what keyd was handed.
type deps struct {
	tpm      *os.File
	listener *net.UnixListener
	journal  *journal.Journal
}

// serve runs the keystore until ctx ends (run.ErrStopped, the TPM shut down
// cleanly) or it cannot go on.
func serve(ctx context.Context, cfg config, d deps) error {
	s, err := server.New(server.Config{TPM: d.tpm, State: cfg.state, Image: cfg.image, Journal: d.journal})
	if err != nil {
		return err
	}
	return s.Serve(ctx, d.listener)
}
