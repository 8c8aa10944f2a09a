package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"rempart/board/netns"
	"rempart/internal/run"
	"rempart/voice/port"
)

// transfer is one iperf3 transfer.
type transfer struct {
	Mbits       float64 `json:"mbit_s"` // received, 10^6 bit/s
	Retransmits int     `json:"retransmits"`
	// CPU is what both tunnel processes used together, in seconds of CPU per
	// 10^9 bytes.
	CPU  float64 `json:"cpu_s_per_gb"`
	Load string  `json:"load"`
}

// pair is two transfers next to each other.
type pair struct {
	Ours       transfer `json:"ours"`
	Plain      transfer `json:"plain"`
	PlainFirst bool     `json:"plain_first"`
}

// path is a way that TCP can take: two places that commands can run in, an
// address to reach, and the processes that carry it.
type path struct {
	name    string
	server  func(ctx context.Context, args ...string) (*running, error)
	client  func(ctx context.Context, args ...string) (*running, error)
	address netip.Addr
	pids    []int
}

// The server is at the handset and sends: red's inbound filters open of all TCP the handset's keying port alone.
var transferPort = strconv.Itoa(port.Keying)

func serving(p *path) []string {
	return []string{"iperf3", "-s", "-B", p.address.String(), "-p", transferPort}
}

func asking(p *path, how ...string) []string {
	return append([]string{"iperf3", "-c", p.address.String(), "-p", transferPort, "-R", "--json"}, how...)
}

// running is a started command.
type running struct {
	cmd      *exec.Cmd
	out, err bytes.Buffer
}

// tcp measures pairs of transfers, ours first in every other one.
func tcp(ctx context.Context, o options, r *result) error {
	if _, err := exec.LookPath("iperf3"); err != nil {
		return run.Hint(errors.New("cannot measure TCP: iperf3 is not installed"), "`make bench` installs it")
	}
	r.Settings["transfers"] = fmt.Sprintf("iperf3, one stream, %d s, red of a to the gateway's red, asked for by the gateway; ratio of each pair, the order swapped from pair to pair", o.seconds)
	r.Settings["plain"] = "wireguard-go " + wireguardVersion() + " with its own bind, root, same link, bridge and router as the handset, no gate"
	return inWorld(ctx, o, r, o.offload, func(w *netns.World, before *air) error {
		// A whole capture of a fast link would be measured too. It ends here, and
		// another begins after the last pair, for one more transfer.
		if err := before.judge(ctx, r, "coming up", 1); err != nil {
			return err
		}
		plain, err := newPlain(ctx, w, o.offload)
		if err != nil {
			return err
		}
		ours, err := oursIn(ctx, w)
		theirs := plain.path()
		var pairs []pair
		if err == nil {
			pairs, err = measurePairs(ctx, o, ours, theirs)
		}
		reportPairs(r, pairs)
		if err := errors.Join(err, plain.close()); err != nil {
			return err
		}
		if o.offload {
			r.Settings["link"] = "the transfers' frames stand for several on the air: not judged"
			return nil
		}
		return captured(ctx, o, w, r, ours)
	})
}

// measurePairs starts both servers and measures.
func measurePairs(ctx context.Context, o options, ours, theirs *path) (pairs []pair, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, p := range []*path{ours, theirs} {
		server, serr := p.server(ctx, serving(p)...)
		if serr != nil {
			return nil, serr
		}
		defer func() { cancel(); _ = server.cmd.Wait() }() // ended by cancel
	}
	for _, p := range []*path{ours, theirs} {
		// The first transfer finds cold caches, and perhaps no server yet.
		if err := warm(ctx, p); err != nil {
			return nil, err
		}
	}
	for i := range o.pairs {
		one := pair{PlainFirst: i%2 == 1}
		order := []*path{ours, theirs}
		if one.PlainFirst {
			order = []*path{theirs, ours}
		}
		for _, p := range order {
			t, err := p.measure(ctx, o.seconds)
			if err != nil {
				return pairs, fmt.Errorf("pair %d, %s: %w", i+1, p.name, err)
			}
			if p == ours {
				one.Ours = t
			} else {
				one.Plain = t
			}
		}
		pairs = append(pairs, one)
	}
	return pairs, nil
}

// warm makes short transfers until one succeeds.
func warm(ctx context.Context, p *path) error {
	var last error
	err := poll(ctx, 10*time.Second, "the server of "+p.name, func() (bool, error) {
		_, last = p.measure(ctx, 1)
		return last == nil, nil
	})
	return errors.Join(err, last)
}

// measure makes one transfer.
func (p *path) measure(ctx context.Context, seconds int) (transfer, error) {
	t := transfer{Load: loadAverage()}
	before, err := cpuOf(p.pids)
	if err != nil {
		return t, err
	}
	c, err := p.client(ctx, asking(p, "-t", strconv.Itoa(seconds))...)
	if err != nil {
		return t, err
	}
	failed := c.cmd.Wait()
	after, err := cpuOf(p.pids)
	if err != nil {
		return t, err
	}
	read, bytes, err := readTransfer(c.out.Bytes())
	if err != nil {
		return t, errors.Join(err, failed, textError(c.err.String()))
	}
	t.Mbits, t.Retransmits = read.Mbits, read.Retransmits
	t.CPU = (after - before).Seconds() / (float64(bytes) / 1e9)
	return t, nil
}

// readTransfer reads iperf3's JSON: what arrived, and how many bytes.
func readTransfer(text []byte) (transfer, int64, error) {
	var r struct {
		Error string `json:"error"`
		End   struct {
			Sent struct {
				Retransmits int `json:"retransmits"`
			} `json:"sum_sent"`
			Received struct {
				Bytes int64   `json:"bytes"`
				Rate  float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return transfer{}, 0, fmt.Errorf("cannot read iperf3's answer: %w", err)
	}
	if r.Error != "" || r.End.Received.Bytes <= 0 {
		return transfer{}, 0, fmt.Errorf("cannot measure: iperf3 says %q and that %d bytes arrived", r.Error, r.End.Received.Bytes)
	}
	return transfer{Mbits: r.End.Received.Rate / 1e6, Retransmits: r.End.Sent.Retransmits}, r.End.Received.Bytes, nil
}

// captured makes one more, short transfer with the link captured, so that what
// TCP at full speed puts on the link is judged too.
func captured(ctx context.Context, o options, w *netns.World, r *result, ours *path) error {
	watching, err := capture(ctx, w, filepath.Join(o.out, r.Name+".pcapng"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server, err := ours.server(ctx, serving(ours)...)
	if err != nil {
		return errors.Join(err, watching.drop())
	}
	defer func() { cancel(); _ = server.cmd.Wait() }() // ended by cancel
	var last error
	err = poll(ctx, 10*time.Second, "the server", func() (bool, error) {
		c, err := ours.client(ctx, asking(ours, "-n", "4M", "-b", "100M")...)
		if err != nil {
			return false, err
		}
		failed := c.cmd.Wait()
		// Its exit code is 0 with --json even when nothing was transferred.
		_, _, last = readTransfer(c.out.Bytes())
		return failed == nil && last == nil, nil
	})
	if err != nil {
		return errors.Join(err, last, watching.drop())
	}
	return watching.judge(context.WithoutCancel(ctx), r, "4 MiB of TCP", 4<<20/1500)
}

// oursIn is the path through a handset's tunnel.
func oursIn(ctx context.Context, w *netns.World) (*path, error) {
	handset, err := w.Machine(ctx, "a")
	if err != nil {
		return nil, err
	}
	gateway, err := w.Machine(ctx, "gateway")
	if err != nil {
		return nil, err
	}
	p := &path{name: "our tunnel", address: inner(handset)}
	for _, m := range []netns.Machine{handset, gateway} {
		pids, err := inGroup(filepath.Join(m.Paths.Cgroup, "tunneld"))
		if err != nil {
			return nil, err
		}
		p.pids = append(p.pids, pids...)
	}
	// As apps of the tunnel's level: the level hooks let no one else talk.
	in := func(name, app string) func(context.Context, ...string) (*running, error) {
		return func(ctx context.Context, args ...string) (*running, error) {
			cmd, err := w.Command(ctx, netns.Where{Machine: name, Colour: "red", App: app}, args...)
			if err != nil {
				return nil, err
			}
			return begin(cmd, cmd.Start)
		}
	}
	p.server, p.client = in(handset.Name, "notes"), in(gateway.Name, "measure")
	return p, nil
}

// path is the path through the plain tunnel.
func (p *plainTunnel) path() *path {
	in := func(e *end) func(context.Context, ...string) (*running, error) {
		return func(ctx context.Context, args ...string) (*running, error) {
			cmd := exec.CommandContext(ctx, args[0], args[1:]...)
			return begin(cmd, func() error { return e.red.Do(cmd.Start) })
		}
	}
	return &path{name: "plain wireguard-go", address: p.ends[1].inner, server: in(p.ends[1]), client: in(p.ends[0]),
		pids: []int{p.ends[0].cmd.Process.Pid, p.ends[1].cmd.Process.Pid}}
}

// begin starts a command and keeps what it prints.
func begin(cmd *exec.Cmd, start func() error) (*running, error) {
	r := &running{cmd: cmd}
	cmd.Stdout, cmd.Stderr = &r.out, &r.err
	if err := start(); err != nil {
		return nil, fmt.Errorf("cannot run %s: %w", cmd.Path, err)
	}
	return r, nil
}

// inGroup returns the processes of a control group.
func inGroup(dir string) ([]int, error) {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, fmt.Errorf("cannot find the tunnel's process: %w", err)
	}
	var pids []int
	for _, f := range strings.Fields(string(text)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("cannot find the tunnel's process: %w", err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// cpuOf sums what processes have used, in user and kernel mode.
func cpuOf(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
		if err != nil {
			return 0, fmt.Errorf("cannot read the CPU time of a tunnel: %w", err)
		}
		used, err := readStat(string(text))
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum, nil
}

// readStat reads user and kernel time from /proc/PID/stat (proc_pid_stat(5)),
// in ticks of 10 ms.
func readStat(text string) (time.Duration, error) {
	const tick = 10 * time.Millisecond
	// The name is in brackets and may hold anything.
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 13 {
		return 0, errors.New("cannot read a process's times: too few fields")
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	system, serr := strconv.ParseInt(fields[12], 10, 64)
	if err := errors.Join(err, serr); err != nil {
		return 0, fmt.Errorf("cannot read a process's times: %w", err)
	}
	return time.Duration(user+system) * tick, nil
}

// wireguardVersion is the version of wireguard-go in this program, which is
// that in tunneld: one module, one go.mod.
func wireguardVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == "golang.zx2c4.com/wireguard" {
				return m.Version
			}
		}
	}
	return "of unknown version"
}

// textError makes an error of what a command printed, if it printed anything.
func textError(text string) error {
	if text = strings.TrimSpace(text); text == "" {
		return nil
	}
	return errors.New(text)
}

// reportPairs makes figures of pairs.
func reportPairs(r *result, pairs []pair) {
	r.Raw = pairs
	var ours, plain, ourCPU, plainCPU, ourAgain, plainAgain []float64
	for _, p := range pairs {
		ours, plain = append(ours, p.Ours.Mbits), append(plain, p.Plain.Mbits)
		ourCPU, plainCPU = append(ourCPU, p.Ours.CPU), append(plainCPU, p.Plain.CPU)
		ourAgain, plainAgain = append(ourAgain, float64(p.Ours.Retransmits)), append(plainAgain, float64(p.Plain.Retransmits))
	}
	r.add("ratio of each pair, ours over plain", "", ratios(ours, plain), bound{p50, true, 0.9})
	r.add("our tunnel", "Mbit/s", ours, bound{})
	r.add("plain wireguard-go", "Mbit/s", plain, bound{})
	r.add("our tunnel, both ends' CPU", "s/GB", ourCPU, bound{})
	r.add("plain wireguard-go, both ends' CPU", "s/GB", plainCPU, bound{})
	r.add("our tunnel, TCP retransmits", "segments", ourAgain, bound{})
	r.add("plain wireguard-go, TCP retransmits", "segments", plainAgain, bound{})
}
