package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Options are of one boot.
type Options struct {
	// Kernel to boot; the zero value is what [FindKernel] finds.
	Kernel Kernel
	// Memory in MiB; 0 is 1024.
	Memory int
	// Processors; 0 is 1. With more, emulation is now and then wrong where the kernel changes its own code (static keys) on
	// one of them while another runs it: one guest in some thirty ended in a panic.
	Processors int
	// Modules to load before the first command, by name. What the kernel asks for by itself (a device kind, a protocol) is
	// loaded when it asks, by the desk's modprobe.
	Modules []string
	// Dir is the folder that [Run]'s command starts in; "" is the caller's.
	Dir string
	// Env is added to the environment of every command, which else has PATH, HOME and what CI says.
	Env []string
	// Timeout of the whole, boot included; 0 is five minutes.
	Timeout time.Duration
	// Stdout and Stderr take the output of [Run]'s command; nil discards it.
	Stdout, Stderr io.Writer
	// Console takes what the kernel says on its serial line; nil keeps its end for errors only.
	Console io.Writer
}

// Command is one program to run as root in the guest.
type Command struct {
	// Argv[0] is an absolute path on the desk, or a name to be looked for in the guest's PATH.
	Argv []string
	Env  []string
	// Dir is the folder that it starts in; "" is the caller's.
	Dir string
	// Timeout after which the guest kills it and goes on with the next; 0 is the rest of the whole.
	Timeout        time.Duration
	Stdout, Stderr io.Writer
}

// Run boots a guest and runs one command in it. The error says why it could not be run to its end; how it ended by
// itself is the Ending.
func Run(ctx context.Context, o Options, argv ...string) (Ending, error) {
	ends, err := RunEach(ctx, o, []Command{{Argv: argv, Dir: o.Dir, Stdout: o.Stdout, Stderr: o.Stderr}})
	if err != nil {
		return Ending{}, err
	}
	return ends[0], nil
}

// RunEach boots one guest and runs the commands in it, one after another, whether or not the one before ended well.
// When it returns, the guest is gone.
func RunEach(ctx context.Context, o Options, commands []Command) ([]Ending, error) {
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Minute
	}
	if o.Memory == 0 {
		o.Memory = 1024
	}
	if o.Processors == 0 {
		o.Processors = 1
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("not done within %v", o.Timeout))
	defer cancel()
	if o.Kernel == (Kernel{}) {
		k, err := FindKernel()
		if err != nil {
			return nil, err
		}
		o.Kernel = k
	}
	ends, err := runEach(ctx, o, commands)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = errors.Join(cause, err)
		}
		return nil, fmt.Errorf("cannot run in the guest: %w", err)
	}
	return ends, nil
}

func runEach(ctx context.Context, o Options, commands []Command) ([]Ending, error) {
	ord, err := o.order(commands)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "rempart-guest-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	ird := filepath.Join(dir, "initrd")
	if err := o.writeDisk(ird, ord); err != nil {
		return nil, err
	}
	m, err := start(ctx, o, ird)
	if err != nil {
		return nil, err
	}
	ends, err := listen(m.port, commands)
	return ends, m.end(err)
}

// order says what the guest has to do.
func (o Options) order(commands []Command) (order, error) {
	here, err := os.Getwd()
	if err != nil {
		return order{}, err
	}
	ord := order{Modules: o.Modules, Kernel: o.Kernel.modules}
	env := []string{"PATH=" + searched, "HOME=/root", "CI=" + os.Getenv("CI"), "REMPART_IN_GUEST=" + o.Kernel.Release}
	for _, c := range commands {
		t := task{Argv: c.Argv, Env: append(append(append([]string(nil), env...), o.Env...), c.Env...), Dir: c.Dir, Timeout: c.Timeout}
		if t.Dir == "" {
			t.Dir = here
		}
		if t.Timeout == 0 {
			t.Timeout = o.Timeout
		}
		ord.Commands = append(ord.Commands, t)
	}
	text, err := json.Marshal(ord)
	if err != nil {
		return order{}, err
	}
	return parseOrder(text)
}

// searched is the guest's PATH.
const searched = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// toMount are the modules without which the desk's root file system cannot be mounted.
var toMount = []string{"9pnet_virtio", "9p", "overlay"}

// writeDisk makes the initial RAM disk: this program, its order, and the first modules.
func (o Options) writeDisk(path string, ord order) error {
	modules, err := o.Kernel.before(toMount)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	d := &disk{w: f}
	for _, folder := range []string{"dev", "proc", "sys", "desk", "memory", "root"} {
		d.folder(folder)
	}
	d.copy("init", 0o755, "/proc/self/exe")
	for _, m := range modules {
		name := filepath.Base(m)
		d.copy(name, 0o644, m)
		ord.Boot = append(ord.Boot, "/"+name)
	}
	text, err := json.Marshal(ord)
	if err != nil {
		return err
	}
	d.file(orderFile, 0o644, text)
	return errors.Join(d.close(), f.Close())
}

// listen passes on what the guest says until every command has ended.
func listen(port io.Reader, commands []Command) ([]Ending, error) {
	ends := make([]Ending, len(commands))
	for ended := 0; ended < len(commands); {
		s, err := readSaid(port)
		if err != nil {
			return nil, fmt.Errorf("the guest ended early: %w", err)
		}
		if s.kind == saidFailed {
			return nil, fmt.Errorf("%s", strings.ToValidUTF8(string(s.body), "?"))
		}
		if int(s.command) != ended {
			return nil, fmt.Errorf("the guest speaks of command %d while %d runs", s.command, ended)
		}
		c := commands[ended]
		switch s.kind {
		case saidOut:
			err = pass(c.Stdout, s.body)
		case saidErr:
			err = pass(c.Stderr, s.body)
		case saidExit:
			err = json.Unmarshal(s.body, &ends[ended])
			ended++
		}
		if err != nil {
			return nil, err
		}
	}
	return ends, nil
}

func pass(w io.Writer, b []byte) error {
	if w == nil {
		return nil
	}
	_, err := w.Write(b)
	return err
}
