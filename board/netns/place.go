package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// placeSpec says in whose place a process comes.
type placeSpec struct {
	PID   int    // the daemon's, on the desk
	Group string // the folder of its control group
}

// InPlaceOf returns a command of the desk that has of a machine's running daemon all that can be had from outside: its uid and
// gid, its capability sets, no_new_privs, its six namespaces, the handset's files and its control group. That is what a
// daemon is whose program was replaced while it ran. It has no seccomp filter, which a program puts on itself, and none of
// the daemon's descriptors.
//
// The program is opened on the desk, so it need not be in the machine, but it must be linked statically; there it is known as
// /proc/self/exe. What it ends
// with is the command's exit code, 128+N for a signal.
func (w *World) InPlaceOf(ctx context.Context, machine, daemon string, args ...string) (*exec.Cmd, error) {
	m, err := w.running(ctx, machine)
	if err != nil {
		return nil, err
	}
	spec := placeSpec{Group: filepath.Join(m.Paths.Cgroup, daemon)}
	text, err := os.ReadFile(filepath.Join(spec.Group, "cgroup.procs"))
	if err != nil {
		return nil, fmt.Errorf("cannot take the place of %s: %w", daemon, err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	if spec.PID, err = strconv.Atoi(first); err != nil {
		return nil, fmt.Errorf("cannot take the place of %s: it does not run", daemon)
	}
	cmd, err := w.entering(ctx, stagePlace, spec, args)
	if err == nil {
		cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) } // the stage passes it on
	}
	return cmd, err
}

// rights are what the kernel says of a process's rights (proc_pid_status(5)).
type rights struct {
	uid, gid          uint32
	bounding, ambient uint64
	noNewPrivs        bool
}

func readRights(pid int) (r rights, err error) {
	text, err := os.ReadFile(procPath(pid, "status"))
	if err != nil {
		return r, fmt.Errorf("cannot learn a daemon's rights: %w", err)
	}
	number := func(word string, base int) uint64 {
		n, e := strconv.ParseUint(word, base, 64)
		err = errors.Join(err, e)
		return n
	}
	found := 0
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		found++
		switch words[0] {
		case "Uid:":
			r.uid = uint32(number(words[1], 10))
		case "Gid:":
			r.gid = uint32(number(words[1], 10))
		case "CapBnd:":
			r.bounding = number(words[1], 16)
		case "CapAmb:":
			r.ambient = number(words[1], 16)
		case "NoNewPrivs:":
			r.noNewPrivs = words[1] == "1"
		default:
			found--
		}
	}
	if err == nil && found != 5 {
		err = fmt.Errorf("cannot learn a daemon's rights: its status names %d of 5 fields", found)
	}
	return r, err
}

// placeMain runs a command in a daemon's place.
func placeMain(text string, command []string) error {
	runtime.LockOSThread() // the child is born in the namespaces of this thread, with its bounding set
	var spec placeSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil || len(command) == 0 {
		return errors.Join(errors.New("cannot take a place: no command"), err)
	}
	program, err := os.Open(command[0])
	if err != nil {
		return fmt.Errorf("cannot open the program: %w", err)
	}
	r, err := readRights(spec.PID)
	if err != nil {
		return err
	}
	if r.uid == 0 || !r.noNewPrivs {
		return errors.New("cannot take the place of a process that is no daemon in its sandbox")
	}
	ns, err := openAll(append(namespaces(spec.PID), spec.Group)...)
	if err != nil {
		return err
	}
	// A thread that shares its root and folder with others can't change both.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("cannot take the place: %w", err)
	}
	for i, kind := range allKinds {
		if err := unix.Setns(ns[i], kind); err != nil {
			return fmt.Errorf("cannot take the place: %w", err)
		}
	}
	var ambient []uintptr
	for c := range 64 {
		if r.ambient&(1<<c) != 0 {
			ambient = append(ambient, uintptr(c))
		}
		if r.bounding&(1<<c) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("cannot give up capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot give up privileges: %w", err)
	}
	return follow(&exec.Cmd{
		Path: "/proc/self/fd/3", Args: command, Dir: "/", Env: []string{"GOTRACEBACK=single"},
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, ExtraFiles: []*os.File{program},
		SysProcAttr: &syscall.SysProcAttr{
			UseCgroupFD: true, CgroupFD: ns[len(allKinds)], AmbientCaps: ambient, Setsid: true,
			Credential: &syscall.Credential{Uid: r.uid, Gid: r.gid, Groups: []uint32{}},
		},
	})
}
