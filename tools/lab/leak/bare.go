package leak

import (
	"context"
	"errors"
	"slices"
	"time"

	"rempart/board/scenario"
	"rempart/board/scenario/matrix"
	"rempart/tools/lab/bringup"
)

// bare is the twin of the matrix: in any state, a handset that is then stripped.
//
// It stays stripped from one state to the next where only a daemon's life differs: with its supervisors frozen a daemon can be
// frozen or killed, but nothing follows from it.
type bare struct {
	*stand
	kept []scenario.Layer // nil while the handset is whole
	base matrix.State     // what it was before it was stripped
}

// base is the state that another begins in.
func base(s matrix.State) matrix.State {
	_, killed, frozen := s.Daemon()
	switch {
	case killed, frozen, s == matrix.Rekeying, s == matrix.Swapping:
		return matrix.Connected
	case s == matrix.Error, s == matrix.Reconfiguring:
		return matrix.Connecting
	}
	return s
}

// bareSpan is how long senders go on in a stripped twin when that to which it was led has happened: nothing is concluded from it.
const bareSpan = 300 * time.Millisecond

// endSpan is the same before the handset ends: a device that has just come up carries nothing until the kernel has looked at it,
// which it does once a second.
const endSpan = 1500 * time.Millisecond

// Layers are those that stop anything on this board, in the order of the tables.
func (b *bare) Layers() []scenario.Layer { return scenario.AllLayers() }

// Enter makes a handset whole that was stripped, and brings it to where the state begins.
func (b *bare) Enter(ctx context.Context, s matrix.State) error {
	if b.kept != nil && b.base == base(s) && len(b.kept) == 0 {
		d, _, frozen := s.Daemon()
		if !frozen || slices.Contains(supervisors, d) {
			return nil // frozen already, and not to be woken by Leave
		}
		b.frozen = append(b.frozen, d)
		return b.freeze(ctx, b.name, d, true)
	}
	if b.kept != nil {
		if err := b.whole(ctx); err != nil {
			return err
		}
	}
	b.base = base(s)
	return b.stand.Enter(ctx, s)
}

// whole restarts a stripped handset; its frozen init could not switch off.
func (b *bare) whole(ctx context.Context) error {
	b.outside, b.kept = false, nil
	var errs []error
	for _, group := range supervisors {
		errs = append(errs, b.freeze(ctx, b.name, group, false))
	}
	return errors.Join(append(errs, b.Restart(ctx))...)
}

// Strip takes away all layers but the kept ones. Without the guard, senders run outside its reach.
func (b *bare) Strip(ctx context.Context, kept []scenario.Layer) error {
	if b.kept != nil {
		return nil // it still is
	}
	b.kept = append([]scenario.Layer{}, kept...)
	b.outside = !slices.Contains(kept, scenario.Guard)
	if slices.Contains(kept, scenario.Newborn) {
		// What keeps a new device down is init itself: it stays awake, and with it all that it would repair.
		return nil
	}
	m, err := b.w.Machine(ctx, b.name)
	if err != nil {
		return err
	}
	away := slices.DeleteFunc(b.Layers(), func(l scenario.Layer) bool { return slices.Contains(kept, l) })
	return Strip(ctx, b.w, m, away)
}

// Happen lets happen what can still happen without a supervisor.
func (b *bare) Happen(ctx context.Context, s matrix.State) error {
	var err error
	switch s {
	case matrix.Rekeying, matrix.Error, matrix.Reconfiguring:
		err = b.freeze(ctx, bringup.GatewayName, "", true)
	case matrix.Restart, matrix.Shutdown:
		if err := wait(ctx, endSpan); err != nil {
			return err
		}
		b.base = ""
		return b.w.PowerOff(ctx, b.name, 0)
	case matrix.KilledInit:
		if err := wait(ctx, endSpan); err != nil {
			return err
		}
		b.base = ""
		return b.KillInit(ctx)
	default:
		// One that an earlier crowd of this state has killed was not started again.
		if d, killed, _ := s.Daemon(); killed {
			if _, _, gone := b.processes(ctx, d); gone == nil {
				err = b.KillDaemon(ctx, d)
			}
		}
	}
	return errors.Join(err, wait(ctx, bareSpan))
}

// wait gives senders time to send.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
