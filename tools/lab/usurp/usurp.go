package usurp

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"rempart/board/netns"
	"rempart/board/scenario/attack"
	"rempart/board/scenario/watch"
	"rempart/boot/stage"
	"rempart/tools/lab/bringup"
	"rempart/tools/lab/leak"
)

// Options say on which handset.
type Options struct {
	World   *netns.World
	Machine string
	Bin     string // folder of rempart-lab, the program that takes tunneld's place
	Bare    bool   // the twin: the handset was stripped, and the program runs outside its control group, as root in black
	Rows    func(Row) bool
	Done    func(Result) // each as it ends; nil is silent
}

// Result is how one try ended, of one family, with or without tunneld's filter.
type Result struct {
	Row       string        `json:"row"`
	Family    attack.Family `json:"family"`
	Sandboxed bool          `json:"sandboxed"`
	Outcome   Outcome       `json:"outcome"`
	Want      Outcome       `json:"want"`
	Detail    string        `json:"detail"`
	Seen      int           `json:"seen"`
}

// Held tells whether it ended as the row demands. With the filter a try may be refused that is left to the worst case.
func (r Result) Held() bool {
	return r.Outcome == r.Want || r.Sandboxed && r.Want == Left && r.Outcome == Stopped
}

// test is one run.
type test struct {
	o        Options
	m        netns.Machine
	self     string
	jobs     attack.Job // what all have in common
	source   [2]netip.Addr
	hosts    [2]netip.Addr
	gateway  [2]netip.Addr
	inner    []netip.Addr
	admitted string
	capture  *netns.Capture
	watcher  *watch.Watcher
}

// Run makes all tries and returns how each ended. An error is a run that proves nothing.
func Run(ctx context.Context, o Options) (results []Result, err error) {
	t := &test{o: o, self: filepath.Join(o.Bin, "rempart-lab")}
	if t.self, err = filepath.Abs(t.self); err != nil {
		return nil, err
	}
	if o.Done == nil {
		t.o.Done = func(Result) {}
	}
	if err := t.plan(ctx); err != nil {
		return nil, err
	}
	end, err := t.observe(ctx)
	if err != nil {
		return nil, err
	}
	for _, row := range Rows() {
		if o.Rows != nil && !o.Rows(row) {
			continue
		}
		for _, sandboxed := range []bool{false, true} {
			if sandboxed && o.Bare {
				continue
			}
			for _, f := range row.Families {
				r := t.try(ctx, row, f, sandboxed)
				results = append(results, r)
				t.o.Done(r)
			}
		}
	}
	return results, end()
}

// plan learns the world's addresses.
func (t *test) plan(ctx context.Context) error {
	status, err := t.o.World.Status(ctx)
	if err != nil {
		return err
	}
	m, ok := status.Machine(t.o.Machine)
	if !ok || m.Role != stage.Handset {
		return fmt.Errorf("cannot test %q: it is no handset of world %s", t.o.Machine, status.World)
	}
	t.m = m
	rules := leak.Rules(status)
	for i := range rules.Classes {
		rules.Classes[i].WireGuard = false // who sends there is the question, not what
	}
	if t.watcher, err = watch.New(rules); err != nil {
		return err
	}
	t.source = [2]netip.Addr{m.Radio.V4.Addr(), m.Radio.V6.Addr()}
	for _, g := range status.Machines {
		if g.Role == stage.Gateway {
			t.gateway = [2]netip.Addr{g.Radio.V4.Addr(), g.Radio.V6.Addr()}
			t.inner = append(t.inner, bringup.Inner(g.Number)...)
		}
	}
	t.inner = append(t.inner, bringup.Inner(m.Number+1)...)
	for _, a := range netns.InternetHosts() {
		switch {
		case a.Is6():
			t.hosts[1] = a
		case !t.hosts[0].IsValid():
			t.hosts[0] = a
		}
	}
	next, err := net.ParseMAC(m.Radio.RouterMAC)
	if err != nil {
		return err
	}
	t.jobs = attack.Job{Device: m.Radio.Device, NextHop: next, Count: 1}
	if t.o.Bare {
		return nil
	}
	s, err := bringup.StatusOf(ctx, t.o.World, m.Name)
	if err != nil {
		return err
	}
	if s.Gate == nil || s.Gate.Admitted == "" {
		return errors.New("cannot test a hostile tunneld: no gateway is admitted, so nothing it did could be seen")
	}
	t.admitted = s.Gate.Admitted
	return nil
}

// observe starts the capture; end closes it.
func (t *test) observe(ctx context.Context) (end func() error, err error) {
	dir, err := os.MkdirTemp("", "rempart-usurp-")
	if err != nil {
		return nil, fmt.Errorf("cannot make a folder for the capture: %w", err)
	}
	file := filepath.Join(dir, "air.pcapng")
	if t.capture, err = t.o.World.Capture(context.WithoutCancel(ctx), file); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	in, err := os.Open(file)
	if err != nil {
		_, stop := t.capture.Stop()
		return nil, errors.Join(err, stop, os.RemoveAll(dir))
	}
	tail := watch.NewTail(in)
	read := make(chan error, 1)
	go func() { read <- t.watcher.Read(context.WithoutCancel(ctx), tail) }()
	return func() error {
		result, err := t.capture.Stop()
		if err == nil && !result.Complete() {
			err = fmt.Errorf("the capture is not whole: %+v %s", result.Ports, result.Error)
		}
		tail.Finish()
		return errors.Join(err, <-read, in.Close(), os.RemoveAll(dir))
	}, nil
}

// try makes one try and judges it by what was seen outside before all else.
func (t *test) try(ctx context.Context, row Row, f attack.Family, sandboxed bool) Result {
	out := Result{Row: row.Name, Family: f, Sandboxed: sandboxed, Want: row.Want}
	broken := func(err error) Result {
		out.Outcome, out.Detail = Broken, err.Error()
		return out
	}
	var m attack.Marker
	rand.Read(m[:]) // never fails: crypto/rand ends the program instead
	if err := t.watcher.Mark(watch.Marker(m)); err != nil {
		return broken(err)
	}
	did, err := t.attempt(ctx, row, f, m, sandboxed)
	sightings, n, serr := t.seen(ctx, m)
	out.Seen = n
	for _, s := range sightings {
		if s.Class == "" && !(row.Want == Left && t.toGateway(s.What, f)) {
			out.Outcome, out.Detail = Leaked, s.What
			return out
		}
	}
	switch {
	case err != nil || serr != nil:
		return broken(errors.Join(err, serr))
	case did.Granted != "":
		out.Outcome, out.Detail = Granted, did.Granted
	case n > 0:
		out.Outcome, out.Detail = Left, fmt.Sprintf("%d frames", n)
	case did.Refused != "":
		out.Outcome, out.Detail = Stopped, did.Refused
	default:
		out.Outcome, out.Detail = Stopped, "dropped"
	}
	return out
}

// toGateway tells of a frame that no class of the watcher describes whether the gateway is where it goes.
func (t *test) toGateway(what string, f attack.Family) bool {
	g := t.gateway[0]
	if f == attack.IPv6 {
		g = t.gateway[1]
	}
	return strings.HasSuffix(what, " to "+g.String()) || strings.HasSuffix(what, " to "+netip.AddrPortFrom(g, tunnelPort).String())
}

func (t *test) attempt(ctx context.Context, row Row, f attack.Family, m attack.Marker, sandboxed bool) (r result, err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	i := 0
	if f == attack.IPv6 {
		i = 1
	}
	j := t.jobs
	j.Kind, j.Family, j.Marker, j.Port, j.Source, j.Target = attack.Kind(row.Kind), f, m, row.Port, t.source[i], t.hosts[i]
	if row.To == "gateway" {
		j.Target = t.gateway[i]
	}
	switch row.Kind {
	case kindField, kindChild, kindTake, kindAdmit, kindCommand, kindWish, kindSelf:
		j.Kind = attack.UDP // its own program reads the addresses alone
	case string(attack.Impostor):
		j.SourcePort = tunnelPort
	}
	text, err := json.Marshal(order{Row: row, Sandboxed: sandboxed, Job: j.Args(), Inner: t.inner, Admitted: t.admitted})
	if err != nil {
		return r, err
	}
	argv := []string{t.self, "usurp-attempt", string(text)}
	var cmd *exec.Cmd
	if t.o.Bare {
		cmd = exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + t.m.Paths.Black}, argv...)...)
	} else if cmd, err = t.o.World.InPlaceOf(ctx, t.m.Name, "tunneld", argv...); err != nil {
		return r, err
	}
	var said, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &errs
	err = cmd.Run()
	const killed = 128 + 9
	if err != nil && cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == killed {
		return result{Refused: "killed at the attempt"}, nil
	}
	if err != nil {
		return r, fmt.Errorf("%w: %s", err, strings.TrimSpace(errs.String()))
	}
	return r, json.Unmarshal(said.Bytes(), &r)
}

// seen waits for the capture to show what has left so far.
func (t *test) seen(ctx context.Context, m attack.Marker) ([]watch.Sighting, int, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	frames, err := t.capture.Settle(ctx)
	if err != nil {
		return nil, 0, err
	}
	if err := t.watcher.Await(ctx, frames); err != nil {
		return nil, 0, err
	}
	n, sightings := t.watcher.Seen(watch.Marker(m))
	return sightings, n, nil
}
