package leak

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/netns"
	"rempart/board/scenario"
	"rempart/board/scenario/attack"
	"rempart/board/scenario/watch"
	"rempart/internal/link"
	"rempart/tools/lab/bringup"
	"rempart/vpn/enforce/nft"
)

// board is one handset of the netns board as the scenarios see it.
type board struct {
	options Options
	w       *netns.World
	name    string
	dir     string
	self    string // this program
	site    scenario.Site
	file    string // of the capture; "" is a new one in dir
	capture *netns.Capture
}

func (b *board) Site() scenario.Site { return b.site }

// Start runs a sender in the handset, as `rempart-lab exec` would.
func (b *board) Start(ctx context.Context, c scenario.Command) (scenario.Process, error) {
	where := netns.Where{Machine: b.name, App: c.App}
	if c.Where != scenario.Init {
		where.Colour = string(c.Where)
	}
	cmd, err := b.w.Command(context.WithoutCancel(ctx), where, c.Argv...)
	if err != nil {
		return nil, err
	}
	return startProcess(cmd)
}

// process is a running sender.
type process struct {
	cmd   *exec.Cmd
	lines chan []byte // closed at the end of its output
	errs  bytes.Buffer
	ended chan struct{}
}

func startProcess(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, lines: make(chan []byte, 64), ended: make(chan struct{})}
	cmd.Stderr = &p.errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		for in := bufio.NewScanner(out); in.Scan(); {
			p.lines <- bytes.Clone(in.Bytes())
		}
		close(p.lines)
		// How it ended is told by its result line, or by there being none.
		_ = cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

func (p *process) Line(ctx context.Context) ([]byte, error) {
	select {
	case line, ok := <-p.lines:
		if ok {
			return line, nil
		}
		<-p.ended
		if text := strings.TrimSpace(p.errs.String()); text != "" {
			return nil, errors.Join(io.EOF, errors.New(text))
		}
		return nil, io.EOF
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *process) Stop() error { return p.signal(unix.SIGTERM) }

func (p *process) Close() error {
	err := p.signal(unix.SIGKILL)
	for range p.lines {
		// What it still said is for nobody.
	}
	<-p.ended
	return err
}

func (p *process) signal(s unix.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// live is a capture that is read while it grows.
type live struct {
	*watch.Tail
	b    *board
	c    *netns.Capture
	file *os.File
}

func (b *board) Capture(ctx context.Context) (io.ReadCloser, error) {
	path := b.file
	if path == "" {
		var err error
		if path, err = b.captureFile(); err != nil {
			return nil, err
		}
	}
	c, err := b.w.Capture(context.WithoutCancel(ctx), path)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		_, stop := c.Stop()
		return nil, errors.Join(err, stop)
	}
	b.capture = c
	l := &live{watch.NewTail(f), b, c, f}
	if err := b.sign(ctx); err != nil {
		return nil, errors.Join(err, l.Close(), f.Close())
	}
	return l, nil
}

// sign sends a datagram through the tunnel, so that a capture that sees nothing at all is known to be deaf: what leaves is
// of the admitted class, as everything else from red.
func (b *board) sign(ctx context.Context) error {
	j := attack.Job{Kind: attack.UDP, Family: attack.IPv4, Target: b.site.Inner4, Count: 1}
	if _, err := rand.Read(j.Marker[:]); err != nil {
		return err
	}
	p, err := b.Start(ctx, scenario.Command{Where: scenario.Red, App: scenario.TunnelApp, Argv: append([]string{b.self, "attempt"}, j.Args()...)})
	if err != nil {
		return fmt.Errorf("cannot send through the tunnel: %w", err)
	}
	defer p.Close()
	for {
		if _, err := p.Line(ctx); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("cannot send through the tunnel: %w", err)
		}
	}
}

func (l *live) Close() error {
	result, err := l.c.Stop()
	if err == nil && !result.Complete() {
		err = fmt.Errorf("the capture is not whole: %+v %s", result.Ports, result.Error)
	}
	l.Finish()
	return err
}

func (b *board) Settle(ctx context.Context) (int, error) { return b.capture.Settle(ctx) }

// Counters reads what the handset counts itself: the gate's reasons from egressd, and what red handed to the tunnel device.
func (b *board) Counters(ctx context.Context) (scenario.Counters, error) {
	c := scenario.Counters{Drops: map[string]uint64{}}
	s, err := bringup.StatusOf(ctx, b.w, b.name)
	if err != nil {
		return c, err
	}
	if s.Gate == nil {
		return c, errors.New("egressd does not answer")
	}
	for _, d := range s.Gate.Devices {
		for reason, n := range d.Egress {
			if reason != "admitted" {
				c.Drops[reason] += n
			}
		}
	}
	m, err := b.w.Machine(ctx, b.name)
	if err != nil {
		return c, err
	}
	black, err := link.Open(m.Paths.Black)
	if err != nil {
		return c, err
	}
	defer black.Close()
	err = black.Do(func() error {
		dropped, err := nft.Drops()
		maps.Copy(c.Drops, dropped)
		return err
	})
	if err != nil {
		return c, err
	}
	red, err := link.Open(m.Paths.Red)
	if err != nil {
		return c, err
	}
	defer red.Close()
	err = red.Do(func() (err error) { c.Tunnelled, err = link.Transmitted("wg0"); return err })
	if err != nil {
		return c, fmt.Errorf("cannot read the counter of wg0: %w", err)
	}
	return c, nil
}

// WaitUp waits for the tunnel and gives the PIN when the handset asks for it.
func (b *board) WaitUp(ctx context.Context) error {
	var last error
	for ctx.Err() == nil {
		s, err := bringup.StatusOf(ctx, b.w, b.name)
		switch {
		case err != nil:
			last = err
		case s.Keystore.State == "sealed":
			if _, err := b.w.Phone(ctx, b.name, []byte(b.options.PIN+"\n"), "unlock"); err != nil {
				last = err
			}
		case s.Boot != nil && !s.Boot.Closed && s.Tunnel.State == "up" && s.Gate != nil && s.Gate.Admitted != "":
			return nil
		default:
			last = fmt.Errorf("keystore %s, tunnel %s (%s)", s.Keystore.State, s.Tunnel.State, s.Tunnel.Reason)
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s did not come up: %w; last: %w", b.name, ctx.Err(), last)
}

// processes are the desk's numbers of what is in the daemon's control group: they are known from there alone.
func (b *board) processes(ctx context.Context, daemon string) (group string, pids []int, err error) {
	m, err := b.w.Machine(ctx, b.name)
	if err != nil {
		return "", nil, err
	}
	group = filepath.Join(m.Paths.Cgroup, daemon, "cgroup.procs")
	data, err := os.ReadFile(group)
	if err != nil {
		return "", nil, err
	}
	for _, text := range strings.Fields(string(data)) {
		pid, err := strconv.Atoi(text)
		if err != nil {
			return "", nil, err
		}
		pids = append(pids, pid)
	}
	if len(pids) == 0 {
		return "", nil, fmt.Errorf("%s does not run", daemon)
	}
	return group, pids, nil
}

// signal sends a signal to a daemon.
func (b *board) signal(ctx context.Context, daemon string, sig unix.Signal) error {
	_, pids, err := b.processes(ctx, daemon)
	for _, pid := range pids {
		if kerr := unix.Kill(pid, sig); kerr != nil && !errors.Is(kerr, unix.ESRCH) {
			err = errors.Join(err, fmt.Errorf("cannot send %s to %s: %w", unix.SignalName(sig), daemon, kerr))
		}
	}
	return err
}

// KillDaemon kills what is in the daemon's control group.
func (b *board) KillDaemon(ctx context.Context, daemon string) error {
	group, pids, err := b.processes(ctx, daemon)
	if err != nil {
		return fmt.Errorf("cannot kill %s: %w", daemon, err)
	}
	if err := b.signal(ctx, daemon, unix.SIGKILL); err != nil {
		return err
	}
	// Dead only when the supervisor has another, or the machine went off for it: a status asked for before that would be of
	// the time before the kill.
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		now, err := os.ReadFile(group)
		if err != nil || !slices.Contains(strings.Fields(string(now)), strconv.Itoa(pids[0])) {
			return nil
		}
	}
	return fmt.Errorf("cannot kill %s: it is still there", daemon)
}

func (b *board) KillInit(ctx context.Context) error { return b.w.Kill9(ctx, b.name) }

func (b *board) Restart(ctx context.Context) error {
	_, err := b.w.Restart(ctx, b.name, 2*time.Second)
	return err
}

func (b *board) HotPlug(ctx context.Context, device string) error {
	return b.w.HotPlug(ctx, b.name, device)
}

func (b *board) Unplug(ctx context.Context, device string) error {
	return b.w.Unplug(ctx, b.name, device)
}
