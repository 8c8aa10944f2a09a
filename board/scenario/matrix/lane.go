package matrix

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"rempart/board/scenario"
	"rempart/board/scenario/attack"
	"rempart/board/scenario/watch"
)

// lane is one board being watched while it goes through states.
type lane struct {
	board   Board
	twin    Twin // the same, where it can be stripped
	watcher *watch.Watcher
	capture io.Closer
	read    chan error
	tries   []marked // of every row so far, for frames that come late
}

// marked is a try and the marker that it carried.
type marked struct {
	marker attack.Marker
	try    *Try
}

// Bounds of one step, all waits in it together.
const (
	enterLimit  = 60 * time.Second
	crowdLimit  = 60 * time.Second
	settleLimit = 10 * time.Second
)

// How many attempts make one crowd: of those that go on all run at once.
const (
	lastingCrowd = 400
	passingCrowd = 64
)

// open starts the board's capture and returns once it is seen to account for every frame.
func open(ctx context.Context, b Board) (*lane, error) {
	watcher, err := watch.New(b.Site().Rules)
	if err != nil {
		return nil, err
	}
	in, err := b.Capture(ctx)
	if err != nil {
		return nil, err
	}
	l := &lane{board: b, watcher: watcher, capture: in, read: make(chan error, 1)}
	l.twin, _ = b.(Twin)
	go func() { l.read <- watcher.Read(ctx, in) }()
	if err := l.settle(ctx); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// settle returns once the watcher has judged every frame that has left before.
func (l *lane) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	n, err := l.board.Settle(ctx)
	if err != nil {
		return fmt.Errorf("cannot settle the capture: %w", err)
	}
	return l.watcher.Await(ctx, n)
}

// end settles once more, looks for what came late, and ends the capture.
func (l *lane) end(ctx context.Context) error {
	err := l.settle(ctx)
	for _, m := range l.tries {
		before := m.try.Seen
		if m.try.see(l.watcher, m.marker); before == 0 && m.try.Seen > 0 {
			m.try.Detail += ", after its row"
		}
	}
	return errors.Join(err, l.close())
}

func (l *lane) close() error {
	err := l.capture.Close()
	select {
	case e := <-l.read:
		return errors.Join(err, e)
	case <-time.After(settleLimit):
		return errors.Join(err, errors.New("cannot end the capture: it goes on"))
	}
}

// attempt is a row with a place for its end.
type attempt struct {
	row Row
	try *Try
}

// state tries rows of one state. kept are the layers that a twin keeps.
func (l *lane) state(ctx context.Context, s State, all []attempt, kept []scenario.Layer) []error {
	size := passingCrowd
	if s.Lasts() {
		size = lastingCrowd
	}
	// In a state that lasts, who waits for a device is apart from those whose end
	// the device would have to wait for. In one that passes, who may bring up a device
	// that nobody knows is apart from those for whom the state must pass.
	var rest, apart []attempt
	for _, a := range all {
		if s.Lasts() && a.newborn() || !s.Lasts() && a.row.Device == Unknown {
			apart = append(apart, a)
		} else {
			rest = append(rest, a)
		}
	}
	crowds := [][]attempt{rest, apart}
	var errs []error
	for _, part := range crowds {
		for chunk := range chunks(part, size) {
			errs = append(errs, l.crowd(ctx, s, chunk, kept))
		}
	}
	return errs
}

// newborn says that the sender waits for a device that appears while it is at work.
func (a attempt) newborn() bool {
	s, ok := senderOf(a.row.Sender)
	return ok && s.Kind == attack.Hotplug
}

// chunks splits in parts of about the same size, none larger than most.
func chunks(all []attempt, most int) func(func([]attempt) bool) {
	n := (len(all) + most - 1) / most
	return func(yield func([]attempt) bool) {
		for i := range n {
			if !yield(all[i*len(all)/n : (i+1)*len(all)/n]) {
				return
			}
		}
	}
}

// crowd tries rows at the same time. It returns an error for frames outside
// that no row accounts for.
func (l *lane) crowd(ctx context.Context, s State, all []attempt, kept []scenario.Layer) error {
	strange := l.watcher.Outside()
	e, err := l.attempt(ctx, s, all, kept)
	// Even after an error: what was seen outside counts before all else.
	err = errors.Join(err, l.settle(context.WithoutCancel(ctx)))
	counted := 0
	for i, a := range all {
		e[i].row, e[i].err = a.row, err
		a.try.Ran = l.board.Name()
		a.try.Verdict, a.try.Detail = judge(e[i].evidence)
		a.try.Sent = 0
		if r := e[i].result; r != nil {
			a.try.Sent = r.Sent
		}
		a.try.see(l.watcher, e[i].marker)
		counted += a.try.Seen
		l.tries = append(l.tries, marked{e[i].marker, a.try})
	}
	if n := l.watcher.Outside() - strange; n > counted && l.twin == nil {
		return fmt.Errorf("state %s: %d frames outside the admitted classes%s", s, n, l.firstStrange(strange))
	}
	return err
}

// firstStrange names the first frame outside after the first n.
func (l *lane) firstStrange(n int) string {
	if all := l.watcher.Strange(); n < len(all) {
		return fmt.Sprintf(", first frame %d of %s: %s", all[n].Frame, l.board.File(), all[n].What)
	}
	return " in " + l.board.File()
}

// told is what is known of one row of a crowd.
type told struct {
	evidence
	marker attack.Marker
}

// attempt makes the crowd's attempts.
func (l *lane) attempt(ctx context.Context, s State, all []attempt, kept []scenario.Layer) (out []told, err error) {
	out = make([]told, len(all))
	byMarker := map[string]int{}
	var jobs []attack.Job
	for i, a := range all {
		rand.Read(out[i].marker[:]) // never fails: crypto/rand ends the program instead
		j, err := a.row.job(l.board.Site(), out[i].marker)
		if err != nil {
			return out, err
		}
		if err := l.watcher.Mark(watch.Marker(j.Marker), attack.Traces(j.Kind, j.Family, j.Marker)...); err != nil {
			return out, err
		}
		byMarker[j.Marker.String()] = i
		jobs = append(jobs, j)
	}
	ectx, cancel := context.WithTimeout(ctx, enterLimit)
	defer cancel()
	if err := l.board.Enter(ectx, s); err != nil {
		return out, fmt.Errorf("cannot enter state %s: %w", s, err)
	}
	defer func() {
		lctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), enterLimit)
		defer cancel()
		if lerr := l.board.Leave(lctx, s); lerr != nil {
			err = errors.Join(err, fmt.Errorf("cannot leave state %s: %w", s, lerr))
		}
	}()
	if l.twin != nil {
		if err := l.twin.Strip(ectx, kept); err != nil {
			return out, err
		}
	}
	cctx, stop := context.WithTimeout(ctx, crowdLimit)
	defer stop()
	newborn := slices.ContainsFunc(all, attempt.newborn)
	var devices []string
	if slices.ContainsFunc(all, func(a attempt) bool { return a.row.Device == Unknown && !a.newborn() }) {
		devices = append(devices, pluggedDevice)
		if err := l.board.Plug(cctx, pluggedDevice); err != nil {
			return out, err
		}
	}
	if newborn {
		devices = append(devices, newbornDevice)
	}
	defer func() {
		for _, d := range devices {
			// With the handset its devices went, too.
			if uerr := l.board.Unplug(context.WithoutCancel(ctx), d); uerr != nil && !s.Ends() {
				err = errors.Join(err, uerr)
			}
		}
	}()
	before, berr := l.board.Tunnelled(cctx)
	c := &company{ctx: cctx, board: l.board, byMarker: byMarker, out: out}
	defer c.close()
	if err := c.start(all, jobs); err != nil {
		return out, err
	}
	if !s.Lasts() || newborn {
		if err := c.ready(); err != nil {
			return out, err
		}
		for i := range out {
			out[i].began = true
		}
	}
	if newborn {
		if err := l.board.Plug(cctx, newbornDevice); err != nil {
			return out, err
		}
	}
	if !s.Lasts() {
		herr := l.board.Happen(cctx, s)
		if errors.Is(herr, ErrLost) && all[0].row.Device == Unknown {
			herr = nil
		}
		if err := errors.Join(herr, c.stop()); err != nil {
			return out, fmt.Errorf("state %s: %w", s, err)
		}
	}
	if err := c.finish(); err != nil {
		return out, err
	}
	after, aerr := l.board.Tunnelled(cctx)
	sent := uint64(0)
	for i, a := range all {
		if r := out[i].result; r != nil && a.row.Place == Red {
			sent += uint64(r.Sent)
		}
	}
	for i := range out {
		out[i].tunnelled = berr == nil && aerr == nil && after >= before+sent
	}
	return out, nil
}
