package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"rempart/vpn/egress"
	"rempart/vpn/egress/ask"
)

// gateTimeout bounds one question to egressd.
const gateTimeout = 2 * time.Second

// gate is egressd as this daemon sees it: it asks, awaits the word, and believes
// it only if the digest is the one that the signed policy leads to.
type gate struct {
	path    string
	digests map[string][32]byte
	client  *ask.Client // nil between connections
	last    string      // what was last put in force here; "" is deny all
}

// errRefused marks egressd's own no; other errors mean that what is in force is
// not known.
var errRefused = errors.New("egressd refused")

// Close puts deny-all in force. A connection that an older egressd left behind
// is no reason not to ask the new one.
func (g *gate) Close(ctx context.Context) error {
	kept := g.client != nil
	err := g.do(ctx, "", (*ask.Client).CloseGate)
	if err != nil && kept && !errors.Is(err, errRefused) {
		err = g.do(ctx, "", (*ask.Client).CloseGate)
	}
	return err
}

// Admit puts the policy of one gateway in force.
func (g *gate) Admit(ctx context.Context, gateway string) error {
	return g.do(ctx, gateway, func(c *ask.Client, ctx context.Context) (egress.Status, error) {
		return c.Admit(ctx, gateway)
	})
}

// Check tells whether what was last put in force still is: egressd ends the connection when it is not, and when it ends
// itself. It is not asked, so that it can sleep.
func (g *gate) Check(context.Context) error {
	if g.client == nil {
		return errors.New("egressd is not connected")
	}
	return g.client.Ended()
}

func (g *gate) do(ctx context.Context, want string, question func(*ask.Client, context.Context) (egress.Status, error)) error {
	ctx, cancel := context.WithTimeout(ctx, gateTimeout)
	defer cancel()
	if g.client == nil {
		c, err := ask.Dial(g.path)
		if err != nil {
			return err
		}
		g.client = c
	}
	s, err := question(g.client, ctx)
	var refused *ask.RefusedError
	switch {
	case errors.As(err, &refused):
		return fmt.Errorf("%w: %s", errRefused, refused.Text)
	case err != nil:
		g.client.Close()
		g.client = nil
		return err
	case s.Admitted != want:
		return fmt.Errorf("egressd has %q in force, not %q", s.Admitted, want)
	case s.Digest != g.digests[want]:
		return fmt.Errorf("egressd has a policy for %q in force that is not the signed policy's", want)
	}
	g.last = want
	return nil
}
