package hostile

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rempart/board/scenario"
	"rempart/board/scenario/attack"
	"rempart/internal/sandbox/guard"
)

// Options of a run.
type Options struct {
	// Cgroup is a folder of the cgroup2 file system in which the run makes its own.
	Cgroup string
	// Sender is a program that carries out attack.Job arguments, as rempart-lab attempt does: a static program and its first
	// words. Env is added to its environment.
	Sender []string
	Env    []string
	// Cells to try; nil is all.
	Cells []Cell
	// Done is told of each row as it ends; nil is silent.
	Done func(Row)
}

// Outcome is how one attempt ended under one set of layers.
type Outcome struct {
	Layers  Layers           `json:"layers"`
	Verdict scenario.Verdict `json:"verdict"`
	Detail  string           `json:"detail,omitempty"`
	Frames  int              `json:"frames"`
	Marker  string           `json:"marker"`
	want    bool             // it must leak
}

// Row is one cell with what it came to, in the form that the leak matrix takes.
type Row struct {
	Name      string        `json:"name"`
	Kind      attack.Kind   `json:"kind"`
	Privilege Privilege     `json:"privilege"`
	Family    attack.Family `json:"family"`
	Stopper   Stopper       `json:"stopper"`
	Where     string        `json:"where"`
	Guard     string        `json:"guard"`
	Outcomes  []Outcome     `json:"outcomes"`
	Held      bool          `json:"held"`
	Why       string        `json:"why,omitempty"` // it did not hold
}

// judge says what is wrong with a row that did not hold.
func (r Row) judge() string {
	for _, o := range r.Outcomes {
		leaked := o.Verdict == scenario.Leaked
		switch {
		case r.Stopper == Kernel && o.Verdict != scenario.Refused:
			return fmt.Sprintf("under %s the kernel did not refuse it: %s (%s)", o.Layers, o.Verdict, o.Detail)
		case o.Verdict == scenario.Broken:
			return fmt.Sprintf("under %s the attempt could not be made: %s", o.Layers, o.Detail)
		case leaked && !o.want:
			return fmt.Sprintf("it leaked under %s: %s", o.Layers, o.Detail)
		case !leaked && o.want:
			return fmt.Sprintf("under %s, where nothing stops it, it was %s (%s)", o.Layers, o.Verdict, o.Detail)
		}
	}
	return ""
}

// Line is the row for a person.
func (r Row) Line() string {
	state := "held"
	if !r.Held {
		state = "NOT HELD"
	}
	var outcomes []string
	for _, o := range r.Outcomes {
		detail, _, _ := strings.Cut(o.Detail, ":")
		outcomes = append(outcomes, strings.TrimSpace(fmt.Sprintf("%s: %s %s", o.Layers, o.Verdict, detail)))
	}
	return fmt.Sprintf("%-8s %-55s by %-11s %s", state, r.Name, r.Stopper, strings.Join(outcomes, "; "))
}

// runner is what all worlds of a run share.
type runner struct {
	sender  string
	words   []string
	env     []string
	pins    string
	bare    groups
	guarded groups
	form    guard.Form
	where   string
}

// Run tries the cells. It needs root, and a kernel that runs BPF LSM programs; it is meant for the guest board.
func Run(ctx context.Context, o Options) (rows []Row, err error) {
	r := &runner{words: o.Sender[1:], env: o.Env}
	dir, err := os.MkdirTemp("/run", "rempart-hostile-")
	if err != nil {
		return nil, err
	}
	var undo []func() error
	undo = append(undo, func() error { return os.RemoveAll(dir) })
	defer func() {
		for i := len(undo) - 1; i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()
	if err := r.prepare(o, dir, &undo); err != nil {
		return nil, fmt.Errorf("cannot prepare the attack table: %w", err)
	}
	cells := o.Cells
	if cells == nil {
		cells = Cells()
	}
	for _, c := range cells {
		if ctx.Err() != nil {
			return rows, context.Cause(ctx)
		}
		row := r.row(ctx, c)
		rows = append(rows, row)
		if o.Done != nil {
			o.Done(row)
		}
	}
	return rows, nil
}

// prepare puts the sender where everyone can run it, and the guard over one of two sets of control groups.
func (r *runner) prepare(o Options, dir string, undo *[]func() error) (err error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	r.where = "this machine, " + unix.ByteSliceToString(uts.Release[:])
	if in := os.Getenv("REMPART_IN_GUEST"); in != "" {
		r.where = "guest " + in
	}
	program, err := os.ReadFile(o.Sender[0])
	if err != nil {
		return err
	}
	r.sender = filepath.Join(dir, "sender")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(r.sender, program, 0o755)); err != nil {
		return err
	}
	r.pins = filepath.Join(dir, "bpf")
	if err := errors.Join(os.Mkdir(r.pins, 0o700), unix.Mount("bpf", r.pins, "bpf", 0, "mode=0700")); err != nil {
		return err
	}
	*undo = append(*undo, func() error { return unix.Unmount(r.pins, 0) })
	name := filepath.Join(o.Cgroup, fmt.Sprintf("rempart-hostile-%d", os.Getpid()))
	for suffix, g := range map[string]*groups{"-bare": &r.bare, "-guarded": &r.guarded} {
		if *g, err = makeGroups(name + suffix); err != nil {
			return err
		}
		*undo = append(*undo, g.remove)
	}
	g, err := guard.Install(r.guarded.root, filepath.Join(r.pins, "guard"))
	if err != nil {
		return err
	}
	*undo = append(*undo, g.Remove)
	if r.form = g.Form(); r.form != guard.LSM {
		return fmt.Errorf("this kernel has the guard's form %q only", r.form)
	}
	// These are not loaded by being asked for; a phone's kernel may have them built in.
	if out, err := exec.Command("modprobe", "-a", "pktgen", "fou", "fou6").CombinedOutput(); err != nil {
		return fmt.Errorf("cannot load modules: %w: %s", err, out)
	}
	return nil
}

func (r *runner) row(ctx context.Context, c Cell) Row {
	row := Row{Name: fmt.Sprintf("%s with %s, IPv%d", c.Kind, c.Privilege, c.Family), Kind: c.Kind, Privilege: c.Privilege, Family: c.Family,
		Stopper: c.Stopper, Where: r.where, Guard: string(r.form)}
	sets, leaks := c.layers()
	for i, set := range sets {
		o := r.attempt(ctx, c, set)
		o.want = leaks[i]
		row.Outcomes = append(row.Outcomes, o)
	}
	row.Why = row.judge()
	row.Held = row.Why == ""
	return row
}

const attemptLimit = 60 * time.Second

// attempt makes a world, lets the hostile process loose in it, and looks at the far end.
func (r *runner) attempt(ctx context.Context, c Cell, set Layers) (o Outcome) {
	ctx, cancel := context.WithTimeout(ctx, attemptLimit)
	defer cancel()
	j := r.job(c.Kind, c.Family)
	o = Outcome{Layers: set, Marker: j.Marker.String(), Verdict: scenario.Broken}
	w, err := r.newWorld(ctx, set, c.Family)
	if err != nil {
		o.Detail = err.Error()
		return o
	}
	defer func() {
		if err := w.close(); err != nil {
			o.Verdict, o.Detail = scenario.Broken, err.Error()
		}
	}()
	if c.Kind == attack.Joined {
		j.Path = w.groups.tunnel
	} else {
		j.Path = w.pins
	}
	j.PID = w.tunnel.Process.Pid
	result, err := r.loose(ctx, w, c.Privilege, j)
	// veth delivers within the send; what was set going has had its time in the sender.
	time.Sleep(100 * time.Millisecond)
	if o.Frames = w.capture.shown(j); o.Frames > 0 {
		o.Verdict, o.Detail = scenario.Leaked, fmt.Sprintf("%d frames", o.Frames)
		return o
	}
	switch {
	case err != nil:
		o.Detail = err.Error()
	case result.Errno != "" && result.Sent == 0:
		o.Verdict, o.Detail = scenario.Refused, result.Errno+": "+result.Note
	case result.Sent > 0:
		o.Verdict, o.Detail = scenario.Dropped, result.Note
	default:
		o.Detail = "the sender sent nothing and was refused nothing"
	}
	return o
}

// loose runs the hostile process to its end.
func (r *runner) loose(ctx context.Context, w *world, p Privilege, j attack.Job) (result attack.Result, err error) {
	read, write, err := os.Pipe()
	if err != nil {
		return result, err
	}
	defer read.Close()
	var cmd *exec.Cmd
	err = w.black.Do(func() (err error) {
		cmd, err = r.start(w.groups.attacker, p, j, write)
		return err
	})
	write.Close()
	if err != nil {
		return result, err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	told := false
	for lines := bufio.NewScanner(io.LimitReader(read, 1<<20)); lines.Scan(); {
		if got, err := attack.ParseResult(lines.Bytes()); err == nil && !got.Started {
			result, told = got, true
		}
	}
	err = cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL && ctx.Err() == nil {
		return attack.Result{Kind: j.Kind, Family: j.Family, Errno: "SIGKILL", Note: "the sender was killed at the attempt"}, nil
	}
	if err == nil && !told {
		err = errors.New("the hostile process said nothing")
	}
	return result, err
}
