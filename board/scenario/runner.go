package scenario

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"rempart/board/scenario/attack"
	"rempart/board/scenario/watch"
)

// Runner runs the leak test on one handset.
type Runner struct {
	// Board is the handset, up. Required.
	Board Board
	// Sender are the words before the attack's own arguments: an absolute path
	// of the desk machine, and the hidden command. Required.
	Sender []string
	// Rows to run; nil is Rows(Board.Site()).
	Rows []Row
	// Progress is told of each row as it ends, twin included; nil is silent.
	Progress func(RowResult)
	// RowTimeout bounds one row; 0 is 20 s.
	RowTimeout time.Duration
}

// LeakTest runs every row and its twin. The report is complete even when the
// test fails, and says why; error is for a test that could not be started.
func (r *Runner) LeakTest(ctx context.Context) (*LeakReport, error) {
	began := time.Now()
	site := r.Board.Site()
	if err := site.check(); err != nil {
		return nil, err
	}
	if len(r.Sender) == 0 {
		return nil, errors.New("cannot run the leak test: no sender given")
	}
	rows := r.Rows
	if rows == nil {
		rows = Rows(site)
	}
	real, err := r.watch(ctx, r.Board)
	if err != nil {
		return nil, fmt.Errorf("cannot run the leak test: %w", err)
	}
	report := &LeakReport{Rows: make([]RowResult, len(rows))}
	halves := &halves{report: report, progress: r.Progress, have: make([]int, len(rows))}
	// The twins are in worlds of their own: they run beside the real rows.
	twins := make(chan struct{})
	go func() {
		defer close(twins)
		r.twins(ctx, rows, halves.twin)
	}()
	for i, row := range rows {
		halves.row(i, real.row(ctx, row))
	}
	end := real.end(ctx)
	<-twins
	report.Outside = real.watcher.Summary()
	// A marker may still have come out after its row: a retransmission, a queue.
	for i := range report.Rows {
		if n := real.late(i); n > report.Rows[i].Seen {
			report.Rows[i].Seen, report.Rows[i].Verdict, report.Rows[i].Detail = n, Leaked, "after its row"
		}
	}
	report.finish(end)
	report.Seconds = time.Since(began).Seconds()
	return report, nil
}

// halves puts rows and their twins together as each ends.
type halves struct {
	mu       sync.Mutex
	report   *LeakReport
	progress func(RowResult)
	have     []int // halves by row
}

func (h *halves) row(i int, r RowResult) {
	h.put(i, func(to *RowResult) { r.Twin = to.Twin; *to = r })
}

func (h *halves) twin(i int, t TwinResult) { h.put(i, func(to *RowResult) { to.Twin = t }) }

func (h *halves) put(i int, set func(*RowResult)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	set(&h.report.Rows[i])
	if h.have[i]++; h.have[i] == 2 && h.progress != nil {
		done := h.report.Rows[i]
		done.settle()
		h.progress(done)
	}
}

// twins runs each group of rows in one throwaway world, and tells each result under its row's index.
func (r *Runner) twins(ctx context.Context, rows []Row, tell func(int, TwinResult)) {
	for _, group := range groups(rows) {
		var members []Row
		for _, i := range group {
			members = append(members, rows[i])
		}
		stripped := strip(members)
		told := 0
		if err := ctx.Err(); err != nil {
			for _, i := range group {
				tell(i, TwinResult{Verdict: Broken, Detail: err.Error(), Stripped: stripped})
			}
			continue
		}
		err := r.twin(ctx, members, stripped, func(res RowResult) {
			tell(group[told], TwinResult{Verdict: res.Verdict, Detail: res.Detail, Seen: res.Seen, Stripped: stripped})
			told++
		})
		for ; told < len(group); told++ {
			t := TwinResult{Verdict: Broken, Stripped: stripped}
			if err != nil {
				t.Detail = err.Error()
			}
			tell(group[told], t)
		}
	}
}

func (r *Runner) twin(ctx context.Context, rows []Row, stripped []Layer, done func(RowResult)) (err error) {
	twin, err := r.Board.Twin(ctx, slices.Clone(stripped))
	if err != nil {
		return fmt.Errorf("cannot make the twin: %w", err)
	}
	defer func() { err = errors.Join(err, twin.Close()) }()
	w, err := r.watch(ctx, twin)
	if err != nil {
		return fmt.Errorf("cannot watch the twin: %w", err)
	}
	w.twin = true
	for _, row := range rows {
		done(w.row(ctx, row))
	}
	return w.end(ctx)
}

// groups splits rows into those that can share one twin: from red (its radio
// must not help the others), the other rows without event, and those with one,
// whose world is used up. The killed init comes last.
func groups(rows []Row) [][]int {
	var red, rest, events []int
	for i, r := range rows {
		switch {
		case r.Event != None:
			events = append(events, i)
		case r.From == Red:
			red = append(red, i)
		default:
			rest = append(rest, i)
		}
	}
	slices.SortStableFunc(events, func(a, b int) int { return order(rows[a].Event) - order(rows[b].Event) })
	return slices.DeleteFunc([][]int{red, rest, events}, func(g []int) bool { return len(g) == 0 })
}

func order(e Event) int { return slices.Index([]Event{HotPlug, Kill, Restart, KillInit}, e) }

// world is one board being watched.
type world struct {
	*Runner
	board   Board
	site    Site
	twin    bool
	watcher *watch.Watcher
	capture io.Closer
	read    chan error
	markers [][]watch.Marker // by row
	last    *Counters        // of the end of the row before, if nothing was restarted since
}

// watch starts the capture and returns once it is seen to account for every frame.
func (r *Runner) watch(ctx context.Context, b Board) (*world, error) {
	site := b.Site()
	watcher, err := watch.New(site.Rules)
	if err != nil {
		return nil, err
	}
	in, err := b.Capture(ctx)
	if err != nil {
		return nil, err
	}
	w := &world{Runner: r, board: b, site: site, watcher: watcher, capture: in, read: make(chan error, 1)}
	go func() { w.read <- watcher.Read(ctx, in) }()
	if err := w.settle(ctx); err != nil {
		return nil, errors.Join(err, w.stop())
	}
	return w, nil
}

// settleTimeout bounds the wait for a capture to show what has left.
const settleTimeout = 5 * time.Second

// settle returns once the watcher has judged every frame that has left a radio before.
func (w *world) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	n, err := w.board.Settle(ctx)
	if err != nil {
		return fmt.Errorf("cannot settle the capture: %w", err)
	}
	return w.watcher.Await(ctx, n)
}

// end lets the capture catch up once more and closes it.
func (w *world) end(ctx context.Context) error {
	return errors.Join(w.settle(ctx), w.stop())
}

func (w *world) stop() error {
	err := w.capture.Close()
	select {
	case e := <-w.read:
		return errors.Join(err, e)
	case <-time.After(settleTimeout):
		return errors.Join(err, errors.New("cannot end the capture: it goes on"))
	}
}

func (w *world) late(row int) int {
	n := 0
	for _, m := range w.markers[row] {
		seen, _ := w.watcher.Seen(m)
		n += seen
	}
	return n
}

func newMarker() attack.Marker {
	var m attack.Marker
	rand.Read(m[:]) // never fails: crypto/rand ends the program instead
	return m
}

// row makes one attempt and judges it.
func (w *world) row(ctx context.Context, row Row) RowResult {
	if err := ctx.Err(); err != nil {
		// Whoever called does not want the rest; each row still has its line.
		w.markers = append(w.markers, nil)
		return RowResult{Name: row.Name, From: row.From, Kind: string(row.Kind), Family: row.FamilyName(), Layers: row.Stops, want: row.Want,
			Verdict: Broken, Detail: err.Error()}
	}
	limit := w.RowTimeout
	if limit == 0 {
		limit = 20 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out := RowResult{Name: row.Name, From: row.From, Kind: string(row.Kind), Family: row.FamilyName(), Layers: row.Stops, want: row.Want}
	strange := w.watcher.Outside()
	var markers []watch.Marker
	e, err := w.attempt(ctx, row, &markers)
	w.markers = append(w.markers, markers)
	// Even after an error: what was seen outside counts before all else.
	if berr := w.settle(context.WithoutCancel(ctx)); berr != nil {
		err = errors.Join(err, berr)
	}
	for _, m := range markers {
		n, _ := w.watcher.Seen(m)
		e.seen += n
	}
	for _, r := range e.results {
		out.Sent += r.Sent
	}
	out.Seen, out.Strange = e.seen, w.watcher.Outside()-strange
	switch {
	case err != nil && e.seen == 0:
		out.Verdict, out.Detail = Broken, err.Error()
	default:
		out.Verdict, out.Detail = judge(e)
	}
	return out
}
