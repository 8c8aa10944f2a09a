package soak

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"rempart/board/netns"
	"rempart/board/scenario/attack"
	"rempart/boot/stage"
	"rempart/tools/lab/bringup"
	"rempart/tools/lab/leak"
)

// Options say how much.
type Options struct {
	World    string        // "" is "soak"
	Dir      string        // of the state, the capture and the world; required
	Bin      string        // folder of the programs; "" means that of this program
	PIN      string        // "" means bringup.DefaultPIN
	Swaps    int           // of the policy
	Kills    int           // of each daemon
	Handsets int           // side by side; 0 is 3
	For      time.Duration // end in order after so long, to be resumed; 0 is no limit
	Resume   bool          // go on where the state in Dir is
	Log      func(string)  // nil is silent
}

// The rates of senders and swaps.
const (
	senderEvery = time.Millisecond
	redEvery    = 5 * time.Millisecond
	swapPause   = time.Millisecond
	innerNth    = 50
)

// runner is one session.
type runner struct {
	o    Options
	self string
	w    *netns.World
	p    *progress
	out  *outside

	mu    sync.Mutex
	begun int // rounds begun of the whole soak, so that handsets share the work; 0 is none yet
	tally tally
}

// errTime ends a session that is to be resumed.
var errTime = errors.New("time is up")

// Run brings a world up and soaks it until all is done, time is up or something does not hold. The summary is complete in every case.
func Run(ctx context.Context, o Options) (*Summary, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	p, err := load(o.Dir, o.Resume, o.Swaps, o.Kills)
	if err != nil {
		return nil, err
	}
	r := &runner{o: o, p: p, self: filepath.Join(o.Bin, "rempart-lab")}
	began := time.Now()
	before := p.look()
	limit := context.WithoutCancel(ctx)
	if o.For > 0 {
		var stop context.CancelFunc
		limit, stop = context.WithTimeoutCause(limit, o.For, errTime)
		defer stop()
	}
	limit, stop := context.WithCancelCause(limit)
	defer context.AfterFunc(ctx, func() { stop(errors.New("interrupted")) })()
	ran := r.session(limit)
	ended := "done"
	switch {
	case ran != nil && context.Cause(limit) != nil:
		ended, ran = context.Cause(limit).Error(), nil
	case ran != nil:
		ended = ran.Error()
	}
	err = p.change(func(s *Summary) {
		took := time.Since(began).Seconds()
		s.Seconds += took
		one := Session{Started: began.UTC(), Seconds: took, Swaps: s.Swaps.Done - before.Swaps.Done, Capture: filepath.Join(o.Dir, "session.pcapng"), Ended: ended}
		for d, c := range s.Kills {
			one.Kills += c.Done - before.Kills[d].Done
		}
		s.Sessions = append(s.Sessions, one)
		if ran != nil {
			s.Failures = append(s.Failures, ran.Error())
		}
	})
	result := p.look()
	return &result, errors.Join(err, result.Err())
}

func (o Options) complete() (Options, error) {
	if o.Dir == "" || o.Swaps < 0 || o.Kills < 0 || o.Handsets < 0 {
		return o, errors.New("cannot soak: no folder, or a count below zero")
	}
	var err error
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return o, fmt.Errorf("cannot use the folder of the soak: %w", err)
	}
	if o.Bin == "" {
		self, err := os.Executable()
		if err != nil {
			return o, fmt.Errorf("cannot find the programs: %w", err)
		}
		o.Bin = filepath.Dir(self)
	}
	if o.World == "" {
		o.World = "soak"
	}
	if o.PIN == "" {
		o.PIN = bringup.DefaultPIN
	}
	if o.Handsets == 0 {
		o.Handsets = 3
	}
	if o.Log == nil {
		o.Log = func(string) {}
	}
	return o, nil
}

// session is one world from its first to its last frame.
func (r *runner) session(ctx context.Context) (err error) {
	state := filepath.Join(r.o.Dir, "world") // kept: the TPMs and keys of the first session serve the next
	r.w, err = netns.Start(ctx, r.o.World, state)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.w.Release(), netns.Down(context.WithoutCancel(ctx), r.o.World)) }()
	gateway := netns.Machine{Role: stage.Gateway, Number: gatewayNumber, Radio: netns.RadioOf(bringup.GatewayName, gatewayNumber)}
	plan := &netns.Status{Machines: []netns.Machine{gateway}}
	for _, h := range bringup.Handsets(r.o.Handsets) {
		plan.Machines = append(plan.Machines, netns.Machine{Name: h.Name, Role: stage.Handset, Number: h.Number, Radio: netns.RadioOf(h.Name, h.Number)})
	}
	if r.out, err = observe(ctx, r.w, r.o.Dir, leak.Rules(plan)); err != nil {
		return err
	}
	err = r.soak(ctx, plan)
	seen, oerr := r.out.end()
	return errors.Join(err, oerr, r.p.change(func(s *Summary) {
		s.Frames += seen.Frames
		s.Outside += seen.Outside
		for _, strange := range seen.Strange {
			s.Failures = append(s.Failures, fmt.Sprintf("outside: %s on %s at %s", strange.What, strange.Interface, strange.At.UTC().Format(time.RFC3339Nano)))
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		s.Sent += r.tally.Tried
		s.Refused += r.tally.Refused
	}))
}

// gatewayNumber is the lab's gateway's.
const gatewayNumber = 1

// soak runs senders, then swaps on the first handset, then kills on all of them.
func (r *runner) soak(ctx context.Context, plan *netns.Status) error {
	var handsets []*handset
	for _, m := range plan.Machines[1:] {
		h, err := r.handset(m, plan.Machines[0])
		if err != nil {
			return err
		}
		handsets = append(handsets, h)
	}
	sending, quiet := context.WithCancel(context.WithoutCancel(ctx))
	var senders sync.WaitGroup
	for _, h := range handsets {
		for place := range h.markers {
			senders.Go(func() { h.sendFrom(sending, place) })
		}
	}
	defer func() { quiet(); senders.Wait() }()
	if err := bringup.Up(ctx, r.w, bringup.Options{State: filepath.Join(r.o.Dir, "world"), Handsets: r.o.Handsets, Bin: r.o.Bin, PIN: r.o.PIN}, nil); err != nil {
		return err
	}
	r.o.Log("the world is up; " + new(r.p.look()).Left())
	if err := r.swaps(ctx, handsets[0]); err != nil {
		return err
	}
	if err := r.kills(ctx, handsets); err != nil {
		return err
	}
	quiet()
	senders.Wait()
	for _, h := range handsets {
		for place, m := range h.markers {
			if n, err := r.out.seen(context.WithoutCancel(ctx), m); err != nil || n > 0 {
				err = errors.Join(err, r.p.change(func(s *Summary) {
					s.Markers += n
					s.Failures = append(s.Failures, fmt.Sprintf("%d frames with the marker of the sender from %s of %s", n, place, h.name))
				}))
				if err != nil {
					return err
				}
			}
		}
	}
	return ctx.Err()
}

func (r *runner) handset(m, gateway netns.Machine) (*handset, error) {
	h := &handset{r: r, name: m.Name, markers: map[string]attack.Marker{}}
	for _, place := range []string{fromBlack, fromRed, fromOutside} {
		marker, err := r.out.marker()
		if err != nil {
			return nil, err
		}
		h.markers[place] = marker
	}
	if _, err := net.ParseMAC(m.Radio.RouterMAC); err != nil {
		return nil, err
	}
	h.order = sending{Radio: m.Radio.Device, NextHop: m.Radio.RouterMAC, Port: leak.TunnelPort, EveryUS: int(senderEvery.Microseconds()),
		Tunnel: "wg0", TellMS: 100, InnerNth: innerNth}
	h.order.Source[0], h.order.Source[1] = m.Radio.V4.Addr(), m.Radio.V6.Addr()
	h.order.Gateway[0], h.order.Gateway[1] = gateway.Radio.V4.Addr(), gateway.Radio.V6.Addr()
	inner := bringup.Inner(gateway.Number)
	h.order.Inner[0], h.order.Inner[1] = inner[0], inner[1]
	for _, a := range netns.InternetHosts() {
		switch {
		case a.Is6():
			h.order.Host[1] = a
		case !h.order.Host[0].IsValid():
			h.order.Host[0] = a
		}
	}
	return h, nil
}

// swaps does what is left of the swaps.
func (r *runner) swaps(ctx context.Context, h *handset) error {
	left := r.p.look().Swaps
	if left.Done >= left.Of {
		return nil
	}
	open, err := r.out.marker()
	if err != nil {
		return err
	}
	closed, err := r.out.marker()
	if err != nil {
		return err
	}
	m, err := h.open(ctx, "", 0)
	if err != nil {
		return err
	}
	names, err := daemons(m)
	if err != nil {
		return err
	}
	look := func(before map[string]held) (map[string]held, error) {
		all := map[string]held{}
		for _, name := range append(names, "init") {
			pid := m.PID
			if name != "init" {
				if pid, err = pidOf(m, name); err != nil {
					return nil, err
				}
			}
			if before == nil {
				all[name], err = lookAt(pid)
			} else {
				all[name], err = lookAgain(ctx, pid, before[name])
			}
			if err != nil {
				return nil, err
			}
		}
		return all, nil
	}
	order := swapping{Socket: "/run/rempart/egressd.sock", At: h.order.Gateway, Port: h.order.Port, Open: open.String(), Closed: closed.String(),
		PauseUS: int(swapPause.Microseconds())}
	var last swapped
	told := func(s swapped) error {
		last, s = s, swapped{s.Swaps - last.Swaps, s.Open - last.Open, s.Closed - last.Closed, s.Refused - last.Refused}
		return r.p.change(func(sum *Summary) {
			sum.Swaps.Done += s.Swaps
			sum.OpenSent += s.Open
			sum.ClosedSent += s.Closed
		})
	}
	// The first few fill caches and heaps; growth is what comes after them.
	order.Swaps = min(2*tellEvery, left.Of-left.Done)
	err = h.swap(ctx, order, told)
	var before, after map[string]held
	if err == nil {
		before, err = look(nil)
	}
	if rest := left.Of - left.Done - order.Swaps; err == nil && rest > 0 {
		last, order.Swaps = swapped{}, rest
		err = h.swap(ctx, order, told)
	}
	if err == nil {
		after, err = look(before)
	}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		err = errors.Join(err, r.grew(name, "swaps", order.Swaps, before[name], after[name]))
	}
	// Also after an error: what was seen counts.
	count := func(m attack.Marker) int {
		n, serr := r.out.seen(context.WithoutCancel(ctx), m)
		err = errors.Join(err, serr)
		return n
	}
	openSeen, closedSeen := count(open), count(closed)
	return errors.Join(err, r.p.change(func(s *Summary) {
		s.OpenSeen += openSeen
		s.ClosedSeen += closedSeen
	}))
}

// kills does what is left of the kills, the handsets sharing the rounds.
func (r *runner) kills(ctx context.Context, handsets []*handset) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var all sync.WaitGroup
	errs := make([]error, len(handsets))
	for i, h := range handsets {
		all.Go(func() {
			for r.claim() && ctx.Err() == nil {
				if errs[i] = h.round(ctx, r.killed); errs[i] != nil {
					errs[i] = fmt.Errorf("%s: %w", h.name, errs[i])
					stop() // one that does not recover is the result
					return
				}
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// claim takes one round if some is left that no handset has begun.
func (r *runner) claim() bool {
	least := r.o.Kills
	s := r.p.look()
	for _, c := range s.Kills {
		least = min(least, c.Done)
	}
	if len(s.Kills) == 0 {
		least = 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.begun == 0 {
		r.begun = least
	}
	if r.begun >= r.o.Kills {
		return false
	}
	r.begun++
	return true
}

func (r *runner) killed(daemon string) error {
	return r.p.change(func(s *Summary) {
		c := s.Kills[daemon]
		c.Done, c.Of = c.Done+1, r.o.Kills
		s.Kills[daemon] = c
		if daemon == "init" && c.Done%25 == 0 {
			r.o.Log(s.Left())
		}
	})
}

// grew keeps a comparison, of each process and reason the worst.
func (r *runner) grew(process, during string, times int, before, after held) error {
	g := Growth{process, during, times, [2]int{before.memoryKB, after.memoryKB}, [2]int{before.files, after.files}}
	return r.p.change(func(s *Summary) {
		for i, old := range s.Growth {
			if old.Process != process || old.During != during {
				continue
			}
			if !old.bad() && (g.bad() || g.MemoryKB[1]-g.MemoryKB[0] > old.MemoryKB[1]-old.MemoryKB[0]) {
				s.Growth[i] = g
			}
			return
		}
		s.Growth = append(s.Growth, g)
	})
}

// sent adds up what a sender did.
func (r *runner) sent(t tally) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tally.Tried += t.Tried
	r.tally.Refused += t.Refused
}
