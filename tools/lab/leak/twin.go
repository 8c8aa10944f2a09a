package leak

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"rempart/board/netns"
	"rempart/board/scenario"
	"rempart/tools/lab/bringup"
)

// twin is a handset of a throwaway world with layers taken away.
type twin struct {
	*board
	world    string
	stripped []scenario.Layer
}

// Twin brings a world with one handset up beside this one and strips the handset. Its TPMs and keys are kept in the test's
// folder from one twin to the next: only the first pays for their making.
func (b *board) Twin(ctx context.Context, stripped []scenario.Layer) (scenario.Twin, error) {
	name := b.w.Name
	if len(name) > 26 {
		name = name[:26]
	}
	name += "-twin"
	b.options.Log(fmt.Sprintf("a twin without %v", stripped))
	w, err := netns.Start(ctx, name, filepath.Join(b.dir, "twin"))
	if err != nil {
		return nil, err
	}
	t := &twin{world: name, stripped: stripped}
	fail := func(err error) (scenario.Twin, error) { return nil, errors.Join(err, t.Close()) }
	err = bringup.Up(ctx, w, bringup.Options{State: filepath.Join(b.dir, "twin"), Handsets: 1, Bin: b.options.Bin, PIN: b.options.PIN}, nil)
	if err != nil {
		return fail(err)
	}
	status, err := w.Status(ctx)
	if err != nil {
		return fail(err)
	}
	m, ok := status.Machine("a")
	if !ok {
		return fail(errors.New("the twin's world has no handset a"))
	}
	t.board = &board{options: b.options, w: w, name: m.Name, dir: b.dir, self: b.self, site: siteOf(status, m)}
	if err := t.strip(ctx, m); err != nil {
		return fail(err)
	}
	return t, nil
}

// Close removes the twin's world.
func (t *twin) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return netns.Down(ctx, t.world)
}

// Start runs the sender in the handset's network only, not in its control group: the guard, which is of the group, is not there.
func (t *twin) Start(ctx context.Context, c scenario.Command) (scenario.Process, error) {
	if !slices.Contains(t.stripped, scenario.Guard) {
		return t.board.Start(ctx, c)
	}
	m, err := t.w.Machine(ctx, t.name)
	if err != nil {
		return nil, err
	}
	ns := map[scenario.Where]string{scenario.Red: m.Paths.Red, scenario.Black: m.Paths.Black, scenario.Init: m.Paths.Own}[c.Where]
	return startProcess(exec.Command("nsenter", append([]string{"--net=" + ns}, c.Argv...)...))
}

// Counters says that there are none: who would tell them is frozen.
func (t *twin) Counters(context.Context) (scenario.Counters, error) {
	return scenario.Counters{}, errors.New("the twin's supervisor is frozen")
}

// Restart strips the handset again, which comes up whole.
func (t *twin) Restart(ctx context.Context) error {
	if err := errors.Join(t.board.Restart(ctx), t.WaitUp(ctx)); err != nil {
		return err
	}
	m, err := t.w.Machine(ctx, t.name)
	if err != nil {
		return err
	}
	return t.strip(ctx, m)
}

// strip takes the twin's layers away.
func (t *twin) strip(ctx context.Context, m netns.Machine) error {
	return Strip(ctx, t.w, m, t.stripped)
}
